"""The corpus: one deterministic stream of examples, each in its split, and of all that was turned away and why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sra_core.config import CorpusConfig
from sra_core.corpus.files import Files, is_data_file
from sra_core.corpus.hub import HubRows
from sra_core.corpus.layouts import Layout, examples, find_layout, unknown_layout
from sra_core.corpus.python_docs import PythonDocs
from sra_core.corpus.quarantine import Quarantine
from sra_core.corpus.split import SPLITS, Limit, digest, rank_of, split_of
from sra_core.corpus.types import BadRow, Example, MalformedRow, Rejected, Row, Source
from sra_core.errors import ConfigError, DataError

__all__ = ["Corpus", "open_source"]

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
RULES = 1
"""Raise when the same rows and config give other examples than before: stage results made by the old rules expire."""


def open_source(config: CorpusConfig) -> Source:
    """What ``config.source`` names: the embedded documentation, files, or a hub data set.

    Raises:
        ConfigError: If a field is set that the source would ignore.
        DataError: If there is no such source.
    """
    if config.source == "python-docs":
        _refuse(config, "revision", "subset", "hub_split", "streaming", "layout", "columns")
        return PythonDocs()
    local = "://" in config.source or Path(config.source).expanduser().exists() or is_data_file(config.source)
    if local or not HUB_ID.fullmatch(config.source):
        _refuse(config, "revision", "subset", "hub_split", "streaming")
        return Files(config.source)
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
    number for each example admitted to a limited split. With a limit, the rows are read twice: once to find the lowest
    hashes, once to hand out the examples.

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

    def identity(self) -> dict[str, Any]:
        """All that determines the examples, ready for JSON: the data's content and the fields that shape it.

        Where the data lies is not in it: the same files elsewhere have the same identity.

        Raises:
            DataError: If the data cannot be read, or a hub revision cannot be resolved.
        """
        return dict(self._identity)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        place = {"source", "revision", "subset", "hub_split", "streaming"}
        fields = self._config.model_dump(mode="json", exclude=place)
        return {"rules": RULES, "data": self._source.identity(), "fields": fields}

    def __iter__(self) -> Iterator[tuple[str, Example | Rejected]]:
        """Pairs of split (``train``, ``validation``, ``test``, or empty for what was rejected before) and item.

        Raises:
            DataError: If the data cannot be read, its columns are not recognised, or too many rows are malformed.
        """
        gates = {split: limit.gate() for split, limit in self._limits.items()}
        for split, rank, item in self._scan():
            if isinstance(item, Example) and not gates[split](rank):
                detail = f"corpus.max_{split} keeps {self._limits[split].size} examples, those with the lowest hashes"
                item = Rejected(item.id, "over_limit", detail)
            yield split, item

    @cached_property
    def _limits(self) -> dict[str, Limit]:
        limits = {split: Limit(getattr(self._config, f"max_{split}")) for split in SPLITS}
        if any(limit.size is not None for limit in limits.values()):
            for split, rank, item in self._scan():
                if isinstance(item, Example):
                    limits[split].offer(rank)
        return limits

    def _scan(self) -> Iterator[tuple[str, int, Example | Rejected]]:
        """One pass over the rows: split, rank and item; limits are not applied yet."""
        seen: set[bytes] = set()
        ids: set[int] = set()
        for group, item in self._items():
            if isinstance(item, Rejected):
                yield "", 0, item
                continue
            problem = self._length_problem(item)
            if problem:
                yield "", 0, Rejected(item.id, *problem)
                continue
            key = _content(item)
            split = split_of(group, self._config)
            if self._config.deduplicate:
                if key in seen:
                    yield split, 0, Rejected(item.id, "duplicate", "an earlier example has the same content")
                    continue
                seen.add(key)
            yield split, rank_of(key), _with_own_id(item, key, ids)

    def _items(self) -> Iterator[tuple[bytes, Example | Rejected]]:
        quarantine = Quarantine(self._quarantine, self._config.max_malformed)
        unseen: dict[str, str] = {str(field): column for field, column in self._config.columns.items()}
        layout, path, line = None, "", 0
        for row in self._source:
            line = row.line
            if isinstance(row, BadRow):
                yield b"", quarantine.add(row)
                continue
            if layout is None or row.path != path:
                layout, path = find_layout(self._config, row, self._source.layout), row.path
            if layout is None:
                yield b"", quarantine.add(_bad(row, "its columns fit no layout"), unknown_layout(self._config, row))
                continue
            for field in [field for field, column in unseen.items() if column in row.values]:
                del unseen[field]
            yield from _row_items(row, layout, self._config, quarantine, self._several)
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


def _row_items(
    row: Row, layout: Layout, config: CorpusConfig, quarantine: Quarantine, several: bool
) -> Iterator[tuple[bytes, Example | Rejected]]:
    try:
        yield from list(examples(row, layout, config, several))
    except MalformedRow as error:
        yield b"", quarantine.add(_bad(row, str(error)))


def _bad(row: Row, reason: str) -> BadRow:
    return BadRow(row.path, row.name, row.line, reason, json.dumps(row.values, default=str))


def _content(example: Example) -> bytes:
    turns = (part for turn in example.history for part in (turn.role, turn.content))
    return digest(example.system, example.instruction, example.context, example.response, *turns)


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
