"""Rows out of one open file: JSON lines, delimited text, Parquet and Arrow, whatever the file is called."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

from sra_core.corpus.columns import means
from sra_core.corpus.sniff import HEAD, mend, what_is
from sra_core.corpus.types import BadRow, Row
from sra_core.errors import DataError, first_line

__all__ = ["COMPRESSIONS", "SUFFIXES", "Wanted", "arrow_rows", "is_data_file", "rows_of"]

TEXT_FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
COMPRESSIONS = (".gz", ".zst")
SUFFIXES = (*(text + end for text in TEXT_FORMATS for end in ("", *COMPRESSIONS)), ".parquet", ".arrow")
DAMAGE = (EOFError, zlib.error, OSError)  # how gzip, zlib and pyarrow tell of data that is damaged or ends early
LONGEST_CELL = 16 * 2**20  # csv refuses cells of more than 131,072 characters unless told
LONGEST_DOCUMENT = 64 * 2**20
"""Bytes of a JSON document over several lines that are looked at to tell what it is."""
ROWS_AT_ONCE = 1024
DELIMITERS = (",", ";", "\t", "|")
OTHER_ENCODING = "if the file is in another encoding, convert it: iconv -f ENCODING -t UTF-8"
UNPACK = {"gzip": "gzip -dc {path} | ", "zstd": "zstd -dc {path} | "}

Wanted = Callable[[Sequence[str]], "list[str] | None"]
"""Of the columns of a table, those to read; None where they fit no layout."""


def is_data_file(path: str) -> bool:
    """Whether a file's name ends as the files that can be read do."""
    return path.lower().endswith(SUFFIXES)


def ending_of(path: str) -> str:
    """The ending of a data file's name, as in `SUFFIXES`."""
    return next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.lower().endswith(suffix))


def rows_of(stream: IO[bytes], path: str, relative: str, wanted: Wanted) -> Iterator[Row | BadRow]:
    """The rows of a file.

    Args:
        stream: The file, which can be sought in.
        path: What messages call it.
        relative: Its name, the same on every machine.
        wanted: Which columns of a table to read.

    Raises:
        DataError: It is no file that can be read; says what it is and how to mend it.
    """
    ending = ending_of(relative)
    name = relative[: -len(ending)]
    kind = what_is(stream.read(HEAD))
    stream.seek(0)
    if kind in ("parquet", "arrow") or (ending in (".parquet", ".arrow") and not kind):
        yield from _table_rows(stream, path, name, kind or ending[1:], wanted)
        return
    packed = kind if kind in UNPACK else ""
    if packed:
        stream = _unpacked(stream, packed)
        kind = _inner(stream)
    if kind:
        what, remedy = mend(kind, path)
        raise DataError(f"{path}: {what}", remedy)
    read = _delimited_rows if ending.startswith((".csv", ".tsv")) else _json_rows
    line = 0
    try:
        for row in read(stream, path, name, packed):
            line = row.line
            yield row
    except DAMAGE as error:
        if not packed or _breaks_off(error):
            raise _broken_off(path, line, error) from error
        reason = f"the compressed data is damaged or ends early, and what follows is lost: {error}"
        yield BadRow(path, name, line + 1, reason, "")


def _breaks_off(error: Exception) -> bool:
    """Whether a disk or a network failed: damaged data has no number of an error."""
    return bool(getattr(error, "errno", None))


def _broken_off(path: str, line: int, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read on after row {line:,}: {first_line(error)}",
        "run it again; if it breaks again, copy the file to this machine and give its path",
    )


def _unpacked(stream: IO[bytes], packed: str) -> IO[bytes]:
    if packed == "gzip":
        return gzip.open(stream)  # type: ignore[return-value]
    # The standard library of Python 3.11 unpacks no zstd; pyarrow does.
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(stream, compression="zstd"))


def _inner(stream: Any) -> str:
    """What is inside of compressed data."""
    try:
        return what_is(stream.peek(HEAD)[:HEAD])
    except DAMAGE:
        return ""


