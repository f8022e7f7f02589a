"""Means and rates of training between two reports."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Meter", "average", "peak_memory"]


class Meter:
    """Means of the terms and rates since the last report. Nothing is read from the device before a report.

    Args:
        tokens: Tokens of all processes so far: those of earlier sessions, where training is resumed.
    """

    def __init__(self, tokens: int = 0) -> None:
        self._open(tokens)

    def _open(self, tokens: int) -> None:
        self._terms: list[dict[str, Tensor]] = []
        self._norms: list[float] = []
        self._tokens = tokens
        self._started = self._mark = time.monotonic()
        self._wait = self._apart = 0.0

    def waited(self) -> None:
        """The batch has arrived: what passed since the last step was waiting for data."""
        self._wait += time.monotonic() - self._mark

    def add(self, terms: dict[str, Tensor], norm: float | None) -> None:
        """A step is done."""
        self._terms.append(terms)
        if norm is not None:
            self._norms.append(norm)
        self._mark = time.monotonic()

    def pause(self) -> None:
        """Validation or a checkpoint took the time since the last step: it counts for neither rate nor waiting."""
        now = time.monotonic()
        self._apart += now - self._mark
        self._mark = now

    def close(self, tokens: int) -> dict[str, float]:
        """The means, and a new window.

        Args:
            tokens: Tokens of all processes so far.
        """
        seconds = max(time.monotonic() - self._started - self._apart, 1e-9)
        values = {name: float(value) for name, value in mean_terms(self._terms).items()}
        if self._norms:
            values["gradient_norm"] = sum(self._norms) / len(self._norms)
        values["seconds_per_step"] = seconds / len(self._terms)
        values["tokens_per_second"] = (tokens - self._tokens) / seconds
        values["data_wait_share"] = self._wait / seconds
        self._open(tokens)
        return values


def mean_terms(terms: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Each term's mean."""
    means = {}
    for name in terms[0]:
        means[name] = torch.stack([each[name] for each in terms]).mean()
    return means


def average(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Each value's mean over all processes."""
    # One reduction for all values, so every process needs the same names in the same order.
    stacked = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(stacked)
    world = torch.distributed.get_world_size()
    return dict(zip(values, (stacked / world).tolist(), strict=True))


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held so far: the GPU's where it computes there, else the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024  # bytes on macOS, KiB on Linux
