"""How far something is, how fast it goes and how long it still takes, in words."""

from __future__ import annotations

import time

__all__ = ["Pace", "duration"]


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Pace:
    """Counts one phase after the other. Its rate counts from its first report: what was resumed took no time."""

    def __init__(self) -> None:
        self._phase: tuple[int, str] | None = None
        self._first = (0, 0.0)
        self._last = 0

    def words(self, done: int, total: int, unit: str, note: str = "") -> str:
        """``12 of 40 steps, 1.5 a second, 19 s left, loss 2``; a ``total`` of 0 is unknown."""
        now = time.monotonic()
        if (total, unit) != self._phase or done < self._last:
            self._phase, self._first = (total, unit), (done, now)
        self._last = done
        first, since = self._first
        parts = [f"{done} of {total} {unit}" if total else f"{done} {unit}"]
        if done > first and now > since:
            rate = (done - first) / (now - since)
            parts.append(f"{rate:.3g} a second")
            if total > done:
                parts.append(f"{duration((total - done) / rate)} left")
        return ", ".join([*parts, note] if note else parts)
