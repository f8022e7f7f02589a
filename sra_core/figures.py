"""Figures for MLflow and Prefect, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["coverage", "learning_curves", "span_lengths"]

_LONGEST = 12


def span_lengths(teacher: Mapping[int, int], student: Mapping[int, int]) -> Figure:
    """Histogram of tokens a span on both sides; longer spans are gathered in the last bar.

    Args:
        teacher, student: Number of spans by their number of tokens.
    """
    figure = _figure()
    axes = figure.subplots()
    for shift, (side, lengths) in zip((-0.2, 0.2), (("teacher", teacher), ("student", student)), strict=True):
        counts = [lengths.get(length, 0) for length in range(1, _LONGEST)]
        counts.append(sum(count for length, count in lengths.items() if length >= _LONGEST))
        share = [count / max(1, sum(counts)) for count in counts]
        axes.bar([length + shift for length in range(1, _LONGEST + 1)], share, width=0.4, label=side)
    axes.set(xlabel=f"tokens a span ({_LONGEST}: or more)", ylabel="share of spans", title="Span lengths")
    axes.legend()
    return figure


def coverage(by_group: Mapping[str, float]) -> Figure:
    """Share of response bytes inside spans, a bar a group."""
    figure = _figure()
    axes = figure.subplots()
    names = list(by_group)[::-1]
    axes.barh(names, [by_group[name] for name in names])
    axes.set(xlim=(0, 1), xlabel="share of response bytes inside spans", title="Coverage by script")
    return figure


def learning_curves(history: Sequence[Mapping[str, float]], names: Sequence[str], title: str) -> Figure:
    """Metrics by step, each in a panel of its own as their scales differ.

    Args:
        history: Rows with ``step`` and metrics, as training keeps them.
        names: Metrics to draw; those that were never measured are left out.
        title: Title of the figure.
    """
    curves = {name: [(row["step"], row[name]) for row in history if name in row] for name in names}
    curves = {name: points for name, points in curves.items() if points}
    rows = max(1, (len(curves) + 1) // 2)
    figure = _figure(height=2.2 * rows)
    for number, (name, points) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows, 2, number)
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None)
        axes.set_title(name, fontsize=9)
    figure.suptitle(title)
    return figure


def _figure(height: float = 4.0) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(7, height), layout="constrained")
