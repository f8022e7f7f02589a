"""Model folders that are rewritten once into the user's cache: pickled weights as safetensors, adapters merged."""

from __future__ import annotations

import hashlib
import json
import shutil
import textwrap
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sra_core.config import ModelRef
from sra_core.errors import ModelError
from sra_core.models.bars import no_progress_bars
from sra_core.models.cache import made_once, remembered, slug
from sra_core.models.convert import file_sha256
from sra_core.models.folders import ADAPTER_FILES, check_folder, load_pickled, weight_files, without_adapter
from sra_core.models.reading import read_weights

__all__ = ["PICKLED", "rewritten"]

PICKLED = "pickled.json"
"""Checksums of the pickled files that a folder's weights were read from."""
_SHOWN = 400  # characters of what peft says: it may name hundreds of tensors
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".lock")


def rewritten(folder: Path, ref: ModelRef) -> Path:
    """The folder itself, or the one in the user's cache that holds its model in plain safetensors.

    Raises:
        ModelError: The folder's weights cannot be read.
    """
    if (folder / "adapter_config.json").is_file() and (folder / "config.json").is_file():
        check_folder(folder, ref)
        made = [*weight_files(folder, ref.allow_pickle), *(folder / name for name in ADAPTER_FILES)]
        return _once("merged", folder, made, lambda target: _merge(folder, target, ref))
    if not ref.allow_pickle or not (folder / "config.json").is_file():
        return folder
    files = weight_files(folder, allow_pickle=True)
    if files[0].suffix != ".bin":
        return folder
    return _once("pickled", folder, files, lambda target: _unpickle(folder, files, target, ref))


def _once(kind: str, folder: Path, files: list[Path], make: Callable[[Path], None]) -> Path:
    # Config, tokenizer and code are copied, so that they count too.
    read = sorted([*files, *_texts(folder)])
    digests = {path.name: remembered("sha256", [path], partial(file_sha256, path)) for path in read}
    key = hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]
    return made_once(f"{kind}-{slug(folder.name)}-{key}", make)


def _texts(folder: Path) -> list[Path]:
    """Config, tokenizer, code: all but what belongs to the weights."""
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix not in _WEIGHTS]
    return [path for path in files if path.name not in ADAPTER_FILES and not path.name.endswith(".index.json")]


def _unpickle(folder: Path, files: list[Path], target: Path, ref: ModelRef) -> None:
    """Write the tensors of pickled files, one safetensors file each, with their index."""
    from safetensors.torch import save_file

    check_folder(folder, ref)
    for path in _texts(folder):
        shutil.copyfile(path, target / path.name)
    names: dict[str, str] = {}
    for number, path in enumerate(files, 1):
        state = load_pickled(path, "cpu")
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        # Tied weights share their memory, which safetensors refuses: each name gets its own.
        tensors = {key: value.contiguous().clone() for key, value in state.items()}
        save_file(tensors, target / name, metadata={"format": "pt"})
        names |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        index = {"metadata": {}, "weight_map": names}  # without metadata transformers reads no index
        (target / "model.safetensors.index.json").write_text(json.dumps(index))
    digests = {path.name: remembered("sha256", [path], partial(file_sha256, path)) for path in files}
    (target / PICKLED).write_text(json.dumps(digests))


def _merge(folder: Path, target: Path, ref: ModelRef) -> None:
    """Write the model with its adapter merged in, in float32."""
    import torch
    from peft import PeftModel

    with without_adapter(folder) as base:
        plain = rewritten(base, ref)  # what is beside the adapter may be pickled
        try:
            options = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": ref.trust_remote_code}
            model = read_weights(plain, ref.source, **options)
            with no_progress_bars(), warnings.catch_warnings():
                warnings.filterwarnings("error", "Found missing adapter keys")  # these layers would stay as they were
                PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(target)
        except ModelError:
            raise
        except Exception as error:  # peft and transformers raise many kinds; that they cannot read it is what matters
            raise ModelError(
                f"the adapter of {folder} cannot be merged into the weights beside it: "
                + textwrap.shorten(str(error), _SHOWN, placeholder=" ..."),
                "take adapter_config.json and adapter_model.safetensors away to use the model without them",
            ) from error
    for path in _texts(folder):
        shutil.copyfile(path, target / path.name)
