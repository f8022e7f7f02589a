"""The header of a GGUF file: what it is, whether it is whole, and whether it can be read; weights are not touched."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sra_core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["header_digest", "licence_in", "rope_in", "unplaced"]

_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
# v., a. and mm. are towers for pictures and sound, _exps experts: see `unplaced`.
_PLACELESS = re.compile(r"^(rope_|v\.|a\.|mm\.)|\.attn_rot_embd\.|_exps\.")
_ELSEWHERE = "use the same model's safetensors folder or hub id"
_STRING, _ARRAY = 8, 9
_BASE_UNREAD = ("starcoder2", "stablelm")
"""Architectures whose base of rotary positions transformers does not read."""
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""How every Llama 3 from 3.1 on scales its rotary positions, but for the factor."""
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Formats of numbers by their type in the file."""


def header_digest(path: Path) -> str:
    """SHA-256 of the header, which fixes config, tokenizer and the table of weights.

    Raises:
        ModelError: It is no GGUF file, a part of a split one, cut short, or of an architecture or a quantization that
            transformers does not read.
    """
    parts = _SPLIT.search(path.name)
    if parts:
        raise _split(path, int(parts[1]))
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            file.seek(0)
            start = file.read(40)
            if start.startswith(b"version https://git-lfs"):
                raise ModelError(
                    f"{path} is a Git LFS pointer, not the file itself",
                    "run `git lfs pull`, or download the file again",
                )
            raise ModelError(
                f"{path} is not a GGUF file: it starts with {start[:16]!r}", "give a GGUF file, or a folder"
            )
        try:
            fields, tensors = _header(file)
        # A torn length asks for any amount of memory.
        except (struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError) as error:
            raise _torn(path, size, "its header is not whole") from error
        end = file.tell()
        file.seek(0)
        digest = hashlib.sha256(file.read(end)).hexdigest()
    if int(fields.get("split.count", 1)) > 1:
        raise _split(path, int(fields["split.count"]))
    _require_readable(path, str(fields.get("general.architecture", "")), tensors)
    sizes = (offset + _bytes(kind, elements) for _, offset, kind, elements in tensors)
    needed = _aligned(end, fields) + max(sizes, default=0)
    if size < needed:
        raise _torn(path, size, f"its weights need {needed:,}")
    return digest


def licence_in(path: Path) -> str:
    """The licence that a GGUF file names in its header; empty where it names none.

    Raises:
        ModelError: As `header_digest`.
    """
    header_digest(path)
    with path.open("rb") as file:
        file.seek(4)
        fields, _ = _header(file)
    return str(fields.get("general.license", ""))


def rope_in(path: Path) -> dict[str, Any]:
    """What a GGUF file says of its rotary positions and transformers leaves out, in the words of its configs.

    Raises:
        ModelError: As `header_digest`; or they are scaled in a way that configs can't be told.
    """
    header_digest(path)  # for its errors
    with path.open("rb") as file:
        file.seek(4)  # past the magic number
        fields, tensors = _header(file)
        begin, kind = _aligned(file.tell(), fields), str(fields["general.architecture"])
        tables = {name: (offset, elements) for name, offset, _, elements in tensors if name.startswith("rope_")}
        freqs = np.empty(0, np.float32)
        if kind in ("llama", "deci") and "rope_freqs.weight" in tables:
            offset, elements = tables["rope_freqs.weight"]
            file.seek(begin + offset)
            freqs = np.frombuffer(file.read(4 * elements), np.float32)
    said = {name.removeprefix(f"{kind}.rope."): value for name, value in fields.items()}
    rope = {"rope_theta": said["freq_base"]} if kind in _BASE_UNREAD and "freq_base" in said else {}
    scaling, factor = said.get("scaling.type", "linear"), said.get("scaling.factor", said.get("scale_linear", 1.0))
    if kind == "gpt-oss" or scaling == "none":  # transformers reads what gpt-oss says of it
        scaling, factor = "linear", 1.0
    if scaling != "linear" or any(name.startswith("rope_factors_") for name in tables):
        raise _scaled(path)
    if factor != 1.0:
        rope |= {"rope_type": "linear", "factor": factor}
    if (freqs != 1.0).any():
        rope |= {"rope_type": "llama3", "factor": float(freqs.max()), **_LLAMA3}
        known = _llama3(rope["factor"], len(freqs), said.get("freq_base", 10000.0))
        if factor != 1.0 or not np.allclose(freqs, known, rtol=1e-3):
            raise _scaled(path)
    return rope


def unplaced(path: Path, model: PreTrainedModel) -> list[str]:
    """The weights of a GGUF file that have no place in the model, which transformers leaves out without a word.

    Tables of rotary positions are `rope_in`'s; experts transformers puts together, and tells where one is missing; the
    towers for pictures and sound that some files hold are no part of the language model.

    Raises:
        ModelError: As `header_digest`.
    """
    from transformers import modeling_gguf_pytorch_utils as reading

    header_digest(path)  # for its errors
    with path.open("rb") as file:
        file.seek(4)
        fields, tensors = _header(file)
    kind = reading.TENSOR_PROCESSORS.get(fields["general.architecture"], reading.TensorProcessor)
    placed = reading.get_gguf_hf_weights_map(model, kind(config=model.config.to_dict()))
    return [name for name, *_ in tensors if name not in placed and not _PLACELESS.search(name)]


def _llama3(factor: float, count: int, base: float) -> NDArray[np.float64]:
    """What each frequency is divided by."""
    # Context over wave length; between the two bounds transformers blends evenly, as interp does.
    waves = _LLAMA3["original_max_position_embeddings"] / (2 * np.pi * base ** (np.arange(count) / count))
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    divisors: NDArray[np.float64] = 1 / np.interp(waves, [low, high], [1 / factor, 1.0])
    return divisors


def _scaled(path: Path) -> ModelError:
    return ModelError(
        f"{path.name} scales its rotary positions in a way that transformers does not read from GGUF files", _ELSEWHERE
    )


def _aligned(end: int, fields: dict[str, Any]) -> int:
    """Where the weights begin, after a header that ends there."""
    alignment = int(fields.get("general.alignment", 32))  # what GGUF has where a file says nothing
    return -(-end // alignment) * alignment


def _header(file: BinaryIO) -> tuple[dict[str, Any], list[tuple[str, int, int, int]]]:
    """Fields that are no lists, and name, offset, type and number of elements of each tensor."""
    version, tensor_count, field_count = _number(file, "<I"), _number(file, "<Q"), _number(file, "<Q")
    if not 2 <= version <= 3:
        raise ModelError(
            f"{file.name} is of GGUF version {version}, and versions 2 and 3 are read",
            "convert the model with today's llama.cpp, for a little-endian machine",
        )
    fields = {}
    for _ in range(field_count):
        name = _string(file)
        fields[name] = _value(file, _number(file, "<I"))
    tensors = []
    for _ in range(tensor_count):
        name = _string(file)
        elements = 1
        for _ in range(_number(file, "<I")):
            elements *= _number(file, "<Q")
        kind, offset = _number(file, "<I"), _number(file, "<Q")
        tensors.append((name, offset, kind, elements))
    return fields, tensors


def _value(file: BinaryIO, kind: int) -> Any:
    """A value; of a list only that it is there."""
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _number(file, _NUMBERS[kind])
    inner, count = _number(file, "<I"), _number(file, "<Q")
    if inner in _NUMBERS:
        file.seek(struct.calcsize(_NUMBERS[inner]) * count, 1)
        return None
    for _ in range(count):
        if inner == _STRING:  # by far the most: entries and merges of the tokenizer
            file.seek(_number(file, "<Q"), 1)
        else:
            _value(file, inner)
    return None


def _number(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "<Q")).decode()


def _bytes(kind: int, elements: int) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return elements // block * size


def _require_readable(path: Path, architecture: str, tensors: list[tuple[str, int, int, int]]) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import _type_traits
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    known = {name.replace("_", "").replace("-", "") for name in GGUF_SUPPORTED_ARCHITECTURES}
    if architecture.replace("_", "").replace("-", "") not in known:
        raise ModelError(
            f"transformers reads no GGUF file of the architecture {architecture!r} ({path.name})", _ELSEWHERE
        )
    plain = {GGMLQuantizationType.F32, GGMLQuantizationType.F16}
    kinds = set(GGMLQuantizationType)
    for kind in sorted({kind for _, _, kind, _ in tensors}):
        if kind not in kinds or GGMLQuantizationType(kind) not in plain | set(_type_traits):
            name = GGMLQuantizationType(kind).name if kind in kinds else str(kind)
            raise ModelError(f"{path.name} holds weights of the type {name}, which gguf cannot read", _ELSEWHERE)


def _split(path: Path, count: int) -> ModelError:
    return ModelError(
        f"{path} is one of the {count} files of a split GGUF model, and transformers reads single files",
        f"join them with llama.cpp, `llama-gguf-split --merge FIRST-00001-of-{count:05}.gguf WHOLE.gguf`, or "
        + _ELSEWHERE,
    )


def _torn(path: Path, size: int, why: str) -> ModelError:
    return ModelError(f"{path} is cut short: it has {size:,} bytes, and {why}", "download or copy it again")
