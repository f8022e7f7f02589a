"""Rows of a folder that the `datasets` library wrote with `save_to_disk`: one data set, or one a split."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from sra_core.config import CorpusConfig
from sra_core.corpus.files import Columns, Files, own_splits
from sra_core.corpus.formats import ROWS_AT_ONCE, arrow_rows
from sra_core.corpus.types import BadRow, Row
from sra_core.errors import DataError

__all__ = ["SavedRows", "is_saved"]

WHOLE, PARTS = "state.json", "dataset_dict.json"


def is_saved(source: str) -> bool:
    """Whether a source is such a folder."""
    folder = Path(source).expanduser()
    return (folder / PARTS).is_file() or ((folder / WHOLE).is_file() and (folder / "dataset_info.json").is_file())


class SavedRows:
    """The rows of a saved data set; of one with splits, those that are train, validation and test by their names.

    Raises:
        DataError: If it cannot be read, or none of its splits is known by name.
    """

    layout: str | None = None

    def __init__(self, config: CorpusConfig) -> None:
        self._shown = config.source.rstrip("/")
        self._folder = Path(config.source).expanduser()
        self._columns = Columns(config)
        names = self._names()
        self._parts = own_splits(names, config, self._shown) if names else {"": ""}
        if "" in self._parts.values() and len(self._parts) > 1 and not config.splits:
            self._parts = {name: split for name, split in self._parts.items() if split}
        self.brought = frozenset(self._parts.values()) & {"validation", "test"}
        skipped = ", ".join(name for name in names if name not in self._parts)
        read = [f"{name} as {split or 'train'}" for name, split in self._parts.items() if name]
        self._told = (
            [f"{self._shown}: read {', '.join(read)}" + (f"; not read: {skipped}" if skipped else "")] if read else []
        )

    @property
    def notes(self) -> list[str]:
        return [*self._told, *self._columns.notes()]

    def _names(self) -> list[str]:
        path = self._folder / PARTS
        try:
            return list(map(str, json.loads(path.read_text())["splits"])) if path.is_file() else []
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: damaged: {error}", "save the data set again with save_to_disk") from error

    @cached_property
    def _files(self) -> dict[str, Files]:
        return {name: Files(CorpusConfig(source=str(self._folder / name))) for name in self._parts}

    def identity(self) -> dict[str, Any]:
        """The content of every file, by split."""
        return {
            "kind": "saved",
            "parts": [[name, split, self._files[name].identity()] for name, split in self._parts.items()],
        }

    def __iter__(self) -> Iterator[Row | BadRow]:
        import pyarrow as pa
        from datasets import load_from_disk

        for name, split in self._parts.items():
            path = f"{self._shown}/{name}" if name else self._shown
            try:
                data = load_from_disk(str(self._folder / name))
                names = list(data.column_names)
                columns = self._columns.wanted(path, names)
                # As Arrow, so that a value which Python has no form for costs its own row alone.
                kept = data.select_columns(names[:1] if columns is None else columns).with_format("arrow")
                for row in arrow_rows(kept.iter(ROWS_AT_ONCE), names, columns, path, name or "data"):
                    yield Row(row.path, row.name, row.line, row.values, split) if isinstance(row, Row) else row
            except (OSError, ValueError, pa.ArrowException) as error:
                raise DataError(f"{path}: cannot be read: {error}", "save it again with save_to_disk") from error
