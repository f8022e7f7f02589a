"""Tokenizers and models from a reference, checked before anything is built on them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sra_core.alignment.tokens import refuse_random
from sra_core.config import ModelRef
from sra_core.errors import ConfigError, ModelError, TokenizerError, first_line
from sra_core.models.folders import check_folder, read_json, refuse_no_numbers, refuse_pointers
from sra_core.models.reading import code_remedy, read_model
from sra_core.models.references import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["load_model", "load_tokenizer", "looked_at", "pick_device"]

# Tokenizers that were only looked at, one a side: for whoever loads them next.
_spare: OrderedDict[str, Any] = OrderedDict()
_PROBE = "Spans of a text, und noch mehr: 42.\n"


def load_tokenizer(ref: ModelRef) -> PreTrainedTokenizerFast:
    """The model's fast tokenizer, with trustworthy offsets and an end-of-text token (also its padding if it has none).

    Raises:
        ModelError: the reference cannot be resolved, holds no tokenizer, or one of its own code that may not run.
        TokenizerError: a slow tokenizer, one without offsets, one that draws its tokens at random, or one without an
            end-of-text token.
    """
    from transformers import AutoTokenizer

    folder = Path(resolve(ref, weights=False))
    key = _state(ref, folder)
    # Taken out: no two callers get one object, which either could change.
    if (spare := _spare.pop(key, None)) is not None:
        return spare
    refuse_pointers(folder)
    _require_tokenizer_files(ref, folder)
    _refuse_stand_in(ref, folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=ref.trust_remote_code)
    except Exception as error:  # the loader raises whatever its backends raise; the folder is what the user can mend
        _refuse_unconverted(ref, folder, error)
        if (folder / "tokenizer.json").is_file():
            read_json(folder / "tokenizer.json")  # a torn one is told as such
        raise ModelError(
            f"{ref.source} holds no tokenizer that transformers can load: {first_line(error)}",
            code_remedy(ref, folder) or "add its tokenizer.json, or name another model's tokenizer",
        ) from error
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"the tokenizer of {ref.source} is a slow one ({type(tokenizer).__name__}): it gives no offsets",
            "use a model that ships a tokenizer.json, or convert its tokenizer to one with `tokenizers`",
        )
    refuse_random(tokenizer)
    _check_offsets(ref, tokenizer)
    if tokenizer.eos_token_id is None:
        raise TokenizerError(
            f"the tokenizer of {ref.source} has no end-of-text token (eos_token)",
            f"set eos_token in its tokenizer_config.json to the token that ends a text{_end_of(folder, tokenizer)}",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def looked_at(ref: ModelRef) -> Iterator[PreTrainedTokenizerFast]:
    """A tokenizer for someone who only reads it, and leaves it to the next one who loads it: that takes a second.

    Raises:
        ModelError, TokenizerError: As `load_tokenizer`.
    """
    tokenizer = load_tokenizer(ref)
    yield tokenizer
    while len(_spare) > 1:  # the other side's may wait too
        _spare.popitem(last=False)
    _spare[_state(ref, Path(resolve(ref, weights=False)))] = tokenizer


def _state(ref: ModelRef, folder: Path) -> str:
    """What a loaded tokenizer depends on."""
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()]
    return f"{folder.resolve()} {ref.trust_remote_code} {sorted(files)}"


def load_model(ref: ModelRef, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """The model in evaluation mode, on ``device`` with weights of ``dtype``, from safetensors only.

    SDPA attention, or the implementation that the architecture falls back to where it has no SDPA. ``spread`` puts the
    layers on all GPUs, then into main memory, then on disk (:mod:`sra_core.models.spread`).

    Raises:
        ModelError: the reference cannot be resolved, holds only pickled weights or not all of them, or is no decoder
            that the method can read (an encoder, an encoder-decoder, logits that are not a linear map of the last
            state).
    """
    import torch

    from sra_core.models.spread import every_weight, read_spread
    from sra_core.models.structure import check_decoder, input_device

    folder = Path(resolve(ref))
    check_folder(folder, ref)
    read = read_spread if device == "spread" else read_model
    model = read(folder, ref, dtype=getattr(torch, dtype), use_safetensors=True).eval()
    refuse_no_numbers(every_weight(model), ref.source)
    if device != "spread":  # accelerate has put the parts of a spread one where they belong
        model = model.to(pick_device(device))
    if input_device(model).type == "cuda" and dtype == "float32":
        torch.set_float32_matmul_precision("high")  # TF32: ten bits of mantissa, many times the speed
    check_decoder(model, ref.source)
    return model


def pick_device(name: str) -> str:
    """``auto`` takes the first CUDA device if there is one, else the CPU; other names are checked and returned.

    Raises:
        ConfigError: a device that this machine does not have.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    kind, _, number = name.partition(":")
    known = name == "cpu" or (kind == "cuda" and (not number or number.isdecimal()))
    if not known or (kind == "cuda" and int(number or 0) >= count):
        raise ConfigError(
            f"there is no device {name!r} on this machine ({count} CUDA devices)", "use `auto`, `cpu` or `cuda:N`"
        )
    return name


