"""What a grid will take, told before it starts: from its cells that are done, else from a plan of its first cell."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from statistics import median

from sra_core.bench.grid import SHARED, Bench, Cell
from sra_core.config import RunConfig
from sra_core.errors import ManifestMismatch
from sra_core.shards import Manifest
from sra_core.watch import duration

__all__ = ["Predict", "forecast", "left"]

Predict = Callable[[RunConfig], dict[str, float]]
"""Predicts the seconds of a run's stages, by name."""


def forecast(bench: Bench, predict: Predict, now: datetime) -> str:
    """How many cells are to run, what they will take and when they will be done, in a line.

    Cells of a variant take what those of it that are done took (the median), else what all that are done took, on
    whichever machine that was; where none is, what ``predict`` says of the first one, for all alike.

    Args:
        bench: The grid; cells that another process holds count as to be run.
        predict: Asked only where no cell is done.
        now: The time that the end is counted from.
    """
    ended = {cell: bench.scores(cell) for cell in bench.cells}
    waiting = [cell for cell in bench.selected if ended[cell] is None]
    if not waiting:
        return f"all {len(bench.selected)} cells are done"
    took: dict[str, list[float]] = {}
    for cell, scores in ended.items():
        if scores is not None and (seconds := _seconds(bench, cell, scores)) is not None:
            took.setdefault(cell.variant, []).append(seconds)
    if took:
        every = median(seconds for of_variant in took.values() for seconds in of_variant)
        total = sum(median(took.get(cell.variant, [every])) for cell in waiting)
        done = sum(map(len, took.values()))
        source = "by the cell that is done" if done == 1 else f"by the {done} cells that are done"
    else:
        stages = predict(waiting[0].config)
        shared = sum(stages.get(stage, 0.0) * _made_anew(bench, stage) for stage in SHARED)
        total = shared + len(waiting) * sum(seconds for stage, seconds in stages.items() if stage not in SHARED)
        source = f"by a plan of {waiting[0].name} (other objectives take longer or shorter)"
    end = (now + timedelta(seconds=total)).strftime("%H:%M on %d %B")
    return f"{len(waiting)} of {len(bench.selected)} cells to run: about {duration(total)} {source}, done at {end}"


def left(done: int, remaining: int, seconds: float) -> str:
    """Time left in words, from the cells that were done in so many seconds, by whichever processes."""
    return f", about {duration(remaining * seconds / done)} left" if done and remaining else ""


def _seconds(bench: Bench, cell: Cell, scores: Manifest) -> float | None:
    """What a cell took: its training, and from there to its scores."""
    trained = bench.student(cell)
    if trained is None or "distill/seconds" not in trained.metrics:
        return None
    # a cell that was stopped in between counts the pause too: hence the median over cells
    scored = datetime.fromisoformat(scores.created) - datetime.fromisoformat(trained.created)
    return trained.metrics["distill/seconds"] + scored.total_seconds()


def _made_anew(bench: Bench, stage: str) -> int:
    """How many results of a shared stage the grid still has to make."""
    runs = [cell.run for cell in bench.selected if stage in cell.run.stages]
    try:
        folders = {run.fingerprint(stage): run.folder(stage) for run in runs}
    except ManifestMismatch:  # built on adapted teachers that are not there yet
        return len({run.fingerprint("adapt") for run in runs})
    return sum(folder.manifest() is None for folder in folders.values())
