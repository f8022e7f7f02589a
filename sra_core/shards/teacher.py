"""Teacher shards: span centres and masses at every mapped layer, and token states. K spans, n tokens, d teacher width.

Vectors are stored row-major. ``bfloat16`` keeps the upper half of each float32, rounded to nearest even; ``int8`` keeps
one float16 scale a vector, the largest magnitude of the row over 127. ``fp8`` keeps e4m3 floats and such a scale, over
448: each value is then within 1/16 of its own size, where int8's error follows the largest value of the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sra_core.shards.manifest import Manifest
from sra_core.shards.prepared import list_offsets
from sra_core.shards.reader import BATCH_ROWS, ShardSet

__all__ = [
    "TeacherBatch",
    "TeacherRow",
    "TeacherSet",
    "decode_vectors",
    "encode_vectors",
    "teacher_batch",
    "teacher_batches",
    "teacher_schema",
]

_STORED = {"bfloat16": pa.uint16(), "float32": pa.float32(), "int8": pa.int8(), "fp8": pa.uint8()}
_LARGEST = {"int8": 127.0, "fp8": 448.0}  # types that are scaled, and what a row's largest magnitude becomes
_COMPRESSED_ROWS = 8  # examples of a compressed record batch: what reading one of them unpacks
_STATES = "states"


def teacher_schema(
    layers: Sequence[int], dtype: str, width: int, *, states: bool = False, compressed: bool = False
) -> pa.Schema:
    """Columns of a teacher shard.

    ``id``; a layer l, ``mass_l``, ``centers_l`` and, under int8 and fp8, ``scale_l``; with ``states``, the token states
    ``states`` and their scales. A compressed shard is cut into small record batches.
    """
    fields: list[tuple[str, pa.DataType]] = [("id", pa.string())]
    for layer in layers:
        fields.append((f"mass_{layer}", pa.list_(pa.float32())))
        fields += _vector_fields(f"centers_{layer}", f"scale_{layer}", dtype)
    if states:
        fields += _vector_fields(_STATES, f"{_STATES}_scale", dtype)
    metadata = {b"dtype": dtype.encode(), b"width": str(width).encode()}
    if compressed:
        metadata[BATCH_ROWS] = str(_COMPRESSED_ROWS).encode()
    return pa.schema(fields, metadata=metadata)


def _vector_fields(name: str, scale: str, dtype: str) -> list[tuple[str, pa.DataType]]:
    # Large: spans times width of a shard may pass the 32 bits of a list's offsets.
    fields = [(name, pa.large_list(_STORED[dtype]))]
    return [*fields, (scale, pa.list_(pa.float16()))] if dtype in _LARGEST else fields


@dataclass(slots=True)
class TeacherRow:
    """What the cache keeps of one example.

    Attributes:
        centers: By layer, (K, d) float32.
        mass: By layer, (K,) float32.
        states: (n, d) float32 last-layer states that predict a response token or the end of text, where they are kept.
    """

    id: str
    centers: dict[int, NDArray[np.float32]]
    mass: dict[int, NDArray[np.float32]]
    states: NDArray[np.float32] | None = None


@dataclass(slots=True)
class TeacherBatch:
    """Several examples end to end, as they are stored. N spans and M token states of the batch.

    Attributes:
        centers: By layer, (N, d): float32, or the bits of bfloat16 as uint16.
        mass: By layer, (N,) float32.
        states: (M, d) likewise, where they were asked for.
    """

    centers: dict[int, NDArray[Any]] = field(default_factory=dict)
    mass: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    states: NDArray[Any] | None = None


def encode_vectors(vectors: NDArray[np.float32], dtype: str) -> tuple[NDArray[Any], NDArray[np.float16] | None]:
    """(K, d) float32 to what is stored, flat, and the scales (K,) under int8 and fp8."""
    if dtype == "float32":
        return np.ascontiguousarray(vectors, np.float32).ravel(), None
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
        # For numbers alone: CUDA's NaN, all ones, would become a zero. Capture refuses states that are no numbers.
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        return (rounded >> 16).astype(np.uint16).ravel(), None
    # A row of zeros needs a scale too, and below this float16 scales lose their precision.
    smallest = np.finfo(np.float16).smallest_normal
    scale = np.maximum(np.abs(vectors).max(axis=1, initial=0.0) / _LARGEST[dtype], smallest).astype(np.float16)
    # By the scale as it is stored, not as it was computed: what rounding it did is not added to the error.
    scaled = vectors / scale.astype(np.float32)[:, None]
    if dtype == "fp8":
        return _to_e4m3(scaled).ravel(), scale
    # Clipped, as the scale may have been rounded down.
    return np.rint(scaled).clip(-127, 127).astype(np.int8).ravel(), scale


def _e4m3() -> NDArray[np.float32]:
    """The value of each of the 256 bytes: sign, four bits of exponent with bias 7, three of mantissa."""
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, (codes & 7) / 8
    values = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7.0))
    values[127] = np.nan  # no infinity: all ones are NaN
    return np.concatenate([values, -values]).astype(np.float32)


_E4M3 = _e4m3()
_SMALLEST_NORMAL = np.float32(2.0**-6)


def _to_e4m3(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The nearest byte, of two the even one; magnitudes past 448 become 448."""
    size = np.abs(values)
    bits = size.view(np.uint32)
    # 120 is the difference of the exponents' biases, 127 and 7.
    code = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20).astype(np.int16) - (120 << 3)  # three bits of mantissa stay
    # Below the smallest normal number steps are even, of 1/512; 126 is 448, the largest.
    code = np.where(size < _SMALLEST_NORMAL, np.rint(size * 512).astype(np.int16), np.minimum(code, 126))
    return (code + 128 * np.signbit(values)).astype(np.uint8)