def _require_tokenizer_files(ref: ModelRef, folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    if not names & {"tokenizer.json", "vocab.json", "vocab.txt", "tokenizer_config.json"} and not _models(folder):
        raise ModelError(
            f"{ref.source} holds no tokenizer (tokenizer.json)",
            "copy the tokenizer's files of the model that it was trained from into the folder, or give that model",
        )


def _refuse_stand_in(ref: ModelRef, folder: Path) -> None:
    """Where the code of a tokenizer's own class may not run, transformers takes a general class without a word."""
    import transformers
    from transformers.models.auto.tokenization_auto import MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS

    settings, config = (
        read_json(path) if path.is_file() else {} for path in (folder / "tokenizer_config.json", folder / "config.json")
    )
    name = settings.get("tokenizer_class") or ""
    known = any(hasattr(transformers, each) for each in (name, name.removesuffix("Fast")) if each)
    # for these types transformers knows that its general class is the right one
    known = known or config.get("model_type") in MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    own = settings.get("auto_map") or ()
    ships = isinstance(own, list) or "AutoTokenizer" in own  # the list is how it was written once
    if ships and not known and not ref.trust_remote_code:
        raise ModelError(
            f"the tokenizer of {ref.source} is a class that it ships itself ({name or 'unnamed'})",
            code_remedy(ref, folder),
        )


def _refuse_unconverted(ref: ModelRef, folder: Path, error: Exception) -> None:
    if _models(folder) and not (folder / "tokenizer.json").is_file():
        raise TokenizerError(
            f"{ref.source} has its tokenizer as {_models(folder)[0]} alone, without a tokenizer.json",
            "convert it once, with sentencepiece and protobuf installed: AutoTokenizer.from_pretrained(FOLDER)"
            ".save_pretrained(FOLDER); or copy the tokenizer.json of a model with the same tokenizer",
        ) from error


def _models(folder: Path) -> list[str]:
    """The files of a SentencePiece or tiktoken tokenizer."""
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".model", ".tiktoken"))


def _end_of(folder: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """The token that the model's configs take for the end of a text, for a remedy."""
    for name in ("generation_config.json", "config.json"):
        found = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        number = found[0] if isinstance(found, list) and found else found
        if isinstance(number, int) and 0 <= number < len(tokenizer):
            return f"; its {name} says {tokenizer.convert_ids_to_tokens(number)!r}"
    return ""


def _check_offsets(ref: ModelRef, tokenizer: PreTrainedTokenizerFast) -> None:
    offsets = tokenizer(_PROBE, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    covered = {position for start, end in offsets for position in range(start, end)}
    letters = {position for position, character in enumerate(_PROBE) if not character.isspace()}
    ordered = all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(offsets))
    if not ordered or not letters <= covered:
        raise TokenizerError(
            f"the tokenizer of {ref.source} gives offsets that do not cover a plain text in order",
            "use a model whose tokenizer.json keeps offsets; this one's normalizer or model loses them",
        )
