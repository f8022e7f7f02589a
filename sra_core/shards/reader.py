"""Memory-mapped Arrow shards, addressed as one long list of rows."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sra_core.errors import ShardError
from sra_core.shards.folder import verify
from sra_core.shards.manifest import ShardEntry

__all__ = ["BATCH_ROWS", "Ragged", "ShardSet"]

BATCH_ROWS = b"batch_rows"
"""Key of a schema's metadata: rows of each record batch but the last; without it a shard is one batch."""
_OPEN_SHARDS = 64
_OPEN_BATCHES = 4


class Ragged:
    """A list column as two flat arrays: row i is ``values[offsets[i] * width : offsets[i + 1] * width]``."""

    def __init__(self, column: pa.Array) -> None:
        values = column.values
        self.width = 1
        if pa.types.is_fixed_size_list(values.type):
            self.width = values.type.list_size
            values = values.flatten()
        self.offsets = column.offsets.to_numpy()
        self._bounds: list[int] = (self.offsets * self.width).tolist()  # plain integers: slicing is much faster
        self.values = (
            values.to_numpy(zero_copy_only=True) if len(values) else np.empty(0, values.type.to_pandas_dtype())
        )

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self._bounds[row] : self._bounds[row + 1]]

    def lengths(self) -> NDArray[np.int64]:
        """(rows,) entries of each row."""
        return np.diff(self.offsets).astype(np.int64)


class _Scalars:
    def __init__(self, column: pa.Array) -> None:
        self.column = column

    def __getitem__(self, row: int) -> Any:
        return self.column[row].as_py()


class Shard:
    """One open shard, readable by row. Record batches are opened when one of their rows is asked for.

    An uncompressed batch is a view of the file; a compressed one is unpacked, so its shard holds many small ones.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._damage_named():
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self.metadata = self._reader.schema.metadata or {}
        self.names: list[str] = self._reader.schema.names
        self._batch_rows = int(self.metadata.get(BATCH_ROWS, 0))
        self._batches: OrderedDict[int, dict[str, Any]] = OrderedDict()

    def locate(self, row: int) -> tuple[dict[str, Any], int]:
        """The columns of the record batch that holds a row, and the row's number inside it."""
        number, row = divmod(row, self._batch_rows) if self._batch_rows else (0, row)
        return self._batch(number), row

    def lengths(self, column: str) -> NDArray[np.int64]:
        """(rows,) entries of a list column."""
        with self._damage_named():
            parts = [
                _column(self._reader.get_batch(number).column(column)).lengths()
                for number in range(self._reader.num_record_batches)
            ]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _batch(self, number: int) -> dict[str, Any]:
        columns = self._batches.get(number)
        if columns is None:
            with self._damage_named():
                batch = self._reader.get_batch(number)
            columns = {name: _column(batch.column(name)) for name in self.names}
            self._batches[number] = columns
            if len(self._batches) > _OPEN_BATCHES:
                self._batches.popitem(last=False)
        return columns

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowInvalid) as error:
            raise ShardError(f"{self._path} cannot be read: {error}", "run the stage that made it again") from error


def _column(array: pa.Array) -> Any:
    return Ragged(array) if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) else _Scalars(array)


class ShardSet:
    """The shards of one split as one list; the most recently used ones stay open."""

    def __init__(self, folder: Path, shards: Iterable[ShardEntry], split: str) -> None:
        self._shards = [shard for shard in shards if shard.split == split]
        # Sizes and footers: checksums of all bytes would cost reading them before the first row is asked for.
        verify(folder, self._shards)
        self._folder = folder
        self._starts = [0, *np.cumsum([shard.rows for shard in self._shards]).tolist()]
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def shard(self, number: int) -> Shard:
        """The open shard with this number."""
        if number in self._open:
            self._open.move_to_end(number)
        else:
            self._open[number] = Shard(self._folder / self._shards[number].name)
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        return self._open[number]

    def locate(self, index: int) -> tuple[dict[str, Any], int]:
        """Columns that hold a row, and the row's number inside them."""
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._starts, index) - 1
        return self.shard(number).locate(index - self._starts[number])

    def lengths(self, column: str) -> NDArray[np.int64]:
        """(rows,) entries of a list column, for every row of the split."""
        parts = [self.shard(number).lengths(column) for number in range(len(self._shards))]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)
