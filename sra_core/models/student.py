"""How a student starts: layers of a source model, its weights or fresh ones, and the embeddings of its tokenizer."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sra_core.config import ModelRef, RunConfig
from sra_core.errors import ModelError
from sra_core.models.bars import no_progress_bars
from sra_core.models.embeddings import replace_embeddings
from sra_core.models.ends import name_answer_end
from sra_core.models.identity import tokenizer_identity
from sra_core.models.importance import layer_importance
from sra_core.models.loading import load_model, load_tokenizer
from sra_core.models.pair import load_kept_tokenizer
from sra_core.models.references import resolve
from sra_core.models.structure import check_decoder, layer_count, layers_of
from sra_core.shards import Manifest, PreparedSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["build_student", "initial_student", "spread_layers"]

logger = logging.getLogger(__name__)

_SAMPLE = 32


def build_student(config: RunConfig, tokenizer: PreTrainedTokenizerFast, sample: Sequence[str] = ()) -> PreTrainedModel:
    """The student before training, in float32 on the CPU; a pure function of the config, the tokenizer and the sample.

    Args:
        config: ``student`` says where it comes from, ``teacher`` is the source when ``student.source`` is ``teacher``,
            and ``seed`` fixes what is random.
        tokenizer: The student's tokenizer. Where it differs from the source's, embeddings and LM head get one row for
            each of its entries. The special ids of config and generation config become its own, and the token that ends
            answers is named in the latter.
        sample: Texts to measure the layers on; needed when ``student.layer_choice`` is ``importance``.

    Raises:
        ModelError: more layers than the source has, a source that cannot be loaded or pruned, or no sample.
    """
    student = config.student
    ref = config.student_origin
    # What is random comes from the config's seed, and the caller's generator stays where it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = _fresh(config, ref) if student.initial_weights == "random" else _pruned(config, ref, sample)
        _fit_vocabulary(config, ref, model, tokenizer)
    _name_special_tokens(model, tokenizer)
    name_answer_end(model, tokenizer, student)
    return model.eval()


def spread_layers(count: int, keep: int) -> list[int]:
    """Indices of ``keep`` layers out of ``count``, evenly spread, first and last included (a single one is the first).

    Raises:
        ModelError: more layers than there are.
    """
    if keep > count:
        raise ModelError(f"cannot keep {keep} of {count} layers", f"set student.keep_layers to {count} or less")
    return [(index * (count - 1) + (keep - 1) // 2) // max(keep - 1, 1) for index in range(keep)]


def _pruned(config: RunConfig, ref: ModelRef, sample: Sequence[str]) -> PreTrainedModel:
    source = load_model(ref)
    count, keep = layer_count(source), config.student.keep_layers
    if keep is None or keep == count:
        return source
    kept = spread_layers(count, keep)
    if config.student.layer_choice == "importance":
        kept = _most_important(source, ref, keep, sample)
    prefix = next(name for name, module in source.named_modules() if module is layers_of(source)) + "."
    state = {}
    for name, tensor in source.state_dict().items():
        if not name.startswith(prefix):
            state[name] = tensor
            continue
        index, _, rest = name.removeprefix(prefix).partition(".")
        if int(index) in kept:
            state[f"{prefix}{kept.index(int(index))}.{rest}"] = tensor
    try:
        model = _from_config(_config_with(source.config, kept), ref)
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"the layers of {ref.source} are not alike: {str(error).splitlines()[0]}",
            "leave student.keep_layers unset, or prune another model",
        ) from error
    return model


def _fresh(config: RunConfig, ref: ModelRef) -> PreTrainedModel:
    from transformers import AutoConfig

    try:
        source = AutoConfig.from_pretrained(resolve(ref, weights=False), trust_remote_code=ref.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{ref.source} has no readable config: {error}", "give a model with its config.json"
        ) from error
    count = layer_count(source)
    model = _from_config(_config_with(source, spread_layers(count, config.student.keep_layers or count)), ref)
    check_decoder(model, ref.source)
    return model


def _from_config(config: Any, ref: ModelRef) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    try:
        with no_progress_bars():
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=ref.trust_remote_code
            )
    except ValueError as error:
        raise ModelError(
            f"{ref.source} is not a causal language model: {str(error).splitlines()[0]}", "use a decoder-only model"
        ) from error
    return model.eval()


def _config_with(config: Any, kept: list[int]) -> Any:
    """The config of the kept layers: whatever it lists once a layer is cut to them."""
    changed = copy.deepcopy(config)
    text = changed.get_text_config()
    count = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == count and not name.startswith("_"):
            setattr(text, name, [value[index] for index in kept])
    text.num_hidden_layers = len(kept)
    return changed


def _most_important(source: PreTrainedModel, ref: ModelRef, keep: int, sample: Sequence[str]) -> list[int]:
    if not sample:
        raise ModelError(
            "student.layer_choice is `importance`, and there is no text to measure the layers on",
            "give a corpus with training examples, or use `spread`",
        )
    tokenizer = load_tokenizer(ref)
    _grow(source, tokenizer)
    scores = layer_importance(source, tokenizer, sample)
    last = len(scores) - 1
    inner = sorted(range(1, last), key=lambda index: (-scores[index], index))
    return sorted([0, *([last] if keep > 1 else []), *inner[: max(keep - 2, 0)]])


def _fit_vocabulary(
    config: RunConfig, ref: ModelRef, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    if config.student.tokenizer == "source":
        _grow(model, tokenizer)
        return
    if config.student.initial_weights == "random":
        model.resize_token_embeddings(_rows(tokenizer), mean_resizing=False)
        return
    source_tokenizer = load_tokenizer(ref)
    # First: rows of the new tokenizer are means of the source's, those of its added tokens among them.
    _grow(model, source_tokenizer)
    # By content: the source's own tokenizer under another name changes nothing.
    if tokenizer_identity(source_tokenizer)["tokenizer"] != tokenizer_identity(tokenizer)["tokenizer"]:
        replace_embeddings(model, source_tokenizer, tokenizer, config.student.embeddings, _rows(tokenizer))


def _grow(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give tokens that were added to a tokenizer, and never to its model, rows of their own."""
    rows, there = _rows(tokenizer), len(model.get_input_embeddings().weight)
    if rows > there:
        logger.warning(
            "the student's tokenizer has %d tokens beyond the %d embeddings of its model: they start around the mean",
            rows - there,
            there,
        )
        model.resize_token_embeddings(rows)  # transformers draws them with the old rows' mean and covariance


def _rows(tokenizer: PreTrainedTokenizerFast) -> int:
    return max(tokenizer.get_vocab().values()) + 1  # not len(): ids may have holes


def _name_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    from transformers import GenerationConfig

    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    text = model.config.get_text_config()
    for name, value in ids.items():
        setattr(text, name, value)
    if hasattr(text, "unk_token_id"):  # GGUF configs name it
        text.unk_token_id = tokenizer.unk_token_id
    model.generation_config = GenerationConfig(**ids)


def initial_student(config: RunConfig, prepared: Manifest) -> tuple[Any, Any]:
    """The student before training and its tokenizer: a pure function of the config and the prepared examples."""
    tokenizer = load_kept_tokenizer(config, Path(prepared.folder), "student")
    rows = PreparedSet(prepared, "train")
    sample = [row.prompt + row.response for row in rows[:_SAMPLE]]
    return build_student(config, tokenizer, sample), tokenizer
