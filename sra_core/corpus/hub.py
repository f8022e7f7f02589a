"""Rows of a data set on the Hugging Face hub, by id and revision."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from sra_core.config import CorpusConfig
from sra_core.corpus.types import BadRow, Row
from sra_core.errors import DataError

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

    @cached_property
    def revision(self) -> str:
        """The commit that the revision stands for: the hub knows it, and without a network its local cache may."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        asked = self._config.revision
        if asked and COMMIT.fullmatch(asked):
            return asked
        try:
            return str(HfApi().dataset_info(self._config.source, revision=asked).sha)
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
            known = _cached_commit(self._config.source, asked or "main")
            if known is None:
                raise _unreachable(self._config, error) from error
            return known

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

    def __iter__(self) -> Iterator[Row | BadRow]:
        name = self._config.source.rpartition("/")[2]
        for line, values in enumerate(self._open(), 1):
            yield Row(self._config.source, name, line, dict(values))

    def _open(self) -> Any:
        from datasets import load_dataset

        config = self._config
        try:
            return load_dataset(
                config.source,
                config.subset,
                split=config.hub_split,
                revision=self.revision,
                streaming=config.streaming,
            )
        except (OSError, ValueError) as error:
            raise _unreachable(config, error) from error


def _cached_commit(source: str, revision: str) -> str | None:
    from huggingface_hub.constants import HF_HUB_CACHE

    ref = Path(HF_HUB_CACHE) / f"datasets--{source.replace('/', '--')}" / "refs" / revision
    return ref.read_text().strip() if ref.is_file() else None


def _unreachable(config: CorpusConfig, error: Exception) -> DataError:
    what = f"subset {config.subset or 'default'}, split {config.hub_split}, revision {config.revision or 'default'}"
    return DataError(
        f"data set {config.source} ({what}) cannot be read from the hub: {str(error).strip() or type(error).__name__}",
        "check corpus.source, subset, hub_split and revision, and the network; if you meant a file or folder, "
        "there is none of that name here",
    )
