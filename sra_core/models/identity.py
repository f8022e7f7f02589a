"""Content digests of models and tokenizers: what a fingerprint hashes instead of their names."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sra_core.config import ModelRef
from sra_core.models.cache import remembered
from sra_core.models.convert import file_sha256
from sra_core.models.folders import read_json, weight_files
from sra_core.models.loading import looked_at
from sra_core.models.references import resolve
from sra_core.models.rewritten import PICKLED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["model_identity", "tokenizer_identity", "tokenizer_identity_of"]

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".lock")
_VOLATILE = ("transformers_version", "_name_or_path", "_model_name_or_path")  # where it lay and what wrote it


def model_identity(ref: ModelRef) -> dict[str, Any]:
    """Digests of the weights, the config and, where it runs, the code of a model; where it lies does not matter.

    Weights that were read from pickled files name these under ``pickled``.

    Digests of weight files are remembered in the user's cache by path, size and time of change.

    Raises:
        ModelError: the reference cannot be resolved or holds no safetensors weights.
    """
    folder = Path(resolve(ref))
    identity: dict[str, Any] = {
        "weights": _digest(
            {path.name: remembered("sha256", [path], partial(file_sha256, path)) for path in weight_files(folder)}
        ),
        "config": _digest(_config(folder)),
    }
    if (folder / PICKLED).is_file():
        identity["pickled"] = read_json(folder / PICKLED)
    if ref.trust_remote_code:
        identity["code"] = _code(folder)
    return identity


def tokenizer_identity(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Digests of all that determines the ids and offsets of a text, the special tokens and the chat template."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.update(padding=None, truncation=None)  # set and unset by every call
    special = {role: str(token) for role, token in sorted(tokenizer.special_tokens_map.items())}
    return {"tokenizer": _digest(backend), "special": special, "chat_template": _digest(tokenizer.chat_template)}


def tokenizer_identity_of(ref: ModelRef) -> dict[str, Any]:
    """`tokenizer_identity` of the tokenizer that a reference names, as `load_tokenizer` checks and loads it; where the
    tokenizer is code that may run, with a digest of that under ``code``.

    Raises:
        ModelError, TokenizerError: As `load_tokenizer`.
    """
    folder = Path(resolve(ref, weights=False))
    files = [path for path in folder.glob("*") if path.is_file() and path.suffix not in _WEIGHTS]

    def read() -> dict[str, Any]:
        with looked_at(ref) as tokenizer:
            found = tokenizer_identity(tokenizer)
        settings = folder / "tokenizer_config.json"
        if ref.trust_remote_code and settings.is_file() and "auto_map" in read_json(settings):
            found["code"] = _code(folder)
        return found

    return remembered(f"tokenizer of {ref.source}, {ref.trust_remote_code=}", files, read)


def _code(folder: Path) -> str:
    return _digest({path.name: file_sha256(path) for path in sorted(folder.glob("*.py"))})


def _config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if key not in _VOLATILE}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
