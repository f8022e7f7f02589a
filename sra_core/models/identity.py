"""Content digests of models and tokenizers: what a fingerprint hashes instead of their names."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sra_core.config import ModelRef
from sra_core.models.cache import cache_folder
from sra_core.models.convert import file_sha256
from sra_core.models.loading import weight_files
from sra_core.models.references import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["model_identity", "tokenizer_identity"]

_VOLATILE = ("transformers_version", "_name_or_path", "_model_name_or_path")


def model_identity(ref: ModelRef) -> dict[str, Any]:
    """Digests of the weights, the config and, where it runs, the code of a model; where it lies does not matter.

    Digests of weight files are remembered in the user's cache by path, size and time of change.

    Raises:
        ModelError: the reference cannot be resolved or holds no safetensors weights.
    """
    folder = Path(resolve(ref))
    identity: dict[str, Any] = {
        "weights": _digest({path.name: _remembered_sha256(path) for path in weight_files(folder)}),
        "config": _digest(_config(folder)),
    }
    if ref.trust_remote_code:
        identity["code"] = _digest({path.name: file_sha256(path) for path in sorted(folder.glob("*.py"))})
    return identity


def tokenizer_identity(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Digests of all that determines the ids and offsets of a text, the special tokens and the chat template."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.update(padding=None, truncation=None)  # set and unset by every call
    special = {role: str(token) for role, token in sorted(tokenizer.special_tokens_map.items())}
    return {"tokenizer": _digest(backend), "special": special, "chat_template": _digest(tokenizer.chat_template)}


def _config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if key not in _VOLATILE}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _remembered_sha256(path: Path) -> str:
    state = path.stat()
    key = hashlib.sha256(f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}".encode()).hexdigest()
    note = cache_folder() / "digests" / key
    with contextlib.suppress(OSError):
        if len(digest := note.read_text()) == 64:
            return digest
    digest = file_sha256(path)
    with contextlib.suppress(OSError):  # a cache that can't be written only costs time
        note.parent.mkdir(parents=True, exist_ok=True)
        unfinished = note.with_suffix(f".{os.getpid()}")
        unfinished.write_text(digest)
        unfinished.replace(note)
    return digest
