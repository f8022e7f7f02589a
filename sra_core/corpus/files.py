"""Rows of JSONL (plain, gzip, zstd), CSV and Parquet files, alone or in a folder, local or behind an fsspec URL."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from typing import IO, Any

import fsspec

from sra_core.corpus.types import BadRow, Row
from sra_core.errors import DataError

__all__ = ["Files", "is_data_file"]

TEXT_FORMATS = (".jsonl", ".ndjson", ".json", ".csv")
COMPRESSIONS = (".gz", ".zst")
SUFFIXES = (*(text + end for text in TEXT_FORMATS for end in ("", *COMPRESSIONS)), ".parquet")
DAMAGE = (EOFError, zlib.error, OSError)
LONGEST_CELL = 16 * 2**20
ROWS_AT_ONCE = 1024
CHUNK = 2**20


def is_data_file(path: str) -> bool:
    """Whether a file's name ends as the files that can be read do."""
    return path.lower().endswith(SUFFIXES)


class Files:
    """The rows of one file, or of all data files below a folder in order of their paths.

    Raises:
        DataError: If there is no such file or folder, or none in it that can be read.
    """

    layout: str | None = None

    def __init__(self, source: str) -> None:
        self._system, self._root = _file_system(source)
        self._shown = source.rstrip("/")
        self._single = self._system.isfile(self._root)
        found = [self._root] if self._single else sorted(filter(self._is_wanted, self._list(source)))
        if not found or not all(map(is_data_file, found)):
            raise DataError(
                f"{source}: no file that can be read; known are {', '.join(SUFFIXES)}",
                "convert the data, or set corpus.source to a file or folder of one of these",
            )
        self._paths = found

    def _list(self, source: str) -> list[str]:
        if not self._system.isdir(self._root):
            raise DataError(
                f"{source}: no such file or folder",
                "check corpus.source; a relative path counts from the working directory",
            )
        return list(self._system.find(self._root))

    def _is_wanted(self, path: str) -> bool:
        hidden = any(part.startswith((".", "_")) for part in self._relative(path).split("/"))
        return not hidden and is_data_file(path)

    def _relative(self, path: str) -> str:
        if self._single:
            return path.rpartition("/")[2]
        return path.removeprefix(self._root).lstrip("/")

    def identity(self) -> dict[str, Any]:
        """Relative path, size and SHA-256 of every file."""
        return {"kind": "files", "files": [self._file_identity(path) for path in self._paths]}

    def _file_identity(self, path: str) -> dict[str, Any]:
        state, size = hashlib.sha256(), 0
        with self._system.open(path, "rb") as stream:
            while chunk := stream.read(CHUNK):
                state.update(chunk)
                size += len(chunk)
        return {"path": self._relative(path), "bytes": size, "sha256": state.hexdigest()}

    def __iter__(self) -> Iterator[Row | BadRow]:
        for path in self._paths:
            relative = self._relative(path)
            shown = self._shown if self._single else f"{self._shown}/{relative}"
            with self._system.open(path, "rb") as stream:
                yield from _rows(stream, shown, relative)


def _file_system(source: str) -> tuple[Any, str]:
    try:
        system, root = fsspec.core.url_to_fs(source)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{source}: no file system for it: {error}", "correct corpus.source, or install the fsspec package for it"
        ) from error
    return system, root


def _rows(stream: IO[bytes], path: str, relative: str) -> Iterator[Row | BadRow]:
    lowered = relative.lower()
    ending = next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if lowered.endswith(suffix))
    name = relative[: -len(ending)]
    if ending == ".parquet":
        yield from _parquet_rows(stream, path, name)
        return
    read = _csv_rows if ending.startswith(".csv") else _json_rows
    line = 0
    try:
        for row in read(_unpack(stream, ending), path, name):
            line = row.line
            yield row
    except DAMAGE as error:
        if not ending.endswith(COMPRESSIONS):
            raise
        reason = f"the compressed data is damaged or ends early, and what follows is lost: {error}"
        yield BadRow(path, name, line + 1, reason, "")


def _unpack(stream: IO[bytes], ending: str) -> IO[bytes]:
    if ending.endswith(".gz"):
        return gzip.open(stream)  # type: ignore[return-value]
    if ending.endswith(".zst"):
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(stream, compression="zstd"))
    return stream


def _json_rows(stream: IO[bytes], path: str, name: str) -> Iterator[Row | BadRow]:
    for line, raw in enumerate(stream, 1):
        text = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
        if not text.strip():
            continue
        if line == 1 and text.lstrip().startswith(b"["):
            raise _array(path)
        try:
            values = json.loads(text.decode())
        except UnicodeDecodeError as error:
            yield BadRow(path, name, line, f"not valid UTF-8 at byte {error.start + 1}", _shown(raw))
        except (ValueError, RecursionError) as error:
            yield BadRow(path, name, line, f"not valid JSON: {error}", _shown(raw))
        else:
            if isinstance(values, dict):
                yield Row(path, name, line, values)
            else:
                yield BadRow(path, name, line, f"a JSON {type(values).__name__}, not an object", _shown(raw))


def _array(path: str) -> DataError:
    return DataError(
        f"{path}, line 1: a JSON array, where one object a line is read",
        f"turn it into JSON lines: jq -c '.[]' {path} > data.jsonl",
    )


def _shown(raw: bytes) -> str:
    return raw.rstrip(b"\r\n").decode("utf-8", "backslashreplace")


def _csv_rows(stream: IO[bytes], path: str, name: str) -> Iterator[Row | BadRow]:
    csv.field_size_limit(LONGEST_CELL)
    taken: list[bytes] = []
    reader = csv.reader(_csv_lines(stream, taken), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        taken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(path, name, line, f"not valid CSV: {error}", _shown(b"".join(taken)))
            continue
        if header is None:
            header = [cell.removeprefix("\ufeff") for cell in cells]
        elif cells:
            problem = _csv_problem(header, cells, b"".join(taken))
            if problem:
                yield BadRow(path, name, line, problem, _shown(b"".join(taken)))
            else:
                yield Row(path, name, line, dict(zip(header, cells, strict=True)))


def _csv_lines(stream: IO[bytes], taken: list[bytes]) -> Iterator[str]:
    """Lines for the reader, each also remembered; undecodable bytes must not lose more than their own row."""
    for raw in stream:
        taken.append(raw)
        yield raw.decode("utf-8", "surrogateescape")


def _csv_problem(header: list[str], cells: list[str], raw: bytes) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return f"not valid UTF-8: {error.reason}"
    return "" if len(cells) == len(header) else f"{len(cells)} cells under a header of {len(header)}"


def _parquet_rows(stream: IO[bytes], path: str, name: str) -> Iterator[Row | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    line = 0
    try:
        for batch in pq.ParquetFile(stream).iter_batches(ROWS_AT_ONCE):
            for place in range(batch.num_rows):
                line += 1
                yield _parquet_row(batch, place, path, name, line)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}, row {line + 1}: damaged or not Parquet: {error}", "fetch or write the file again"
        ) from error


def _parquet_row(batch: Any, place: int, path: str, name: str, line: int) -> Row | BadRow:
    try:
        return Row(
            path,
            name,
            line,
            dict(zip(batch.schema.names, (column[place].as_py() for column in batch.columns), strict=True)),
        )
    except UnicodeDecodeError as error:
        return BadRow(path, name, line, f"not valid UTF-8: {error.reason}", "")
