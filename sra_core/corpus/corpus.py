"""The corpus: one deterministic stream of examples, each in its split, and of all that was turned away and why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from sra_core.config import CorpusConfig
from sra_core.corpus.columns import Layout, NoLayout, layout_of
from sra_core.corpus.conversations import unknown_keys
from sra_core.corpus.files import Files, is_data_file
from sra_core.corpus.hub import HubRows
from sra_core.corpus.layouts import examples, missing_column, source_of, unknown_layout
from sra_core.corpus.python_docs import PythonDocs
from sra_core.corpus.quarantine import Quarantine
from sra_core.corpus.saved import SavedRows, is_saved
from sra_core.corpus.split import SPLITS, Limit, digest, rank_of, split_of
from sra_core.corpus.types import BadRow, Example, MalformedRow, Rejected, Row, Source
from sra_core.errors import ConfigError, DataError

__all__ = ["Corpus", "open_source"]

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_SMALL = 64 * 2**20
"""Bytes of a corpus that is kept from one pass to the next."""
_OBJECTS = 1024
"""Bytes that an example takes beside its texts, roughly."""
RULES = 2
"""Raise when the same rows and config give other examples than before: stage results made by the old rules expire."""


def open_source(config: CorpusConfig) -> Source:
    """What ``config.source`` names: the embedded documentation, files, or a hub data set.

    Raises:
        ConfigError: If a field is set that the source would ignore.
        DataError: If there is no such source.
    """
    if config.source == "python-docs":
        _refuse(config, "revision", "subset", "hub_split", "streaming", "layout", "columns", "ignore", "splits")
        return PythonDocs()
    # A name that ends as data files do would pass for a hub id: where the file is missing, the error shall say so.
    local = "://" in config.source or Path(config.source).expanduser().exists() or is_data_file(config.source)
    if local or not HUB_ID.fullmatch(config.source):
        _refuse(config, "revision", "subset", "hub_split", "streaming")
        return SavedRows(config) if is_saved(config.source) else Files(config)
    return HubRows(config)


def _refuse(config: CorpusConfig, *names: str) -> None:
    for name in names:
        if getattr(config, name) != CorpusConfig.model_fields[name].get_default(call_default_factory=True):
            raise ConfigError(
                f"corpus.{name} is set, but corpus.source {config.source} has no use for it",
                f"remove corpus.{name}, or name another source",
            )


class Corpus:
    """Examples and rejections of a config, as often as asked for, always in the same order.

    Memory does not grow with the text: a digest an example is kept to find duplicates, one to keep ids apart, and a
    number for each example admitted to a limited split. Rows are looked at twice: once to find the lowest hashes and
    the sources, once to hand out the examples. A small corpus is kept from the first to the second time, a larger one
    read again.

    Args:
        config: What to read and how.
        quarantine: JSON lines file for malformed rows; made when there are any.
        several: Take rows with a list of responses, all of them as good; else such a row is malformed.
    """

    def __init__(self, config: CorpusConfig, quarantine: Path | None = None, *, several: bool = False) -> None:
        self._config = config
        self._several = several
        self._quarantine = quarantine
        self._source = open_source(config)
        self._unused: dict[str, dict[str, None]] = {}  # columns by file
        self._remarks: list[str] = []
        self._kept: list[tuple[str, int, Example | Rejected]] | None = None
        """What the first pass found, for the next one alone."""

    def identity(self) -> dict[str, Any]:
        """All that determines the examples, ready for JSON: the data's content and the fields that shape it.

        Where the data lies is not in it: the same files elsewhere have the same identity.

        Raises:
            DataError: If the data cannot be read, or a hub revision cannot be resolved.
        """
        return dict(self._identity)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        # What these stand for is in the source's own identity; a stream has the rows of a download.
        place = {"source", "revision", "subset", "hub_split", "streaming"}
        place |= {name for name in ("ignore", "splits") if not getattr(self._config, name)}  # as before there were any
        fields = self._config.model_dump(mode="json", exclude=place)
        return {"rules": RULES, "data": self._source.identity(), "fields": fields}

    def __iter__(self) -> Iterator[tuple[str, Example | Rejected]]:
        """Pairs of split (``train``, ``validation``, ``test``, or empty for what was rejected before) and item.

        Raises:
            DataError: If the data cannot be read, its columns are not recognised, or too many rows are malformed.
        """
        limits, sources = self._first_pass
        admits = {split: limit.admits() for split, limit in limits.items()}
        kept, self._kept = self._kept, None
        for split, rank, item in self._scan(sources) if kept is None else kept:
            if isinstance(item, Example) and not admits[split](rank):
                detail = f"corpus.max_{split} keeps {limits[split].size} examples, those with the lowest hashes"
                item = Rejected(item.id, "over_limit", detail)
            yield split, item

    @property
    def admitted(self) -> int:
        """How many examples iteration hands out, of all splits; found in a pass over all rows, which it needs as well.

        Raises:
            DataError: As in iteration.
        """
        limits, _ = self._first_pass
        return sum(limit.admitted for limit in limits.values())

    def first(self, count: int) -> list[Example | Rejected]:
        """The first items as they are read, without a pass over all rows: no limit is applied, duplicates are there.

        Raises:
            DataError: As in iteration.
        """
        return [item for _, _, item in islice(self._items(True), count)]

    @property
    def brought(self) -> frozenset[str]:
        """The splits beside ``train`` that the data brings itself; only the others are chosen by hash."""
        return self._source.brought

    def notes(self) -> list[str]:
        """What a reader should know of what was read: files by split, what was skipped, columns that no layout knows.

        Complete once the corpus was iterated.
        """
        unused = [f"{path}: columns that are not read: {_listed(columns)}" for path, columns in self._unused.items()]
        return [*self._source.notes, *unused, *self._remarks]

    @cached_property
    def _first_pass(self) -> tuple[dict[str, Limit], bool]:
        """What only a look at all rows tells: the lowest hashes of limited splits; whether the source column names
        sources, whose values repeat, or tells every row apart."""
        limits = {split: Limit(getattr(self._config, f"max_{split}")) for split in SPLITS}
        named, kept, size = _Sources(), [], 0
        for split, rank, item in self._scan(named):
            if isinstance(item, Example):
                limits[split].offer(rank)
                size += sum(map(len, item.texts()))
            size += _OBJECTS
            if size <= _SMALL:
                kept.append((split, rank, item))
            else:
                kept.clear()
        trusted = "source" in self._config.columns or named.repeat
        self._kept = kept if trusted and size <= _SMALL else None  # sources were taken for such
        if not trusted:
            told = f"the values of {_listed(named.columns)} tell rows apart: they are not sources, each file is one"
            self._remarks = [f"{self._config.source}: {told} (corpus.columns.source takes them all the same)"]
        return limits, trusted

    def _scan(self, sources: _Sources | bool) -> Iterator[tuple[str, int, Example | Rejected]]:
        """One pass over the rows: split, rank and item; limits are not applied yet.

        Args:
            sources: Gathers what the source column says, in the first pass; later, whether it names sources.
        """
        seen: set[bytes] = set()
        ids: set[int] = set()
        for own, group, item in self._items(sources):
            if isinstance(item, Rejected):
                yield "", 0, item
                continue
            problem = self._length_problem(item)
            if problem:
                yield "", 0, Rejected(item.id, *problem)
                continue
            key = _content(item)
            # Data that calls itself train is still divided by hash into the splits that it does not bring.
            split = own if own in ("validation", "test") else split_of(group, self._config, self.brought)
            if self._config.deduplicate:
                if key in seen:
                    yield split, 0, Rejected(item.id, "duplicate", "an earlier example has the same content")
                    continue
                seen.add(key)
            yield split, rank_of(key), _with_own_id(item, key, ids)

    def _items(self, sources: _Sources | bool) -> Iterator[tuple[str, bytes, Example | Rejected]]:
        # A new one for each pass: it removes the file of the pass before, so that no row is listed twice.
        quarantine = Quarantine(self._quarantine, self._config.max_malformed)
        unseen: dict[str, str] = {str(field): column for field, column in self._config.columns.items()}
        layouts: dict[tuple[str, ...], Layout | NoLayout] = {}
        last: tuple[str, Layout | None] = ("", None)  # file, and the layout that its rows had so far
        line = 0
        for row in self._source:
            line = row.line
            if isinstance(row, BadRow):
                yield "", b"", quarantine.add(row)
                continue
            if row.path != last[0]:
                last = row.path, None
            columns = tuple(row.values)
            if columns not in layouts:
                layouts[columns] = layout_of(columns, self._config, self._source.layout)
            layout = layouts[columns]
            if isinstance(layout, NoLayout):
                reason = layout.reason or missing_column(row, last[1], self._config)
                # Where no row of the file could be read yet, its columns are the problem, not this row.
                error = None if last[1] else unknown_layout(self._config, row, layout)
                yield "", b"", quarantine.add(_bad(row, reason), error)
                continue
            last = row.path, layout
            unused = list(_unread(row, layout))
            if unused:
                self._unused.setdefault(row.path, {}).update(dict.fromkeys(unused))
            for field in [field for field, column in unseen.items() if column in columns]:
                del unseen[field]
            try:
                if isinstance(sources, _Sources):
                    sources.see(source_of(row, layout), layout.column("source"))
                found = list(examples(row, layout, self._config, self._several, sources is not False))
            except MalformedRow as malformed:
                yield "", b"", quarantine.add(_bad(row, str(malformed)))
                continue
            yield from ((row.split, group, item) for group, item in found)
        if not line:
            raise DataError(f"{self._config.source} holds no rows", "set corpus.source to data with at least one row")
        for field, column in unseen.items():
            raise DataError(
                f"corpus.columns.{field} names the column `{column}`, which no row of {self._config.source} has",
                f"correct the name or remove corpus.columns.{field}",
            )

    def _length_problem(self, example: Example) -> tuple[str, str] | None:
        size, config = len(example.response), self._config
        if not example.response.strip():
            return "empty_response", "the response is empty or white space"
        if size < config.min_response:
            return (
                "too_short",
                f"the response has {size} characters, corpus.min_response asks for {config.min_response}",
            )
        if config.max_response is not None and size > config.max_response:
            return "too_long", f"the response has {size} characters, corpus.max_response allows {config.max_response}"
        return None


class _Sources:
    """Whether the values of a source column repeat; one that tells every row apart (an address, a prompt) is no source.

    Memory is a hash a distinct value.
    """

    def __init__(self) -> None:
        self.columns: dict[str, None] = {}
        self._rows = 0
        self._values: set[int] = set()

    def see(self, value: str, column: str) -> None:
        if value:
            self._rows += 1
            self._values.add(hash(value))
            self.columns[column] = None

    @property
    def repeat(self) -> bool:
        return self._rows < 2 or 2 * len(self._values) <= self._rows


def _unread(row: Row, layout: Layout) -> Iterator[str]:
    """Columns, and keys of turns, that hold something which is not read."""
    yield from layout.unused
    yield from unknown_keys(row.values.get(layout.column("messages")), layout.column("messages"))
    if isinstance(row.values.get(layout.column("source")), (list, dict)):
        yield layout.column("source")


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(f"`{column}`" for column in columns).encode(errors="backslashreplace").decode()


def _bad(row: Row, reason: str) -> BadRow:
    return BadRow(row.path, row.name, row.line, reason, json.dumps(row.values, default=str))


def _content(example: Example) -> bytes:
    turns = (part for turn in example.history for part in (turn.role, turn.content))
    # Only where there are any: an example without them keeps the hash by which limits chose it.
    thoughts = filter(None, (example.reasoning, example.tools, *(turn.reasoning for turn in example.history)))
    return digest(example.system, example.instruction, example.context, example.response, *turns, *thoughts)


def _with_own_id(example: Example, key: bytes, ids: set[int]) -> Example:
    """The example, under an id that no earlier one has: one used before is told apart by the content's hash."""
    name, number = example.id, 0
    while (mark := int.from_bytes(digest(name)[:8], "big")) in ids:
        number += 1
        name = f"{example.id}~{key.hex()[:8]}" + (f"~{number}" if number > 1 else "")
    ids.add(mark)
    if name == example.id:
        return example
    return replace(example, id=name)
