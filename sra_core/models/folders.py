"""What a model folder holds, told from names, configs, indexes and headers; each fault is named for what it is."""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sra_core.config import ModelRef
from sra_core.errors import ModelError, first_line
from sra_core.models.cache import remembered
from sra_core.models.reading import read_model

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

__all__ = [
    "ADAPTER_FILES",
    "check_config",
    "check_folder",
    "load_pickled",
    "pickled_files",
    "read_json",
    "refuse_no_numbers",
    "refuse_pointers",
    "weight_files",
    "weight_names",
    "without_adapter",
]

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_INDEX, _PICKLED_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.(safetensors|bin)$")
_POINTER = b"version https://git-lfs"
_SAMPLED = 2**30
"""Bytes of weights up to which every number is looked at for NaN; beyond, the first ones of each tensor."""
_ENCODERS = ("bert-generation", "cpmant", "xlm", "xlnet")
"""Beside those that fill masks: in transformers' mapping of causal models, and yet they look at later tokens."""
_READ_BY_TRANSFORMERS = ("mxfp4", "fp8")
_QUANTIZED = {"bitsandbytes": "bitsandbytes", "gptq": "GPTQ", "awq": "AWQ", "hqq": "HQQ"}
_AGAIN = "download or copy the model again"
_SAVED = "give the folder that save_pretrained wrote"
_MERGE = (
    "merge it and give the new folder: `AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload()"
    ".save_pretrained(NEW)` of the package peft, and the tokenizer's save_pretrained(NEW)"
)


def check_folder(folder: Path, ref: ModelRef) -> None:
    """Refuse a folder whose config or weights cannot be read, or whose files lack tensors of the model.

    Reads headers, whose names a model without memory is asked for, and of weights what shows NaN. What passed once is
    not looked at again while no file of the folder changes.

    Raises:
        ModelError: Names the file and what is wrong with it.
    """

    def look() -> bool:
        check_config(folder, ref)
        files = weight_files(folder, ref.allow_pickle)
        pickled = files[0].suffix == ".bin"
        if (folder / ADAPTER_FILES[0]).is_file():
            files.append(_adapter_weights(folder))
        whole = sum(path.stat().st_size for path in files) <= _SAMPLED
        for path in files:
            if path.suffix == ".bin":
                _check_pickle(path)
            else:
                _check_safetensors(path)
                _check_numbers(path, whole)
        # Packed weights have other names than the model that they make: its quantizer knows them, when it loads.
        if "quantization_config" not in read_json(folder / "config.json"):
            # By what reads the weights later too: tied heads and converted names need no rules here.
            with without_adapter(folder) as plain:
                read_model(plain, ref, device_map="meta", use_safetensors=not pickled)
        return True

    present = [path for path in folder.iterdir() if path.is_file()]
    remembered(f"whole model, {ref.allow_pickle=}, {ref.trust_remote_code=}", present, look)


def check_config(folder: Path, ref: ModelRef) -> None:
    """Refuse a folder that is no plain decoder's, from its config and the names of its files.

    Raises:
        ModelError: Names what it is instead, and what to do.
    """
    refuse_pointers(folder)
    if not (folder / "config.json").is_file():
        raise _no_config(folder)
    config = read_json(folder / "config.json")
    _refuse_quantized(folder, config)
    if config.get("is_encoder_decoder"):
        raise _encoder_decoder(folder, config)
    # A model's own code may be of a type that transformers' mappings don't know.
    if "auto_map" in config and ref.trust_remote_code:
        return
    kind = config.get("model_type")
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    if not kind or kind not in CONFIG_MAPPING:
        problem = f"the config.json of {folder} names no model_type" if not kind else f"transformers knows no {kind!r}"
        own = "read the code that the model ships and, if you trust it, set trust_remote_code"
        raise ModelError(
            f"{folder} holds no model that transformers knows: {problem}",
            own if "auto_map" in config else "use a model that this version of transformers knows, or a newer version",
        )
    heads = [name for name in config.get("architectures") or [] if name.endswith(("MaskedLM", "Classification"))]
    if CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING or heads:
        what = heads[0] if heads else kind
        raise ModelError(f"{folder} holds no causal language model ({what})", "give a decoder-only model")
    built = _built(folder, CONFIG_MAPPING[kind], config)
    if built.is_encoder_decoder:
        raise _encoder_decoder(folder, config)
    if _looks_ahead(kind, built):
        raise ModelError(
            f"{folder} holds an encoder ({kind}), whose tokens look at later ones",
            "give a decoder-only model; encoders have no place in this method",
        )


def _encoder_decoder(folder: Path, config: dict[str, Any]) -> ModelError:
    """transformers would load the decoder of a BART alone, which never learned to be alone."""
    return ModelError(
        f"{folder} holds an encoder-decoder ({config.get('model_type')})",
        "give a decoder-only model; encoders and encoder-decoders have no place in this method",
    )


