"""The header of a GGUF file: what it is, whether it is whole, and whether it can be read; weights are not touched."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

from sra_core.errors import ModelError

__all__ = ["header_digest", "licence_in"]

_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_ELSEWHERE = "use the same model's safetensors folder or hub id"
_STRING, _ARRAY = 8, 9
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
        except (struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError) as error:
            raise _torn(path, size, "its header is not whole") from error
        end = file.tell()
        file.seek(0)
        digest = hashlib.sha256(file.read(end)).hexdigest()
    if int(fields.get("split.count", 1)) > 1:
        raise _split(path, int(fields["split.count"]))
    alignment = int(fields.get("general.alignment", 32))
    _require_readable(path, str(fields.get("general.architecture", "")), tensors)
    needed = -(-end // alignment) * alignment + max((offset + _bytes(*table) for offset, *table in tensors), default=0)
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


def _header(file: BinaryIO) -> tuple[dict[str, Any], list[tuple[int, int, int]]]:
    """Fields that are no lists, and offset, type and number of elements of each tensor."""
    version, tensor_count, field_count = _number(file, "<I"), _number(file, "<Q"), _number(file, "<Q")
    if not 2 <= version <= 3:
        raise KeyError(version)
    fields = {}
    for _ in range(field_count):
        name = _string(file)
        fields[name] = _value(file, _number(file, "<I"))
    tensors = []
    for _ in range(tensor_count):
        _string(file)
        elements = 1
        for _ in range(_number(file, "<I")):
            elements *= _number(file, "<Q")
        kind, offset = _number(file, "<I"), _number(file, "<Q")
        tensors.append((offset, kind, elements))
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


def _require_readable(path: Path, architecture: str, tensors: list[tuple[int, int, int]]) -> None:
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
    for kind in sorted({kind for _, kind, _ in tensors}):
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
