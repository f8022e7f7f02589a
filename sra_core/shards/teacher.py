"""Teacher shards: span centres and masses at every mapped layer. K spans of one text, d teacher width.

Centres are stored row-major. ``bfloat16`` keeps the upper half of each float32, rounded to nearest even; ``int8`` keeps
one float16 scale a span, the largest magnitude of the row over 127.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sra_core.shards.manifest import Manifest
from sra_core.shards.prepared import list_offsets
from sra_core.shards.reader import ShardSet

__all__ = ["TeacherRow", "TeacherSet", "decode_centers", "encode_centers", "teacher_batch", "teacher_schema"]

_STORED = {"bfloat16": pa.uint16(), "float32": pa.float32(), "int8": pa.int8()}


def teacher_schema(layers: Sequence[int], dtype: str, width: int) -> pa.Schema:
    """Columns ``id`` and, a layer l, ``mass_l``, ``centers_l`` and, under int8, ``scale_l``."""
    fields = [("id", pa.string())]
    for layer in layers:
        fields.append((f"mass_{layer}", pa.list_(pa.float32())))
        fields.append((f"centers_{layer}", pa.large_list(_STORED[dtype])))
        if dtype == "int8":
            fields.append((f"scale_{layer}", pa.list_(pa.float16())))
    return pa.schema(fields, metadata={"dtype": dtype, "width": str(width)})


@dataclass(slots=True)
class TeacherRow:
    """What the cache keeps of one example.

    Attributes:
        centers: By layer, (K, d) float32.
        mass: By layer, (K,) float32.
    """

    id: str
    centers: dict[int, NDArray[np.float32]]
    mass: dict[int, NDArray[np.float32]]


def encode_centers(centers: NDArray[np.float32], dtype: str) -> tuple[NDArray[Any], NDArray[np.float16] | None]:
    """(K, d) float32 to what is stored, flat, and the scales (K,) under int8."""
    if dtype == "float32":
        return np.ascontiguousarray(centers, np.float32).ravel(), None
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(centers, np.float32).view(np.uint32)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        return (rounded >> 16).astype(np.uint16).ravel(), None
    smallest = np.finfo(np.float16).smallest_normal
    scale = np.maximum(np.abs(centers).max(axis=1, initial=0.0) / 127, smallest).astype(np.float16)
    whole = np.rint(centers / scale.astype(np.float32)[:, None]).clip(-127, 127)
    return whole.astype(np.int8).ravel(), scale


def decode_centers(stored: NDArray[Any], width: int, scale: NDArray[np.float16] | None = None) -> NDArray[np.float32]:
    """What is stored back to (K, d) float32."""
    rows = stored.reshape(-1, width)
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    if scale is not None:
        return rows.astype(np.float32) * scale.astype(np.float32)[:, None]
    return rows


def teacher_batch(rows: Sequence[TeacherRow], schema: pa.Schema) -> pa.RecordBatch:
    """Arrow form of teacher rows under a `teacher_schema`."""
    dtype = schema.metadata[b"dtype"].decode()
    arrays: list[pa.Array] = [pa.array([row.id for row in rows], pa.string())]
    layers = [int(name.removeprefix("mass_")) for name in schema.names if name.startswith("mass_")]
    for layer in layers:
        arrays += _layer_arrays(rows, layer, dtype)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _layer_arrays(rows: Sequence[TeacherRow], layer: int, dtype: str) -> list[pa.Array]:
    stored, scales = zip(*(encode_centers(row.centers[layer], dtype) for row in rows), strict=True)
    spans = pa.array(list_offsets([row.mass[layer] for row in rows]), pa.int32())
    mass = np.concatenate([row.mass[layer] for row in rows]).astype(np.float32)
    values = pa.array(np.concatenate(stored), _STORED[dtype])
    arrays = [
        pa.ListArray.from_arrays(spans, pa.array(mass)),
        pa.LargeListArray.from_arrays(pa.array(list_offsets(stored)), values),
    ]
    if dtype == "int8":
        arrays.append(pa.ListArray.from_arrays(spans, pa.array(np.concatenate(scales))))
    return arrays


class TeacherSet(Sequence[TeacherRow]):
    """Memory-mapped random access to the teacher's centres and masses of one split."""

    def __init__(self, manifest: Manifest, split: str) -> None:
        self._shards = ShardSet(Path(manifest.folder), manifest.shards, split)
        self.layers: tuple[int, ...] = ()
        self.width = 0
        if len(self._shards):
            first = self._shards.shard(0)
            self.width = int(first.metadata[b"width"])
            self.layers = tuple(int(name[5:]) for name in first.columns if name.startswith("mass_"))

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        columns, row = self._shards.locate(index)
        return TeacherRow(
            id=columns["id"][row],
            centers={layer: self._centers(columns, row, layer) for layer in self.layers},
            mass={layer: columns[f"mass_{layer}"][row] for layer in self.layers},
        )

    def _centers(self, columns: Mapping[str, Any], row: int, layer: int) -> NDArray[np.float32]:
        scale = columns[f"scale_{layer}"][row] if f"scale_{layer}" in columns else None
        return decode_centers(columns[f"centers_{layer}"][row], self.width, scale)
