"""Prepared shards: both tokenizations of an example and its span map. K spans, T tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sra_core.errors import ShardError
from sra_core.shards.manifest import Manifest
from sra_core.shards.reader import ShardSet

__all__ = [
    "PREPARED_SCHEMA",
    "STUDENT_TOKENIZER",
    "TEACHER_TOKENIZER",
    "PreparedRow",
    "PreparedSet",
    "prepared_batch",
    "prepared_row",
]

TEACHER_TOKENIZER = "teacher_tokenizer"
STUDENT_TOKENIZER = "student_tokenizer"
"""Subfolders of a prepared result that hold the tokenizers."""

_TOKENS = pa.list_(pa.int32())
_SPANS = pa.list_(pa.list_(pa.int32(), 2))

PREPARED_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("teacher_ids", _TOKENS),
        ("student_ids", _TOKENS),
        ("teacher_spans", _SPANS),
        ("student_spans", _SPANS),
        ("teacher_response", pa.int32()),
        ("student_response", pa.int32()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("source", pa.string()),
    ]
)


@dataclass(slots=True)
class PreparedRow:
    """One example, ready for both models.

    Attributes:
        teacher_ids, student_ids: (T,) int32 tokens of prompt, response and end of text.
        teacher_spans, student_spans: (K, 2) int32 half-open token ranges; row i of both covers the same text.
        teacher_response, student_response: Index of the first response token.
        prompt, response: The student's prompt and the response as it was kept.
    """

    id: str
    teacher_ids: NDArray[np.int32]
    student_ids: NDArray[np.int32]
    teacher_spans: NDArray[np.int32]
    student_spans: NDArray[np.int32]
    teacher_response: int
    student_response: int
    prompt: str
    response: str
    source: str


def prepared_batch(rows: Sequence[PreparedRow]) -> pa.RecordBatch:
    """Arrow form of prepared rows."""
    arrays = [
        _texts([row.id for row in rows]),
        _token_lists([row.teacher_ids for row in rows]),
        _token_lists([row.student_ids for row in rows]),
        _span_lists([row.teacher_spans for row in rows]),
        _span_lists([row.student_spans for row in rows]),
        _integers(np.array([row.teacher_response for row in rows], np.int32)),
        _integers(np.array([row.student_response for row in rows], np.int32)),
        _texts([row.prompt for row in rows]),
        _texts([row.response for row in rows]),
        _texts([row.source for row in rows]),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=PREPARED_SCHEMA)


def list_offsets(values: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Arrow list offsets of a ragged column: one more than it has rows."""
    return np.concatenate([[0], np.cumsum([len(value) for value in values], dtype=np.int64)]).astype(np.int64)


# Arrays are made from their buffers: `pa.array` imports pandas, half a second for a worker process.


def _integers(values: NDArray[np.int32]) -> pa.Array:
    return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(values)])


def _offsets(values: Sequence[NDArray[Any]]) -> pa.Buffer:
    return pa.py_buffer(list_offsets(values).astype(np.int32))


def _texts(values: Sequence[str]) -> pa.Array:
    encoded = [value.encode() for value in values]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    if offsets[-1] > np.iinfo(np.int32).max:  # Arrow's `string` has offsets of 32 bits
        raise ShardError(
            f"the texts of a shard take {offsets[-1]:,} bytes, more than one shard holds",
            "lower alignment.examples_per_shard",
        )
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def _flat(values: Sequence[NDArray[np.int32]]) -> pa.Array:
    # Without an axis pairs are laid flat too, which is how Arrow keeps a list of them.
    return _integers(np.concatenate(values, axis=None, dtype=np.int32) if values else np.empty(0, np.int32))


def _token_lists(values: Sequence[NDArray[np.int32]]) -> pa.Array:
    return pa.Array.from_buffers(_TOKENS, len(values), [None, _offsets(values)], children=[_flat(values)])


def _span_lists(values: Sequence[NDArray[np.int32]]) -> pa.Array:
    flat = _flat(values)
    pairs = pa.Array.from_buffers(_SPANS.value_type, len(flat) // 2, [None], children=[flat])
    return pa.Array.from_buffers(_SPANS, len(values), [None, _offsets(values)], children=[pairs])


class PreparedSet(Sequence[PreparedRow]):
    """Memory-mapped random access to the prepared examples of one split.

    Raises:
        ShardError: A shard is missing or damaged.
    """

    def __init__(self, manifest: Manifest, split: str) -> None:
        self._shards = ShardSet(Path(manifest.folder), manifest.shards, split)

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        columns, row = self._shards.locate(index)
        return _row(columns, row)

    def spans(self) -> NDArray[np.int64]:
        """(rows,) number of spans of each example, without reading the rest."""
        return self._shards.lengths("teacher_spans")

    def tokens(self, side: str) -> NDArray[np.int64]:
        """(rows,) number of ``teacher`` or ``student`` tokens of each example."""
        return self._shards.lengths(f"{side}_ids")


def _row(columns: Mapping[str, Any], row: int) -> PreparedRow:
    values = {name: column[row] for name, column in columns.items()}
    for name in ("teacher_spans", "student_spans"):
        values[name] = values[name].reshape(-1, 2)
    for name in ("teacher_response", "student_response"):
        values[name] = int(values[name])
    return PreparedRow(**values)


def prepared_row(item: Any) -> PreparedRow:
    """An aligned example (`sra_core.alignment.AlignedExample`) as it is stored."""
    return PreparedRow(
        id=item.id,
        teacher_ids=item.teacher_ids,
        student_ids=item.student_ids,
        teacher_spans=item.spans.teacher,
        student_spans=item.spans.student,
        teacher_response=item.teacher_response,
        student_response=item.student_response,
        prompt=item.prompt,
        response=item.response,
        source=item.source,
    )