def _built(folder: Path, kind: type[PreTrainedConfig], config: dict[str, Any]) -> PreTrainedConfig:
    """The config with what it leaves to its class."""
    try:
        return kind.from_dict(config)
    except Exception as error:  # each class checks its fields in its own way
        raise ModelError(
            f"transformers refuses the config.json of {folder}: {first_line(error)}", "correct it, or " + _AGAIN
        ) from error


def _looks_ahead(kind: str, config: PreTrainedConfig) -> bool:
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    if type(config).is_encoder_decoder:  # a decoder that was cut out of a BART, and says so
        return False
    fills_masks = kind in _ENCODERS or type(config) in MODEL_FOR_MASKED_LM_MAPPING
    causal = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    return fills_masks and not causal and getattr(config, "attn_type", "bi") == "bi"


def weight_files(folder: Path, allow_pickle: bool = False) -> list[Path]:
    """The weight files of a model folder, sorted by name: safetensors, or pickled ones where there are no others.

    Raises:
        ModelError: The folder lacks its config, its weights or some of them, or has pickled ones that are not allowed.
    """
    if not (folder / "config.json").is_file():
        raise _no_config(folder)
    names = {path.name for path in folder.iterdir()}
    return [folder / name for name in weight_names(str(folder), names, folder, allow_pickle)]


def weight_names(what: str, names: Collection[str], folder: Path, allow_pickle: bool) -> list[str]:
    """The names of the weight files among the names of a folder or a repository; index files are read in ``folder``.

    Raises:
        ModelError: As `weight_files`.
    """
    # in transformers' order: a single file before an index, which may be left from another save into the folder
    single = [name for name in ("model.safetensors",) if name in names]
    shards = sorted(name for name in names if name.startswith("model") and name.endswith(".safetensors"))
    found = single or _indexed(folder / _INDEX) or shards
    if not found:
        found = pickled_files(names, folder)
        if found and not allow_pickle:
            raise ModelError(
                f"{what} holds only pickled weights ({found[0]}), which can run code when they are loaded",
                "set allow_pickle: true beside its source to have their tensors read, and nothing else, with torch's "
                "weights_only, or use a revision with safetensors",
            )
    missing = [name for name in found if name not in names]
    for name in found:
        shard = _SHARD.match(name)
        if shard and not ((folder / _INDEX).is_file() or (folder / _PICKLED_INDEX).is_file()):
            raise ModelError(f"{what} holds {name} and no index of its {int(shard[3])} files", _AGAIN)
    if missing:
        raise ModelError(f"{what} lacks weight files: {', '.join(missing)}", "download or copy the model again")
    if not found:
        raise _no_weights(what, names)
    return found


def pickled_files(names: Collection[str], folder: Path) -> list[str]:
    """The names of a model's pickled weights, in order."""
    single = [name for name in ("pytorch_model.bin",) if name in names]
    shards = sorted(name for name in names if name.startswith("pytorch_model-") and name.endswith(".bin"))
    return single or _indexed(folder / _PICKLED_INDEX) or shards


def _indexed(index: Path) -> list[str]:
    """The files that an index names; none where there is no index."""
    if not index.is_file():
        return []
    found = read_json(index)
    weights = found.get("weight_map")
    if not isinstance(weights, dict):
        raise ModelError(f"{index} names no weights", _AGAIN)
    if not isinstance(found.get("metadata"), dict):
        raise ModelError(f"{index} has no metadata, without which transformers does not read it", 'add "metadata": {}')
    return sorted(set(weights.values()))


def _adapter_weights(folder: Path) -> Path:
    path = folder / ADAPTER_FILES[1]
    if not path.is_file():
        raise ModelError(
            f"{folder} holds adapter_config.json and no {path.name}",
            "add the adapter's weights, or take adapter_config.json away to use the model without it",
        )
    return path


def _no_config(folder: Path) -> ModelError:
    """What a folder without config.json is instead."""
    names = {path.name for path in folder.iterdir()}
    gguf = sorted(name for name in names if name.endswith(".gguf"))
    if "adapter_config.json" in names:
        base = (
            read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "a model that it does not name"
        )
        return ModelError(f"{folder} holds an adapter of {base} (PEFT), not a model", _MERGE)
    if gguf:
        return ModelError(
            f"{folder} holds GGUF files and no config.json", f"give the file itself: source: {folder / gguf[0]}"
        )
    if "model_index.json" in names:
        return ModelError(f"{folder} holds a pipeline of the package diffusers", "give a decoder-only language model")
    if "params.json" in names:
        return ModelError(
            f"{folder} holds weights in their maker's own format (params.json)",
            "give the model in transformers' format, which the same maker publishes beside it",
        )
    inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if inner:
        return ModelError(
            f"{folder} holds no config.json, and its subfolder {inner[-1]} does", f"give {folder / inner[-1]}"
        )
    return ModelError(f"{folder} holds no config.json" if names else f"{folder} is empty", _SAVED)


