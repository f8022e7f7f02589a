"""Tokenizers and models from a reference, checked before anything is built on them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from sra_core.alignment.tokens import refuse_random
from sra_core.config import ModelRef
from sra_core.errors import ConfigError, ModelError, TokenizerError
from sra_core.models.reading import read_weights
from sra_core.models.references import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["load_model", "load_tokenizer", "pick_device", "weight_files"]

_PROBE = "Spans of a text, und noch mehr: 42.\n"


def load_tokenizer(ref: ModelRef) -> PreTrainedTokenizerFast:
    """The model's fast tokenizer, with trustworthy offsets and an end-of-text token (also its padding if it has none).

    Raises:
        ModelError: the reference cannot be resolved or holds no tokenizer.
        TokenizerError: a slow tokenizer, one without offsets, one that draws its tokens at random, or one without an
            end-of-text token.
    """
    from transformers import AutoTokenizer

    folder = resolve(ref, weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=ref.trust_remote_code)
    except Exception as error:  # the loader raises whatever its backends raise; the folder is what the user can mend
        raise ModelError(
            f"{ref.source} holds no tokenizer that transformers can load: {_first_line(error)}",
            _code_remedy(ref, Path(folder)) or "add its tokenizer.json, or name another model's tokenizer",
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
            f"the tokenizer of {ref.source} has no end-of-text token",
            "set eos_token in its tokenizer_config.json to the token that ends a text",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(ref: ModelRef, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """The model in evaluation mode, on ``device`` with weights of ``dtype``, from safetensors only.

    SDPA attention, or the implementation that the architecture falls back to where it has no SDPA.

    Raises:
        ModelError: the reference cannot be resolved, holds only pickled weights or not all of them, or is no decoder
            that the method can read (an encoder, an encoder-decoder, logits that are not a linear map of the last
            state).
    """
    import torch

    from sra_core.models.structure import check_decoder

    folder = Path(resolve(ref))
    weight_files(folder)
    options = {"dtype": getattr(torch, dtype), "use_safetensors": True, "trust_remote_code": ref.trust_remote_code}
    try:
        model = read_weights(folder, ref.source, **options)
    except ModelError:
        raise
    except Exception as error:  # any kind: wrong class, torn file, missing code; the message carries the cause
        raise ModelError(
            f"{ref.source} is no causal language model that transformers can load: {_first_line(error)}",
            _code_remedy(ref, folder) or "give a decoder-only model with its config.json and safetensors weights",
        ) from error
    device = pick_device(device)
    if device.startswith("cuda") and dtype == "float32":
        torch.set_float32_matmul_precision("high")  # TF32: ten bits of mantissa, many times the speed
    model = model.eval().to(device)
    check_decoder(model, ref.source)
    return model


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, sorted by name.

    Raises:
        ModelError: the folder holds no config, no weights, or only pickled ones.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json", "give the folder that save_pretrained wrote")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        files = sorted(folder.glob("model*.safetensors"))
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ModelError(f"{folder} lacks weight files: {', '.join(missing)}", "download or copy the model again")
    if files:
        return files
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{folder} holds only pickled weights ({pickled[0]}), which can run code when they are loaded",
            "use a revision with safetensors, or convert them yourself: load and save_pretrained in a sandbox",
        )
    raise ModelError(f"{folder} holds no weights", "give a folder with model.safetensors, or download the model again")


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


def _code_remedy(ref: ModelRef, folder: Path) -> str:
    if ref.trust_remote_code or not (folder / "config.json").is_file():
        return ""
    own_code = "auto_map" in (folder / "config.json").read_text(encoding="utf-8")
    return "read the code that the model ships and, if you trust it, set trust_remote_code" if own_code else ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
