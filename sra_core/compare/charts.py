"""Learning curves for the page, in the colours of its style, and figures for tracking. All are drawn by matplotlib."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

import numpy as np

from sra_core.compare.comparison import Breakdown, RunComparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "curve_names", "figures", "line_chart"]

COLOURS = 8
"""Colours that the page defines, as ``--c0`` and on; later lines start again and are dashed."""
_RULE, _SOFT = "#c0ffea", "#c0ffeb"
_FIRST = ("validation/bits_per_byte", "loss", "train/loss")

Points = Sequence[tuple[float, float]]


def line_chart(series: Mapping[str, Points], colours: Mapping[str, int], label: str) -> str:
    """An SVG of lines over steps, in the colours of the page.

    Args:
        series: (step, value) points by name.
        colours: Number of each name's colour.
        label: What is shown, for those who cannot see it.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sra", "axes.edgecolor": _RULE, "font.size": 8}):
        figure = Figure(figsize=(4, 2.4), layout="constrained")
        axes = figure.subplots()
        for name, line in series.items():
            style = "--" if colours[name] >= COLOURS else "-"
            marker = "o" if len(line) == 1 else None
            axes.plot(*zip(*line, strict=True), style, marker=marker, color=_stand_in(colours[name]))
        axes.grid(axis="y", color=_RULE)
        axes.tick_params(colors=_SOFT)
        axes.spines[["top", "right"]].set_visible(False)
        with StringIO() as text:
            figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
            svg = text.getvalue()
    # Inside HTML an SVG needs no name spaces, whose addresses would be the only ones on the page.
    svg = re.sub(r"<metadata>.*?</metadata>| xmlns(:\w+)?=\"[^\"]*\"", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    for number in range(COLOURS):  # matplotlib knows no variables of CSS
        svg = svg.replace(_stand_in(number), f"var(--c{number})")
    return svg.replace(_RULE, "var(--rule)").replace(_SOFT, "var(--soft)")


def _stand_in(colour: int) -> str:
    """A colour that nothing else has, which the page's own takes the place of."""
    return f"#c0ffe{colour % COLOURS}"


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
