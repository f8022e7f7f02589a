"""How fast a stage goes."""

from __future__ import annotations

import time

__all__ = ["Pace"]


class Pace:
    """Rate of progress, counted from the first report of each phase: what was done before is no speed."""

    def __init__(self) -> None:
        self._phase: tuple[int, str] | None = None
        self._first = (0, 0.0)
        self._last = 0

    def rate(self, done: int, total: int, unit: str) -> tuple[float, bool]:
        """Units a second, 0 while unknown, and whether a new phase begins: another unit or total, or a lower count."""
        now = time.monotonic()
        begins = (total, unit) != self._phase or done < self._last
        if begins:
            self._phase, self._first = (total, unit), (done, now)
        self._last = done
        count, seconds = done - self._first[0], now - self._first[1]
        # What arrives at once was done before it was told, such as the steps of a training that was resumed at its end.
        return (count / seconds if count and seconds > 0.01 else 0.0), begins
