"""The terminal watches: plans, progress with rate and time left, how long each stage took."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sra_core.watch.command import as_typed
from sra_core.watch.counts import counted
from sra_core.watch.pace import Pace
from sra_core.watch.watcher import Watcher

if TYPE_CHECKING:
    from sra_core.config import RunConfig
    from sra_core.shards import Manifest

__all__ = ["TerminalWatcher", "duration"]


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


class TerminalWatcher(Watcher):
    """Prints each stage's plan, how far it is, with rate and time left, and how long it took.

    On a terminal a bar shows how far it is, and a spinner with the stage's name that it works where it cannot say how
    far (it loads models, or starts processes); elsewhere there are plain lines.
    """

    def __init__(self) -> None:
        from rich.console import Console

        # rich would colour numbers and paths, and make pictures of `:name:` in texts.
        self._console = Console(highlight=False, emoji=False)
        self._live: Any = None  # the bar or the spinner that is shown
        self._task: Any = None  # the bar's; None while it is the spinner that is shown
        self._printed = 0.0
        self._pace = Pace()
        self._started = time.monotonic()
        self._stage = ""

    def begin(self, stage: str, fingerprint: str, config: RunConfig, plan: str, *, reused: bool) -> None:
        self._started = time.monotonic()
        self._stage = stage
        state = "already done" if reused else plan
        self._say(f"[bold cyan]{stage}[/] [dim]{fingerprint}[/]  ", state)
        if not reused:
            self._spin()

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        if self._console.is_terminal:
            self._bar(done, total, unit, note)
            return
        now = time.monotonic()
        rate, _ = self._pace.rate(done, total, unit)
        if done == total or now - self._printed >= 15:
            self._printed = now
            parts = [f"{done}/{total} {unit}" if total else f"{done} {unit}"]
            parts += [f"{rate:.3g} per second"] if rate else []
            parts += [f"{duration((total - done) / rate)} left"] if rate and total > done else []
            self._say("  ", f"{', '.join(parts)}  {note}".rstrip())

    def _say(self, text: str, plain: str = "") -> None:
        """Print a line with markup, ending in a text from elsewhere, whose brackets are none."""
        from rich.markup import escape

        # soft_wrap: a line stays one line, however narrow the terminal is.
        self._console.print(text + escape(plain), soft_wrap=True)

    def _bar(self, done: int, total: int, unit: str, note: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._task is None:
            self._stop()
            left = TimeRemainingColumn(elapsed_when_finished=True)
            columns = (TextColumn("  {task.description}", markup=False), BarColumn(), MofNCompleteColumn(), left)
            self._live = Progress(*columns, TextColumn("{task.fields[note]}", markup=False), console=self._console)
            self._live.start()
            self._task = self._live.add_task(unit, total=total or None, note=note)
        self._live.update(self._task, completed=done, total=total or None, description=unit, note=note)
        if done == total:
            self._spin()

    def _spin(self) -> None:
        """Show that the stage works, where nothing says how far it is."""
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._stop()
        if self._console.is_terminal:
            columns = (TextColumn(" "), SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._live = Progress(*columns, console=self._console, transient=True)
            self._live.add_task(self._stage, total=None)
            self._live.start()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = self._task = None

    def message(self, text: str) -> None:
        self._say("  ", as_typed(text))

    def end(self, manifest: Manifest) -> None:
        self._stop()
        seconds = time.monotonic() - self._started
        self._say(f"  [green]done[/] in {seconds:.1f} s: ", counted(manifest))

    def failed(self, error: BaseException) -> None:
        self._stop()
        how = "stopped" if isinstance(error, Exception) else "interrupted"
        self._say(f"  [red]{self._stage} {how}[/]")
