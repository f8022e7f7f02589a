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
        remembered = _ref(self._config.source, asked or "main")
        try:
            commit = str(HfApi().dataset_info(self._config.source, revision=asked).sha)
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
            if remembered.is_file():
                return remembered.read_text().strip()
            raise _unreachable(self._config, error) from error
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

    def __iter__(self) -> Iterator[Row | BadRow]:
        name = self._config.source.rpartition("/")[2]
        for line, values in enumerate(self._open(), 1):
            yield Row(self._config.source, name, line, dict(values))

    def _open(self) -> Any:
        from datasets import load_dataset_builder

        config = self._config
        try:
            builder = load_dataset_builder(config.source, config.subset, revision=self.revision)
            # Without a network, `datasets` takes the latest copy it has, of whatever commit.
            if COMMIT.fullmatch(builder.hash) and builder.hash != self.revision:
                raise _unreachable(config, ValueError(f"only commit {builder.hash} is on this machine"))
            if config.streaming:
                return builder.as_streaming_dataset(split=config.hub_split)
            builder.download_and_prepare()
            return builder.as_dataset(split=config.hub_split)
        except (OSError, ValueError) as error:
            raise _unreachable(config, error) from error


def _ref(source: str, revision: str) -> Path:
    """Where the hub client keeps the commit that a branch or tag last stood for."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"datasets--{source.replace('/', '--')}" / "refs" / revision


def _unreachable(config: CorpusConfig, error: Exception) -> DataError:
    what = f"subset {config.subset or 'default'}, split {config.hub_split}, revision {config.revision or 'default'}"
    return DataError(
        f"data set {config.source} ({what}) cannot be read from the hub: {str(error).strip() or type(error).__name__}",
        "check corpus.source, subset, hub_split and revision, and the network; if you meant a file or folder, "
        "there is none of that name here",
    )
