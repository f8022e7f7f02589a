"""What a stage tells the outside while it runs: a terminal, MLflow and Prefect each watch in their own way.

A stage knows one `Watcher`; it never knows who looks. `Watchers` passes everything on to several of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sra_core.config import RunConfig
    from sra_core.shards import Manifest

__all__ = ["TerminalWatcher", "Watcher", "Watchers", "duration", "watched"]


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

    def table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """A table, column by column."""

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

    def table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        for watcher in self.watchers:
            watcher.table(name, columns)

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


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


class TerminalWatcher(Watcher):
    """Prints each stage's plan, a progress line with rate and time left, and how long it took."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._progress: Any = None
        self._task: Any = None
        self._printed = 0.0
        self._phase: tuple[int, str] = (0, "")
        self._base = (0, 0.0)
        self._last = 0
        self._started = time.monotonic()
        self._stage = ""

    def begin(self, stage: str, fingerprint: str, config: RunConfig, plan: str, *, reused: bool) -> None:
        self._started = time.monotonic()
        self._stage = stage
        state = "already done" if reused else plan
        self._say(f"[bold cyan]{stage}[/] [dim]{fingerprint}[/]  {state}")

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        if self._console.is_terminal:
            self._bar(done, total, unit, note)
            return
        now = time.monotonic()
        if (total, unit) != self._phase or done < self._last:
            self._phase, self._base = (total, unit), (done, now)  # rates count from a phase's first report
        self._last = done
        if done == total or now - self._printed >= 15:
            self._printed = now
            first, since = self._base
            rate = (done - first) / (now - since) if done > first and now > since else 0.0
            parts = [f"{done}/{total} {unit}" if total else f"{done} {unit}"]
            parts += [f"{rate:.3g} a second"] if rate else []
            parts += [f"{duration((total - done) / rate)} left"] if rate and total > done else []
            self._say(f"  {', '.join(parts)}  {note}".rstrip())

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _bar(self, done: int, total: int, unit: str, note: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._progress is None:
            columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, TextColumn("{task.fields[note]}"), console=self._console)
            self._progress.start()
            self._task = self._progress.add_task(unit, total=total or None, note=note)
        self._progress.update(self._task, completed=done, total=total or None, description=unit, note=note)
        if done == total:
            self._stop_bar()

    def _stop_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def message(self, text: str) -> None:
        self._say(f"  {text}")

    def end(self, manifest: Manifest) -> None:
        self._stop_bar()
        counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in manifest.counts.items() if count)
        seconds = time.monotonic() - self._started
        self._say(f"  [green]done[/] in {seconds:.1f} s: {counts}")

    def failed(self, error: BaseException) -> None:
        self._stop_bar()
        how = "stopped" if isinstance(error, Exception) else "interrupted"
        self._say(f"  [red]{self._stage} {how}[/]")
