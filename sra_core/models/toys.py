"""Tiny untrained models made on the spot, for smoke runs and tests: `random:llama?layers=2&width=32`."""

from __future__ import annotations

import inspect
import json
import platform
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from sra_core.errors import ModelError
from sra_core.models.bars import no_progress_bars
from sra_core.models.cache import made_once, slug
from sra_core.models.tokenizers import train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["random_model"]

_VERSION = 1  # of what is made from the same options: raise it when the bytes change
_DEFAULTS = {"layers": 2, "width": 32, "heads": 2, "kv_heads": 0, "vocabulary": 300, "positions": 512, "seed": 0}
_MODULES = ("textwrap", "string", "json", "statistics", "fractions", "collections", "functools", "random", "shutil")


def random_model(source: str) -> Path:
    """The folder of the model that ``random:ARCHITECTURE?layers=2&width=32&heads=2&vocabulary=300&seed=0`` describes.

    Further options: ``kv_heads`` (grouped heads; 0 means as many as ``heads``) and ``positions``. The tokenizer is a
    byte-level BPE trained on docstrings of the standard library. The same options give the same bytes.

    Raises:
        ModelError: an unknown architecture or option, or values that make no model.
    """
    architecture, _, query = source.removeprefix("random:").partition("?")
    options = _options(source, query)
    name = "-".join(f"{key}{value}" for key, value in options.items())
    # Docstrings, which the tokenizer is trained on, differ from one Python to the next.
    python = ".".join(platform.python_version_tuple()[:2])
    key = slug(f"random-{_VERSION}-py{python}-{architecture}-{name}")
    return made_once(key, lambda folder: _make(source, architecture, options, folder))


def _options(source: str, query: str) -> dict[str, int]:
    options = dict(_DEFAULTS)
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in options or not value.isdecimal():
            raise ModelError(
                f"{source}: {key}={value} is not an option of a random model",
                f"use whole numbers for {', '.join(options)}, as in random:llama?layers=2&width=32",
            )
        options[key] = int(value)
    if not options["heads"] or options["width"] % options["heads"]:
        raise ModelError(f"{source}: width is not a multiple of heads", "choose a width that heads divides")
    return options


def _make(source: str, architecture: str, options: dict[str, int], folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = train_tokenizer(_texts(), options["vocabulary"])
    ids = {f"{role}_token_id": tokenizer.eos_token_id for role in ("bos", "eos", "pad")}
    kind = _config_class(source, architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options["seed"])
        try:
            config = kind(**_sizes(kind, options, len(tokenizer)), **ids)
            with no_progress_bars():
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            model(input_ids=torch.tensor([[1, 2]]))
        except Exception as error:  # each architecture checks its sizes in its own way, some only when they run
            raise ModelError(
                f"{source} makes no model: {error}", "choose other sizes or another architecture"
            ) from error
    model.generation_config = GenerationConfig(**ids)
    with no_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "source.json").write_text(json.dumps({"source": source}))


def _config_class(source: str, architecture: str) -> type[PreTrainedConfig]:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    if architecture not in CONFIG_MAPPING or CONFIG_MAPPING[architecture] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{source}: transformers knows no decoder architecture {architecture!r}",
            "use a model type such as llama, qwen2, gpt2, opt or gpt_neox",
        )
    return CONFIG_MAPPING[architecture]


def _sizes(kind: type[PreTrainedConfig], options: dict[str, int], vocabulary: int) -> dict[str, int]:
    """The options under the names that the architecture's config gives them; names that it lacks are left out."""
    width, heads = options["width"], options["heads"]
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "word_embed_proj_dim": width,
        "num_hidden_layers": options["layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": options["kv_heads"] or heads,
        "head_dim": width // heads,
        "rotary_dim": width // heads,
        "intermediate_size": 2 * width,
        "ffn_dim": 2 * width,
        "max_position_embeddings": options["positions"],
    }
    named = {kind.attribute_map.get(name, name): value for name, value in sizes.items()}
    accepted = inspect.signature(kind.__init__).parameters
    return {name: value for name, value in named.items() if name in accepted}


def _texts() -> Iterator[str]:
    for name in _MODULES:
        module = import_module(name)
        yield inspect.getdoc(module) or name
        for member in sorted(getattr(module, "__all__", [])):
            yield inspect.getdoc(getattr(module, member)) or member
