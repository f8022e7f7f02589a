"""Learning curves as inline SVG and, for tracking, as matplotlib figures. Colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from sra_core.compare.comparison import Breakdown, RunComparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "curve_names", "figures", "line_chart"]

COLOURS = 8
"""Colours that the page defines, as ``--c0`` and on; later lines start again and are dashed."""
WIDTH, HEIGHT = 400, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 24
_FIRST = ("validation/bits_per_byte", "loss", "train/loss")

Points = Sequence[tuple[float, float]]


def line_chart(series: Mapping[str, Points], colours: Mapping[str, int], label: str) -> str:
    """An SVG of lines over steps.

    Args:
        series: (step, value) points by name.
        colours: Number of each name's colour.
        label: What is shown, for those who cannot see it.
    """
    points = [point for line in series.values() for point in line]
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points), 4)
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points), 4)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for value in y_ticks:
        y = place(x_ticks[0], value)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for value in x_ticks:
        x = place(value, y_ticks[0])[0]
        anchor = "end" if value == x_ticks[-1] else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 7}" text-anchor="{anchor}">{_number(value)}</text>')
    for name, line in series.items():
        parts.append(_line([place(x, y) for x, y in line], colours[name], name))
    return "".join([*parts, "</svg>"])


def _line(points: Sequence[tuple[float, float]], colour: int, name: str) -> str:
    dashed = " dashed" if colour >= COLOURS else ""
    stroke = f'class="line{dashed}" style="stroke:var(--c{colour % COLOURS})"'
    title = f"<title>{escape(name)}</title>"
    if len(points) == 1:
        x, y = points[0]
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="fill:var(--c{colour % COLOURS})">{title}</circle>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline {stroke} points="{path}">{title}</polyline>'


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that span a range: at least two, about as many as asked."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(start, end + 1)]


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.1e}"


def curve_names(comparison: RunComparison) -> list[str]:
    """Training metrics worth a chart: held-out bits per byte, the loss, then what else the runs logged."""
    names = list(dict.fromkeys(name for run in comparison.runs for name in run.curves))
    return sorted(names, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), names.index(name)))


def figures(comparison: RunComparison) -> dict[str, Callable[[], Figure]]:
    """The report's figures for tracking: ``learning_curves``, ``scores`` and ``bits_per_byte_by_prompt_length``.

    Each is drawn when called. Those with nothing to show are left out.
    """
    found: dict[str, Callable[[], Figure]] = {}
    names = curve_names(comparison)[:4]
    if names:
        found["learning_curves"] = partial(_curves, comparison, names)
    found["scores"] = partial(_scores, comparison)
    for part in comparison.breakdowns:
        if part.title == "prompt length":
            found[f"{part.metric.name}_by_prompt_length"] = partial(_bands, part)
    return found


def _curves(comparison: RunComparison, names: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(names), 3.5), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        for run in comparison.runs:
            if name in run.curves:
                axes.plot(*zip(*run.curves[name], strict=True), label=run.name)
        axes.set(title=name, xlabel="step")
        axes.legend()
    return figure


def _scores(comparison: RunComparison) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(comparison.metrics), 3.5), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(comparison.metrics)))
    for axes, result in zip(panels, comparison.metrics.values(), strict=True):
        for place, score in enumerate(result.scores.values()):
            spread = [[score.estimate - score.low], [score.high - score.estimate]]
            axes.errorbar(score.estimate, place, xerr=spread, fmt="o", capsize=3)
        axes.set_yticks(range(len(result.scores)), list(result.scores))
        axes.invert_yaxis()
        axes.set(title=result.metric.title)
    return figure


def _bands(part: Breakdown) -> Figure:
    """A metric by prompt length, a line a system with its intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    groups = list(part.groups)
    for number, system in enumerate(part.groups[groups[0]]):
        scores = [part.groups[group][system] for group in groups]
        spread = [[each.estimate - each.low for each in scores], [each.high - each.estimate for each in scores]]
        places = [place + 0.06 * number for place in range(len(groups))]  # apart, so that intervals stay readable
        axes.errorbar(places, [each.estimate for each in scores], yerr=spread, fmt="o-", capsize=3, label=system)
    axes.set_xticks(range(len(groups)), groups)
    axes.set(title=f"{part.metric.title} by prompt length")
    axes.legend()
    return figure