class _TwiceError(ValueError):
    """A key that an object has twice: one of its values would be lost."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _json_rows(stream: IO[bytes], path: str, name: str, packed: str) -> Iterator[Row | BadRow]:
    first = True
    lines = _Ahead(stream)
    for line, raw in lines:
        text = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
        if not text.strip():
            continue
        if first and text.lstrip().startswith(b"["):
            raise _array(path, packed)
        try:
            values = _DECODER.decode(text.decode().strip())
        except UnicodeDecodeError as error:
            yield BadRow(path, name, line, f"not valid UTF-8 at byte {error.start + 1}; {OTHER_ENCODING}", _shown(raw))
        except (ValueError, RecursionError) as error:
            # JSON over several lines, unless the next line is an object of its own: then this line alone is torn.
            if first and _unfinished(error) and not _is_object(lines.next_line()):
                raise _document(path, packed, text, lines) from error
            yield BadRow(path, name, line, f"not valid JSON: {error}", _shown(raw))
        else:
            if isinstance(values, dict):
                yield Row(path, name, line, values)
            else:
                yield BadRow(path, name, line, f"a JSON {type(values).__name__}, not an object", _shown(raw))
        first = False


class _Ahead:
    """The lines of a stream with their numbers, and a look at the next one that is not blank."""

    def __init__(self, stream: Iterable[bytes]) -> None:
        self._lines = enumerate(stream, 1)
        self._kept: list[tuple[int, bytes]] = []

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        while True:
            if self._kept:
                yield self._kept.pop(0)
            else:
                found = next(self._lines, None)
                if found is None:
                    return
                yield found

    def next_line(self) -> bytes:
        for found in self._lines:
            self._kept.append(found)
            if found[1].strip():
                return found[1]
        return b""


def _unfinished(error: Exception) -> bool:
    """Whether a text is the beginning of JSON that goes on."""
    return isinstance(error, json.JSONDecodeError) and (
        error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
    )


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _array(path: str, packed: str) -> DataError:
    return DataError(
        f"{path}, line 1: a JSON array, where one object per line is read",
        f"turn it into JSON lines: {_jq('.[]', path, packed)}",
    )


def _jq(query: str, path: str, packed: str) -> str:
    if packed:
        return f"{UNPACK[packed].format(path=path)}jq -c '{query}' > data.jsonl"
    return f"jq -c '{query}' {path} > data.jsonl"


def _document(path: str, packed: str, begin: bytes, lines: _Ahead) -> DataError:
    """The error for JSON whose objects go over several lines."""
    parts, size = [begin], len(begin)
    for _, raw in lines:
        parts.append(raw)
        size += len(raw)
        if size > LONGEST_DOCUMENT:
            break
    query = "."
    try:
        document = json.loads(b"".join(parts))
    except (ValueError, RecursionError):
        document = None  # several objects, or more than was looked at
    if isinstance(document, dict):
        holders = [
            key for key, value in document.items() if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        if holders and not any(map(means, document)):
            query = f".{holders[0]}[]" if holders[0].isidentifier() else f'."{holders[0]}"[]'
    what = "one JSON object" if document is not None else "JSON objects"
    held = f" that holds its rows under `{query[1:-2]}`" if query != "." else ""
    return DataError(
        f"{path}, line 1: {what} over several lines{held}, where one object per line is read",
        f"turn it into JSON lines: {_jq(query, path, packed)}",
    )


def _shown(raw: bytes) -> str:
    return raw.rstrip(b"\r\n").decode("utf-8", "backslashreplace")


def _delimited_rows(stream: IO[bytes], path: str, name: str, packed: str) -> Iterator[Row | BadRow]:
    csv.field_size_limit(LONGEST_CELL)
    taken: list[bytes] = []
    lines = _decoded(stream, taken)
    begin, skipped = _begin(lines)
    named = re.fullmatch(r"sep=(.)\r?\n?", begin)  # Excel's way to name the delimiter
    if named:
        begin, more = _begin(lines)
        skipped += 1 + more
    delimiter = named[1] if named else _delimiter(begin, "\t" if name_is_tsv(path) else ",")
    # strict: text behind a cell's closing quotes would be joined to the cell in silence.
    reader = csv.reader(_chained(begin, lines), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        # line_num is the last line of the record before: quoted cells hold line breaks.
        line = skipped + reader.line_num + 1
        if header is not None:
            taken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield from _bad_record(path, name, line, f"not valid CSV: {error}", taken)
            continue
        if header is None:
            header = _header(cells, b"".join(taken), path, line)
        elif cells:
            problem = _cells_problem(header, cells, b"".join(taken), delimiter)
            if problem:
                yield from _bad_record(path, name, line, problem, taken)
            else:
                yield Row(path, name, line, dict(zip(header, cells, strict=True)), cells=True)


def _bad_record(path: str, name: str, line: int, problem: str, taken: Sequence[bytes]) -> Iterator[BadRow]:
    """A bad row for each line of a record: a quote too many may have taken rows for text, which are not lost as one."""
    if len(taken) > 1:
        problem = (
            f"{problem} (the record goes on to line {line + len(taken) - 1}: is a quote missing, or one too many?)"
        )
    yield BadRow(path, name, line, problem, _shown(taken[0]) if taken else "")
    for number, raw in enumerate(taken[1:], line + 1):
        yield BadRow(path, name, number, f"inside of the malformed record that begins in line {line}", _shown(raw))


def name_is_tsv(path: str) -> bool:
    """Whether a file is called a table of tab-separated values."""
    return ".tsv" in path.lower().rpartition("/")[2]


def _decoded(stream: IO[bytes], taken: list[bytes]) -> Iterator[str]:
    """Lines for the reader, each also remembered; undecodable bytes must not lose more than their own row."""
    for raw in stream:
        taken.append(raw)
        yield raw.decode("utf-8", "surrogateescape")


def _begin(lines: Iterator[str]) -> tuple[str, int]:
    """The first line that is not blank, and how many blank ones are before it."""
    for skipped, line in enumerate(lines):
        line = line.removeprefix("\ufeff")
        if line.strip():
            return line, skipped
    return "", 0


def _chained(begin: str, lines: Iterator[str]) -> Iterator[str]:
    if begin:
        yield begin
    yield from lines


def _delimiter(header: str, usual: str) -> str:
    """What separates the cells of a header: the one that makes most names of columns that a layout knows.

    csv.Sniffer guesses from all characters alike and takes letters for delimiters where cells are sentences.
    """

    def worth(delimiter: str) -> tuple[int, int, bool]:
        try:
            cells = next(csv.reader([header], delimiter=delimiter))
        except (csv.Error, StopIteration):
            return 0, 0, False
        return sum(map(means, cells)), len(cells), delimiter == usual

    return max(DELIMITERS, key=worth)


def _header(cells: list[str], raw: bytes, path: str, line: int) -> list[str]:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {line}: the header is not valid UTF-8: {error.reason}", f"{OTHER_ENCODING} {path} > utf8.csv"
        ) from error
    _require_distinct(cells, f"{path}, line {line}")
    return cells


def _require_distinct(names: Sequence[str], place: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"{place}: two columns are called `{twice}`, and one of them would be lost", "give each a name of its own"
        )


def _cells_problem(header: list[str], cells: list[str], raw: bytes, delimiter: str) -> str:
    try:
        line = raw.decode()
    except UnicodeDecodeError as error:
        return f"not valid UTF-8: {error.reason}; {OTHER_ENCODING}"
    if any(cell.lstrip(" ").startswith('"') and cell[0] == " " for cell in cells):
        # A cell of which the text itself begins so is legal: it stands in quotes as a whole, and its own are doubled.
        between = re.escape(delimiter)
        if re.search(rf'(?:^|{between}) +"(?!"[^{between}\r\n])', line):
            return "a cell has white space before its quotes, which would be learned as text; remove the white space"
    return "" if len(cells) == len(header) else f"{len(cells)} cells under a header of {len(header)}"


def _table_rows(stream: IO[bytes], path: str, name: str, kind: str, wanted: Wanted) -> Iterator[Row | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    line = 0
    try:
        if kind == "arrow":
            reader, names = _arrow_batches(stream)
            batches: Iterable[Any] = reader
            columns = wanted(names)
        else:
            file = pq.ParquetFile(stream)
            names = file.schema_arrow.names
            columns = wanted(names)
            # Where the columns fit no layout one of them is read all the same: it tells how many rows there are.
            batches = file.iter_batches(ROWS_AT_ONCE, columns=names[:1] if columns is None else columns)
        _require_distinct(names, path)
        for row in arrow_rows(batches, names, columns, path, name):
            line = row.line
            yield row
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if _breaks_off(error):
            raise _broken_off(path, line, error) from error
        raise DataError(
            f"{path}, row {line + 1}: damaged or not {kind.capitalize()}: {error}", "fetch or write the file again"
        ) from error


def _arrow_batches(stream: IO[bytes]) -> tuple[Iterator[Any], list[str]]:
    """Batches of an Arrow file, or of the stream that `datasets` writes, which has no mark."""
    import pyarrow as pa

    if stream.read(6) == b"ARROW1":
        stream.seek(0)
        file = pa.ipc.open_file(stream)
        return (file.get_batch(k) for k in range(file.num_record_batches)), file.schema.names
    stream.seek(0)
    reader = pa.ipc.open_stream(stream)
    return iter(reader), reader.schema.names


def arrow_rows(
    batches: Iterable[Any], names: Sequence[str], columns: list[str] | None, path: str, name: str
) -> Iterator[Row | BadRow]:
    """Rows of Arrow batches: the values of some columns, or of none where these are None.

    A value that Python has no form for (a date of the year 10000) costs its row, and only where its column is read.
    """
    import pyarrow as pa

    line = 0
    for batch in batches:
        read = {} if columns is None else {column: batch.column(column) for column in columns}
        for place in range(batch.num_rows):
            line += 1
            # Names without values: the error for a layout that is not known lists the columns.
            values = dict.fromkeys(names) if columns is None else {}
            try:
                for column, array in read.items():
                    values[column] = array[place].as_py()
            except UnicodeDecodeError as error:
                yield BadRow(path, name, line, f"column `{column}` is not valid UTF-8: {error.reason}", "")
            except (ValueError, OverflowError, ImportError, KeyError, pa.ArrowException) as error:
                yield BadRow(path, name, line, f"column `{column}` holds a value that cannot be read: {error}", "")
            else:
                yield Row(path, name, line, values)