def _no_weights(what: str, names: Collection[str]) -> ModelError:
    other = sorted(name for name in names if name.endswith((".safetensors", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")))
    other = [name for name in other if name not in ADAPTER_FILES]
    if any(name.endswith(".gguf") for name in names):
        name = min(name for name in names if name.endswith(".gguf"))
        return ModelError(
            f"{what} holds its weights as GGUF alone ({name})",
            "download that file, if it is on the hub, and give its path",
        )
    if other:
        return ModelError(
            f"{what} holds no weights that transformers reads; there are {', '.join(other[:3])}",
            "save it with save_pretrained, which writes model.safetensors",
        )
    return ModelError(f"{what} holds no weights", "give a folder with model.safetensors, or download the model again")


def refuse_pointers(folder: Path) -> None:
    """Refuse files that Git LFS would still have to fetch.

    Raises:
        ModelError: Names the first one.
    """
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size < 1024:  # which pointers are by their specification
            with path.open("rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    raise ModelError(
                        f"{path} is a Git LFS pointer, not the file itself",
                        f"run `git lfs pull` in {folder}, or download the model with `hf download`",
                    )


def _refuse_quantized(folder: Path, config: dict[str, Any]) -> None:
    settings = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    for name in ("quantize_config.json", "quant_config.json"):  # of GPTQ and AWQ before configs named them
        if settings is None and (folder / name).is_file():
            settings = {"quant_method": "awq" if name.startswith("quant_") else "gptq", **read_json(folder / name)}
    if not settings:
        return
    method = str(settings.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in settings else "unknown"))
    if method in _READ_BY_TRANSFORMERS:
        return
    name = _QUANTIZED.get(method.split("_")[0].lower(), method)
    bits = settings.get("bits") or settings.get("w_bit") or (4 if settings.get("load_in_4bit") else None)
    raise ModelError(
        f"{folder} holds quantized weights ({name}{f', {bits} bits' if bits else ''})",
        "give the model that it was made from, in float32, float16 or bfloat16; a GGUF file is converted",
    )


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise ModelError(f"{path} is cut short or no safetensors file ({size:,} bytes): {error}", _AGAIN) from error
    index = path.with_name(_INDEX)
    wanted = read_json(index)["weight_map"] if index.is_file() else {}
    lacking = sorted(name for name, file_name in wanted.items() if file_name == path.name and name not in names)
    if lacking:
        raise ModelError(f"{path} lacks {lacking[0]}, which {index.name} says it holds", _AGAIN)


def _check_pickle(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(2)
    if not (zipfile.is_zipfile(path) or start[:1] == b"\x80"):  # torch's form since 1.6, and the one before
        raise ModelError(f"{path} is cut short or no file of torch ({path.stat().st_size:,} bytes)", _AGAIN)
    load_pickled(path, "meta")


def load_pickled(path: Path, device: str) -> dict[str, Tensor]:
    """The tensors of a pickled file on a device, by torch's ``weights_only``; on ``meta`` their names and shapes alone.

    Raises:
        ModelError: It holds more than tensors, or is cut short.
    """
    import torch

    try:
        # torch maps files of its newer form (zip) only.
        state = torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # of unpickling anything may come
        raise ModelError(
            f"{path} holds more than tensors, or is cut short: torch's weights_only refuses it",
            "use a revision with safetensors, or another model",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no plain state dict of tensors", _SAVED)
    return state


@contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """The folder without the adapter beside its weights, which transformers would apply."""
    if not (folder / ADAPTER_FILES[0]).is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="base-") as work:
        plain = Path(work) / folder.name
        plain.mkdir()
        for path in folder.iterdir():
            if path.is_file() and path.name not in ADAPTER_FILES:
                (plain / path.name).symlink_to(path.resolve())
        yield plain


def _check_numbers(path: Path, whole: bool) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118  it is no dict
            part = file.get_slice(name)
            shape = part.get_shape()
            if not part.get_dtype().startswith(("F", "BF")) or 0 in shape:
                continue
            values = file.get_tensor(name) if whole or len(shape) < 2 else part[: max(1, 65536 // shape[-1])]
            refuse_no_numbers([(name, values)], str(path))


def refuse_no_numbers(weights: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Refuse weights that are no numbers.

    Raises:
        ModelError: Names the first tensor with NaN or infinity in it.
    """
    import torch

    for name, values in weights:
        # A finite sum is the quick answer; an infinite one may be an overflow of float16.
        if not torch.isfinite(values.float().sum()) and not torch.isfinite(values.float()).all():
            raise ModelError(
                f"{where} holds NaN or infinite weights in {name}",
                "use another checkpoint: the training that wrote this one had diverged, or the file is damaged",
            )


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is cut short or no JSON: {error}", _AGAIN) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no JSON object", _AGAIN)
    return found