def decode_vectors(stored: NDArray[Any], width: int, scale: NDArray[np.float16] | None = None) -> NDArray[np.float32]:
    """What is stored back to (K, d) float32; a view where it is stored as such."""
    rows = stored.reshape(-1, width)
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows if scale is None else _scaled(rows, scale)


def _scaled(rows: NDArray[Any], scale: NDArray[np.float16]) -> NDArray[np.float32]:
    values = _E4M3[rows] if rows.dtype == np.uint8 else rows.astype(np.float32)
    values *= scale.astype(np.float32)[:, None]
    return values


def teacher_batches(rows: Sequence[TeacherRow], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The record batches of a shard under a `teacher_schema`."""
    step = int(schema.metadata.get(BATCH_ROWS, max(1, len(rows))))
    for start in range(0, len(rows), step):
        yield teacher_batch(rows[start : start + step], schema)


def teacher_batch(rows: Sequence[TeacherRow], schema: pa.Schema) -> pa.RecordBatch:
    """Arrow form of teacher rows under a `teacher_schema`."""
    dtype = schema.metadata[b"dtype"].decode()
    arrays: list[pa.Array] = [pa.array([row.id for row in rows], pa.string())]
    for layer in _layers(schema.names):
        arrays.append(_lists([row.mass[layer] for row in rows], pa.float32()))
        arrays += _vector_arrays([row.centers[layer] for row in rows], dtype)
    if _STATES in schema.names:
        arrays += _vector_arrays([_states(row) for row in rows], dtype)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _layers(names: Sequence[str]) -> tuple[int, ...]:
    return tuple(int(name.removeprefix("mass_")) for name in names if name.startswith("mass_"))


def _states(row: TeacherRow) -> NDArray[np.float32]:
    if row.states is None:
        raise ValueError(f"{row.id}: the schema keeps token states and the row has none")
    return row.states


def _vector_arrays(vectors: Sequence[NDArray[np.float32]], dtype: str) -> list[pa.Array]:
    stored, scales = zip(*(encode_vectors(each, dtype) for each in vectors), strict=True)
    values = pa.array(np.concatenate(stored), _STORED[dtype])
    arrays: list[pa.Array] = [pa.LargeListArray.from_arrays(pa.array(list_offsets(stored)), values)]
    return [*arrays, _lists(scales, pa.float16())] if dtype in _LARGEST else arrays


def _lists(values: Sequence[NDArray[Any]], kind: pa.DataType) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(list_offsets(values), pa.int32()), pa.array(np.concatenate(values), kind))


class TeacherSet(Sequence[TeacherRow]):
    """Memory-mapped random access to what the cache keeps of one split.

    Attributes:
        layers: Layers with centres and masses, counted from 1.
        states: Whether token states are kept.
        width: d.
    """

    def __init__(self, manifest: Manifest, split: str) -> None:
        self._shards = ShardSet(Path(manifest.folder), manifest.shards, split)
        self.layers: tuple[int, ...] = ()
        self.states = False
        self.width = 0
        if len(self._shards):
            first = self._shards.shard(0)
            self.width = int(first.metadata[b"width"])
            self.layers = _layers(first.names)
            self.states = _STATES in first.names

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        columns, row = self._shards.locate(index)

        def vectors(name: str, scale: str) -> NDArray[np.float32]:
            return decode_vectors(columns[name][row], self.width, columns[scale][row] if scale in columns else None)

        return TeacherRow(
            id=columns["id"][row],
            centers={layer: vectors(f"centers_{layer}", f"scale_{layer}") for layer in self.layers},
            mass={layer: columns[f"mass_{layer}"][row] for layer in self.layers},
            states=vectors(_STATES, f"{_STATES}_scale") if self.states else None,
        )

    def gather(self, indices: Sequence[int], layers: Sequence[int] | None = None, states: bool = False) -> TeacherBatch:
        """Examples end to end, copied once from the memory map into arrays of their own; bfloat16 is not widened.

        Args:
            indices: Examples, at least one.
            layers: Layers to read; unset reads all.
            states: Read token states too.
        """
        places = [self._shards.locate(int(index)) for index in indices]

        def vectors(name: str, scale: str) -> NDArray[Any]:
            values = np.concatenate([columns[name][row] for columns, row in places]).reshape(-1, self.width)
            if scale not in places[0][0]:
                return values
            return _scaled(values, np.concatenate([columns[scale][row] for columns, row in places]))

        batch = TeacherBatch(states=vectors(_STATES, f"{_STATES}_scale") if states else None)
        for layer in self.layers if layers is None else layers:
            batch.centers[layer] = vectors(f"centers_{layer}", f"scale_{layer}")
            batch.mass[layer] = np.concatenate([columns[f"mass_{layer}"][row] for columns, row in places])
        return batch
