"""From a model reference in the config to a local folder: hub id, folder, GGUF file, package, random model."""

from __future__ import annotations

from pathlib import Path

from sra_core.config import ModelRef
from sra_core.errors import ModelError
from sra_core.models import convert, hub, toys
from sra_core.models.packages import package_of
from sra_core.models.rewritten import rewritten

__all__ = ["resolve"]


def resolve(ref: ModelRef, weights: bool = True) -> str:
    """The local folder that ``from_pretrained`` takes.

    A folder is taken as it is. A hub id is downloaded into the hub's own cache at its revision. A GGUF file, a packaged
    one and a random model are turned once into a safetensors folder in the user's cache; so are pickled weights,
    where they are allowed, and a model with an adapter beside it, which is merged.

    Args:
        ref: The reference.
        weights: Whether the folder must hold weights. Without them a hub id costs a few files, a GGUF file its header.

    Raises:
        ModelError: the reference names nothing that can be had; the message says what to do.
    """
    source = ref.source
    if source.startswith("package:"):
        return str(convert.package_folder(package_of(ref), ref.sha256, ref.terms))
    if source.startswith("random:"):
        return str(toys.random_model(source))
    path = Path(source).expanduser()
    if source.endswith(".gguf"):
        return str(convert.gguf_folder(path, ref.sha256) if weights else convert.gguf_texts(path))
    if path.is_dir():
        return str(rewritten(path.absolute(), ref) if weights else path.absolute())
    if path.is_file():
        raise ModelError(
            f"{source} is a file, but not a GGUF file", "give the model's folder, or a file that ends in .gguf"
        )
    if _looks_like_a_path(source):
        raise ModelError(f"there is no folder {path}", "correct the path, or give a hub id such as `Qwen/Qwen2.5-0.5B`")
    folder = hub.snapshot(ref, weights)
    return str(rewritten(folder, ref) if weights else folder)


def _looks_like_a_path(source: str) -> bool:
    # A hub id has one slash at most.
    return source.startswith(("/", ".", "~")) or source.count("/") > 1 or source.endswith("/") or "\\" in source
