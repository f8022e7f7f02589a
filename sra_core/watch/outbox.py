"""An outbox: reports to a server leave in the background, in order, and survive the server's absence.

The sender never waits and never fails. While the server is away its reports wait in memory and, if the outbox has a
spool folder, in a file there; a later outbox on the same folder delivers what a dead process left behind.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sra_core.errors import first_line

__all__ = ["Outbox", "Report"]

Report = dict[str, Any]
"""What to deliver: ``{"do": ..., ...}``, ready for JSON."""

_log = logging.getLogger(__name__)
_FIRST_DELAY, _LONGEST_DELAY = 0.25, 5.0


class Outbox:
    """Delivers reports one after the other from a background thread.

    Args:
        deliver: Sends one report; raises when that fails.
        passing: Says of an exception whether a later try may succeed. Other reports are dropped with a warning.
        merge: Returns two consecutive reports as one, or None when they must stay apart.
        spool: Folder that keeps unsent reports; None keeps them in memory alone.
        pause: Seconds after a delivery, so that reports gather into few calls; none while several wait.
    """

    def __init__(
        self,
        deliver: Callable[[Report], None],
        *,
        passing: Callable[[Exception], bool],
        merge: Callable[[Report, Report], Report | None] = lambda first, second: None,
        spool: Path | None = None,
        pause: float = 0.0,
    ) -> None:
        self._deliver, self._passing, self._merge, self._pause = deliver, passing, merge, pause
        self._pending: deque[Report] = deque()
        self._changed = threading.Condition()
        self._busy = self._closing = self._hurry = self._failing = self._unkept = False
        self._stuck_since: float | None = None  # start of the first delivery that has not succeeded
        self._spool = spool
        self._file: Path | None = None
        self._lock: FileLock | None = None
        self._adopt()
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def put(self, report: Report) -> None:
        """Queue a report; returns at once."""
        with self._changed:
            waiting = len(self._pending) - self._busy  # the head may be on its way
            merged = self._merge(self._pending[-1], report) if waiting else None
            if merged is None:
                self._pending.append(report)
            else:
                self._pending[-1] = merged
            self._changed.notify_all()

    def flush(self, patience: float) -> bool:
        """Wait until everything is delivered; give up once one delivery has not succeeded for ``patience`` seconds.

        Returns:
            Whether everything was delivered.
        """
        started = time.monotonic()
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            while self._pending:
                stuck = self._stuck_since
                if stuck is not None and time.monotonic() - max(started, stuck) >= patience:
                    break
                self._changed.wait(0.1)  # patience runs out without any change
            self._hurry = False
            return not self._pending

    def close(self, patience: float) -> Path | None:
        """Flush and stop.

        Returns:
            The spool file that keeps what could not be delivered, or None if nothing is left (or nothing is kept).
        """
        delivered = self.flush(patience)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # A delivery that hangs is not waited for: the thread is a daemon, and ends with the process.
        self._thread.join(timeout=0.5)
        with self._changed:
            if delivered or self._spool is None:
                self._forget()
                return None
            kept = self._file if self._save() else None
        if self._lock is not None:
            self._lock.release()
        return kept

    @property
    def waiting(self) -> int:
        """Reports not delivered yet."""
        with self._changed:
            return len(self._pending)

    def _work(self) -> None:
        delay = _FIRST_DELAY
        while (report := self._next()) is not None:
            error = self._try(report)
            with self._changed:
                self._busy = False
                if error is not None and self._passing(error):
                    self._fail(error)
                    self._changed.wait_for(lambda: self._closing, delay)
                    delay = min(2 * delay, _LONGEST_DELAY)
                    continue
                if error is not None:
                    _log.warning("dropped a report that was refused (%s): %s", report.get("do"), error)
                self._done()
                delay = _FIRST_DELAY
                if not self._hurry and self._pause and len(self._pending) < 2:  # else they did not merge
                    self._changed.wait_for(lambda: self._hurry or self._closing, self._pause)
                self._changed.notify_all()

    def _next(self) -> Report | None:
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing)
            if self._closing:
                return None
            self._busy = True
            self._stuck_since = self._stuck_since or time.monotonic()
            return self._pending[0]

    def _try(self, report: Report) -> Exception | None:
        try:
            self._deliver(report)
        except Exception as error:
            return error
        return None

    def _fail(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            _log.warning("reports are kept until the server answers: %s", first_line(error)[:300])
        self._save()

    def _done(self) -> None:
        self._pending.popleft()
        self._stuck_since = None
        if self._failing:
            self._failing = False
            _log.warning("the server answers again; %d reports to go", len(self._pending))
        # What was delivered leaves the file at once: after a kill the next outbox would send it again.
        if self._file is not None and self._pending:
            self._save()
        elif self._file is not None:
            self._forget()

    def _save(self) -> bool:
        """Keep all unsent reports on disk; one that takes nothing is told of once, and stops no run and no delivery."""
        if self._spool is None:
            return False
        try:
            self._write(self._spool)
        except (OSError, Timeout) as error:
            if not self._unkept:
                _log.warning("unsent reports cannot be kept in %s: %s", self._spool, first_line(error))
            self._unkept = True
            return False
        return True

    def _write(self, spool: Path) -> None:
        """Write all unsent reports to this outbox's own spool file, by rename."""
        if self._file is None:
            spool.mkdir(parents=True, exist_ok=True)
            # The time goes first: names in order are reports in the order in which they were left.
            file = spool / f"{int(time.time()):011d}-{uuid.uuid4().hex[:8]}.jsonl"
            lock = _lock_of(file)
            lock.acquire(timeout=1)
            self._file, self._lock = file, lock  # only now: without its lock another process would take the file up
        partial = self._file.with_suffix(".partial")
        partial.write_text("".join(json.dumps(report) + "\n" for report in self._pending), encoding="utf-8")
        partial.replace(self._file)

    def _forget(self) -> None:
        """Remove this outbox's spool file: all of it was delivered."""
        if self._file is not None and self._lock is not None:
            _remove(self._file, self._lock)
        self._file = self._lock = None

    def _adopt(self) -> None:
        """Queue what dead processes left in the spool folder, oldest first, and keep it in this outbox's own file."""
        taken = list(self._orphans())
        for path, _ in taken:
            self._pending.extend(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        # Kept here before the old files go: a kill in between sends reports twice, but loses none.
        kept = not self._pending or self._save()
        for path, lock in taken:
            if kept:
                _remove(path, lock)
            else:
                lock.release()
        if not kept:  # the next outbox finds them where they are
            self._pending.clear()

    def _orphans(self) -> Iterator[tuple[Path, FileLock]]:
        if self._spool is None or not self._spool.is_dir():
            return
        for path in sorted(self._spool.glob("*.jsonl")):
            lock = _lock_of(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            # Another process may have delivered and removed it before its lock was free.
            if path.exists():
                yield path, lock
            else:
                lock.release()


def _lock_of(path: Path) -> FileLock:
    # filelock's locks belong to a thread by default; this one is taken by the outbox's and let go by another.
    return FileLock(path.with_suffix(".lock"), thread_local=False)


def _remove(path: Path, lock: FileLock) -> None:
    # Removed before its lock is free, so that nobody takes it up again.
    path.unlink(missing_ok=True)
    lock.release()
    path.with_suffix(".lock").unlink(missing_ok=True)
