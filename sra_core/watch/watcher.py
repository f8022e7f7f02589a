"""What a stage tells the outside while it runs: a terminal, MLflow and Prefect each watch in their own way.

A stage knows one `Watcher`; it never knows who looks. `Watchers` passes everything on to several of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sra_core.config import RunConfig
    from sra_core.shards import Manifest

__all__ = ["Watcher", "Watchers", "watched"]


class Watcher:
    """Receives what a stage reports. Every method does nothing here; subclasses override what they show."""

    def begin(self, stage: str, fingerprint: str, config: RunConfig, plan: str, *, reused: bool) -> None:
        """A stage starts (or, when ``reused``, was found finished). ``plan`` says in words what it will do."""

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        """``done`` of ``total`` units (0: unknown) are finished; ``note`` is a short live figure such as the loss."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Numbers by name; ``step`` counts optimizer steps in training and is None for totals."""

    def figure(self, name: str, draw: Callable[[], Figure]) -> None:
        """A matplotlib figure; whoever keeps it calls ``draw``."""

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table; its rows have the same columns."""

    def markdown(self, name: str, text: str) -> None:
        """A short report in Markdown."""

    def artifact(self, path: Path) -> None:
        """A file worth keeping with the run."""

    def message(self, text: str) -> None:
        """One line that a person should see now."""

    def end(self, manifest: Manifest) -> None:
        """The stage is done; its result is what the manifest says."""

    def failed(self, error: BaseException) -> None:
        """The stage stopped with ``error``."""


class Watchers(Watcher):
    """Passes every report on to several watchers, in order."""

    def __init__(self, *watchers: Watcher) -> None:
        self.watchers = watchers

    def begin(self, stage: str, fingerprint: str, config: RunConfig, plan: str, *, reused: bool) -> None:
        for watcher in self.watchers:
            watcher.begin(stage, fingerprint, config, plan, reused=reused)

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        for watcher in self.watchers:
            watcher.progress(done, total, unit, note)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        for watcher in self.watchers:
            watcher.metrics(values, step)

    def figure(self, name: str, draw: Callable[[], Figure]) -> None:
        for watcher in self.watchers:
            watcher.figure(name, draw)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        for watcher in self.watchers:
            watcher.table(name, rows)

    def markdown(self, name: str, text: str) -> None:
        for watcher in self.watchers:
            watcher.markdown(name, text)

    def artifact(self, path: Path) -> None:
        for watcher in self.watchers:
            watcher.artifact(path)

    def message(self, text: str) -> None:
        for watcher in self.watchers:
            watcher.message(text)

    def end(self, manifest: Manifest) -> None:
        for watcher in self.watchers:
            watcher.end(manifest)

    def failed(self, error: BaseException) -> None:
        for watcher in self.watchers:
            watcher.failed(error)


@contextmanager
def watched(
    watch: Watcher, stage: str, fingerprint: str, config: RunConfig, plan: str, *, reused: bool = False
) -> Iterator[None]:
    """Report the begin of a stage, and its failure if the body raises (cancellation included)."""
    watch.begin(stage, fingerprint, config, plan, reused=reused)
    try:
        yield
    except BaseException as error:
        watch.failed(error)
        raise
