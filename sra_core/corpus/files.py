"""Rows of data files, one alone or all in a folder, local or behind an fsspec URL, each in its own split."""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from typing import Any

import fsspec

from sra_core.config import CorpusConfig
from sra_core.corpus.columns import NoLayout, layout_of
from sra_core.corpus.formats import SUFFIXES, ending_of, is_data_file, rows_of
from sra_core.corpus.split import SPLITS, named_split
from sra_core.corpus.types import BadRow, Row
from sra_core.errors import ConfigError, DataError, told_as

__all__ = ["Columns", "Files", "is_data_file", "own_splits"]

CHUNK = 2**20
SHOWN = 5


class Columns:
    """Which columns of tables are read; remembers those that no layout knows, by table."""

    def __init__(self, config: CorpusConfig) -> None:
        self._config = config
        self.unused: dict[str, Sequence[str]] = {}

    def wanted(self, path: str, names: Sequence[str]) -> list[str] | None:
        """The columns to read; None where they fit no layout."""
        layout = layout_of(names, self._config)
        if isinstance(layout, NoLayout):
            return None
        self.unused[path] = layout.unused
        return [name for name in names if name in layout.read]

    def notes(self) -> list[str]:
        """What was not read, for a reader."""
        told = []
        for path, names in self.unused.items():
            if names:
                told.append(f"{path}: columns that are not read: {', '.join(f'`{name}`' for name in names)}")
        return told


class Files:
    """The rows of one file, or of all data files below a folder in order of their paths.

    In a folder, a file whose name or folder says a split (``test.jsonl``, ``dev/a.csv``) is of that split;
    ``corpus.splits`` says so in place of the names.

    Raises:
        DataError: If there is no such file or folder, none in it that can be read, or one whose split cannot be told.
    """

    layout: str | None = None

    def __init__(self, config: CorpusConfig) -> None:
        source = config.source
        self._system, self._root = _file_system(source)
        self._shown = source.rstrip("/")
        with _reached(source):
            self._single = self._system.isfile(self._root)
            there = [self._root] if self._single else sorted(self._list(source))
        found = there if self._single else [path for path in there if self._is_wanted(path)]
        if not found or not all(map(is_data_file, found)):
            raise DataError(
                f"{source}: no file that can be read; known are {', '.join(SUFFIXES)}",
                "convert the data, or set corpus.source to a file or folder of one of these",
            )
        self._columns = Columns(config)
        self._files: dict[str, str] = dict.fromkeys(found, "")  # split by path
        if not self._single:
            names = {self._relative(path): path for path in found}
            self._files = {names[name]: split for name, split in own_splits(list(names), config, source).items()}
        elif config.splits:
            raise ConfigError(
                f"corpus.splits is set, but corpus.source {source} is a single file", "name a folder, or remove it"
            )
        self.brought = frozenset(self._files.values()) & {"validation", "test"}
        skipped = [self._relative(path) for path in there if path not in self._files]
        self._told = [] if self._single else list(self._tell(skipped))

    @property
    def notes(self) -> list[str]:
        return [*self._told, *self._columns.notes()]

    def _tell(self, skipped: Sequence[str]) -> Iterator[str]:
        for split in ("", *SPLITS):
            names = [self._relative(path) for path, own in self._files.items() if own == split]
            if names:
                how = f"as {split}" if split else "with splits chosen by hash"
                yield f"{self._shown}: read {how}: {_listed(names)}"
        if skipped:
            yield f"{self._shown}: not read: {_listed(skipped)}"

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

    def _name(self, path: str) -> str:
        """What messages call a file."""
        return self._shown if self._single else f"{self._shown}/{self._relative(path)}"

    def identity(self) -> dict[str, Any]:
        """Relative path, size and SHA-256 of every file; which split they are, where some bring one."""
        files = {"kind": "files", "files": [self._file_identity(path) for path in self._files]}
        # Files called train are divided by hash like those without a split: only what is held out makes other examples.
        if not self.brought:
            return files
        return {**files, "splits": {self._relative(path): split for path, split in self._files.items()}}

    def _file_identity(self, path: str) -> dict[str, Any]:
        state, size = hashlib.sha256(), 0
        with _reached(self._name(path)), self._system.open(path, "rb") as stream:
            while chunk := stream.read(CHUNK):
                state.update(chunk)
                size += len(chunk)
        return {"path": self._relative(path), "bytes": size, "sha256": state.hexdigest()}

    def __iter__(self) -> Iterator[Row | BadRow]:
        for path, split in self._files.items():
            relative, shown = self._relative(path), self._name(path)
            # Bytes of a name that are not UTF-8 become lone surrogates, which neither an id's digest nor JSON can hold.
            if not relative.isprintable():
                _require_name(relative)
            with _reached(shown):
                opened = self._system.open(path, "rb")
            with opened as stream:
                buffered = io.BufferedReader(_Place(stream))
                for row in rows_of(buffered, shown, relative, partial(self._columns.wanted, shown)):
                    yield replace(row, split=split) if split and isinstance(row, Row) else row


def _reached(place: str) -> AbstractContextManager[None]:
    remedy = "check that it is there and that you may read it; of a URL also your credentials and the connection"
    return told_as(DataError, f"{place} cannot be read", remedy)


class _Place(io.RawIOBase):
    """A file whose place may fail: every failure is an `OSError` with a number, which damaged data has not.

    Libraries of file systems raise kinds of their own inside a file, and time-outs without a number.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._stream.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        try:
            found = self._stream.read(len(buffer))
        except Exception as error:
            told = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise OSError(getattr(error, "errno", None) or errno.EIO, told) from error
        buffer[: len(found)] = found
        return len(found)


def _require_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = name.encode("utf-8", "surrogateescape")
        raise DataError(f"the file name {shown!r} is not valid UTF-8", "rename the file") from error


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN]).encode(errors="backslashreplace").decode()
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def own_splits(names: Sequence[str], config: CorpusConfig, source: str) -> dict[str, str]:
    """The split of each part of a source (a file by its path, a split by its name), as the config or the names say.

    Returns:
        Only those that are read, in the order given; an empty split is left to the hash.

    Raises:
        DataError: A name says two splits, or one in the config names nothing.
        ConfigError: The config puts a part into two splits.
    """
    if not config.splits:
        found = {name: named_split(_bare(name)) for name in names}
        unclear = next((name for name, split in found.items() if split is None), None)
        if unclear:
            raise DataError(
                f"{source}: the name {unclear} says two splits",
                "say which with corpus.splits, such as {train: " + unclear + "}",
            )
        return {name: split or "" for name, split in found.items()}
    chosen: dict[str, str] = {}
    for split, patterns in config.splits.items():
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matched = [name for name in names if _matches(name, pattern)]
            if not matched:
                raise DataError(
                    f"{source}: corpus.splits.{split} names {pattern}, and there is none of that name; "
                    f"there are {_listed(list(names))}",
                    "correct corpus.splits",
                )
            for name in matched:
                if chosen.setdefault(name, split) != split:
                    raise ConfigError(f"corpus.splits puts {name} into {chosen[name]} and {split}", "name it once")
    return {name: chosen[name] for name in names if name in chosen}


def _bare(name: str) -> str:
    return name[: -len(ending_of(name))] if is_data_file(name) else name


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.rstrip("/")
    return fnmatch(name, pattern) or _bare(name) == pattern or name.startswith(f"{pattern}/")


def _file_system(source: str) -> tuple[Any, str]:
    try:
        system, root = fsspec.core.url_to_fs(source)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{source}: no file system for it: {error}", "correct corpus.source, or install the fsspec package for it"
        ) from error
    return system, root
