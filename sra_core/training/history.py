"""What training wrote down step by step, and what its steps took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["learning_curves", "read_history", "step_costs"]


def read_history(path: Path) -> list[dict[str, float]]:
    """The metrics of a training, a report at a time."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def step_costs(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Usual seconds of a step and most bytes of a process, over every session that training took."""
    seconds = [row["train/seconds_per_step"] for row in history if "train/seconds_per_step" in row]
    memory = [row["train/peak_memory_bytes"] for row in history if "train/peak_memory_bytes" in row]
    return {"seconds_per_step": median(seconds), "peak_memory_bytes": max(memory)} if seconds and memory else {}


def learning_curves(history: Sequence[Mapping[str, float]], names: Sequence[str], title: str) -> Figure:
    """Metrics by step, each in a panel of its own as their scales differ.

    Args:
        history: Rows with ``step`` and metrics, as training keeps them.
        names: Metrics to draw; those that were never measured are left out.
        title: Title of the figure.
    """
    from matplotlib.figure import Figure

    curves = {}
    for name in names:
        if points := [(row["step"], row[name]) for row in history if name in row]:
            curves[name] = points
    rows = max(1, (len(curves) + 1) // 2)
    figure = Figure(figsize=(7, 2.2 * rows), layout="constrained")
    for number, (name, points) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows, 2, number)
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None)
        axes.set_title(name, fontsize=9)
    figure.suptitle(title)
    return figure
