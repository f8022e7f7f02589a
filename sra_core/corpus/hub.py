"""Rows of a data set on the Hugging Face hub, by id and revision."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from sra_core.config import CorpusConfig
from sra_core.corpus.files import Columns, own_splits
from sra_core.corpus.split import named_split
from sra_core.corpus.types import BadRow, Row
from sra_core.errors import DataError, SraError, first_line, is_full

__all__ = ["HubRows"]

COMMIT = re.compile(r"[0-9a-f]{40}")


class HubRows:
    """The rows of one split of a hub data set, downloaded or streamed; ``line`` counts the rows from 1.

    Raises:
        DataError: If the data set, subset, split or revision does not exist or cannot be reached.
    """

    layout: str | None = None

    def __init__(self, config: CorpusConfig) -> None:
        self._config = config
        self._columns = Columns(config)

    @cached_property
    def revision(self) -> str:
        """The commit that the revision stands for: the hub knows it, and without a network its local cache may."""
        from huggingface_hub import HfApi, errors

        asked = self._config.revision
        if asked and COMMIT.fullmatch(asked):
            return asked
        remembered = _ref(self._config.source, asked or "main")
        try:
            commit = str(HfApi().dataset_info(self._config.source, revision=asked).sha)
        except (errors.HTTPError, OSError) as error:  # offline mode is an OSError too
            if remembered.is_file():
                return remembered.read_text().strip()
            raise _unreachable(self._config, error) from error
        # Kept where the hub client keeps it: without a network the branch or tag still stands for a commit.
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.write_text(commit)
        return commit

    def identity(self) -> dict[str, Any]:
        """Id, subset and split, and the commit that the revision stands for."""
        config = self._config
        return {
            "kind": "hub",
            "id": config.source,
            "revision": self.revision,
            "subset": config.subset,
            "split": config.hub_split,
        }

    @property
    def brought(self) -> frozenset[str]:
        return frozenset(self._parts.values()) & {"validation", "test"}

    @property
    def notes(self) -> list[str]:
        read = ", ".join(f"{name} as {split or 'train'}" for name, split in self._parts.items())
        skipped = [name for name in self._data if name not in self._parts]
        told = f"{self._config.source}: read {read}" + (f"; not read: {', '.join(skipped)}" if skipped else "")
        return [told, *self._columns.notes()]

    def __iter__(self) -> Iterator[Row | BadRow]:
        name = self._config.source.rpartition("/")[2]
        for part, split in self._parts.items():
            # The split asked for keeps the plain names of rows; another one's are told apart by it.
            own = name if len(self._parts) == 1 or split in ("", "train") else f"{name}/{part}"
            for line, values in enumerate(self._read(part), 1):
                yield Row(self._config.source, own, line, values, split)

    def _read(self, part: str) -> Iterator[dict[str, Any]]:
        """The rows of a split: a stream may break at any of them, and data turn out to be unreadable."""
        rows, count = iter(self._data[part]), 0
        while True:
            try:
                values = next(rows)
            except StopIteration:
                return
            except Exception as error:  # of any kind: http clients, file systems and decoders have their own
                raise DataError(
                    f"data set {self._config.source}, split {part}, cannot be read after row {count:,}: "
                    f"{first_line(error)}",
                    "run it again, with corpus.streaming off if the network breaks; a row that is damaged stays so at "
                    "that revision",
                ) from error
            count += 1
            yield dict(values)

    @cached_property
    def _parts(self) -> dict[str, str]:
        """The split that each split of the data set is read as: the one asked for, and what it brings beside it."""
        config, there = self._config, list(self._data)
        if config.splits:
            return own_splits(there, config, config.source)
        asked = config.hub_split
        # A split that was asked for is all that is read; beside train, what the data set holds out is taken as such.
        if asked != "train":
            return {asked: ""}
        others = {name: named_split(name) for name in there if name != asked}
        return {asked: "", **{name: split for name, split in others.items() if split in ("validation", "test")}}

    @cached_property
    def _data(self) -> Mapping[str, Any]:
        """The splits by name; ``corpus.hub_split`` may also be an expression such as ``train[:10%]``."""
        from datasets import load_dataset_builder

        config = self._config
        try:
            builder = load_dataset_builder(config.source, config.subset, revision=self.revision)
            # Without a network, `datasets` takes the latest copy it has, of whatever commit.
            if COMMIT.fullmatch(builder.hash) and builder.hash != self.revision:
                raise _unreachable(config, ValueError(f"only commit {builder.hash} is on this machine"))
            if not config.streaming:
                builder.download_and_prepare()
            opened = builder.as_streaming_dataset if config.streaming else builder.as_dataset
            if config.hub_split != "train" and not config.splits:
                return {config.hub_split: self._read_columns(opened(split=config.hub_split))}
            found = opened()
            if not config.splits and config.hub_split not in found:
                raise ValueError(f"there is no split {config.hub_split}; there are {', '.join(map(str, found))}")
            return {str(name): self._read_columns(data) for name, data in found.items()}
        except SraError:
            raise
        except Exception as error:  # of any kind, as above
            raise _unreachable(config, error) from error

    def _read_columns(self, data: Any) -> Any:
        """The data without columns that no layout knows: pictures and the like cost time, odd values an error."""
        wanted = None if data.column_names is None else self._columns.wanted(self._config.source, data.column_names)
        return data if wanted is None else data.select_columns(wanted)


def _ref(source: str, revision: str) -> Path:
    """Where the hub client keeps the commit that a branch or tag last stood for."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"datasets--{source.replace('/', '--')}" / "refs" / revision


def _unreachable(config: CorpusConfig, error: Exception) -> DataError:
    what = f"subset {config.subset or 'default'}, split {config.hub_split}, revision {config.revision or 'default'}"
    return DataError(
        f"data set {config.source} ({what}) cannot be read from the hub: {str(error).strip() or type(error).__name__}",
        "free space, set HF_HOME to a folder with room, or set corpus.streaming"
        if is_full(error)
        else "check corpus.source, subset, hub_split, splits and revision, and the network; if you meant a file or "
        "folder, there is none of that name here",
    )
