"""The picture of a span alignment: the tokens of both sides on two lines, joined where both tokenizers can cut.

A span takes the place of its text, and the tokens of a side share it, so that cuts of both sides stand one below the
other, and a boundary that only one side has stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sra_core.alignment.render import visible
from sra_core.alignment.report import SpanView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_spans"]

_INK, _SOFT, _RULE = "#1f2328", "#59636e", "#8c959f"
_TEACHER, _STUDENT = "#dbeafe", "#fdead7"
_ONE, _JOINED = "#4b5563", "#c2410c"
"""Bands of spans: one token to one, and all others."""
_COLUMNS = 78
"""Characters on a line."""
_LINES = 3
_INCHES = 0.118
"""Width of a character of the tokens' font at its size."""
_SIZE = 10.5
_LABEL = 9
"""Characters that the labels of the lines take."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """A span in its place: the line, where it begins, and how wide it is, in characters."""

    line: int
    start: int
    width: int
    span: SpanView
    shade: float
    """0 to 1, of its mass among those shown; 0.35 where no masses are given."""


def draw_spans(spans: Sequence[SpanView], mass: npt.ArrayLike | None = None) -> Figure:
    """Draw spans with the tokens of both sides, as many as three lines hold.

    >>> from sra_core import align
    >>> from sra_core.alignment import draw_spans
    >>> spans = align("deepseek-ai/DeepSeek-V3", "Qwen/Qwen2.5-0.5B", "In 2026 the naïve approach fails.")
    >>> draw_spans(spans.views).savefig("spans.svg")

    Args:
        spans: K spans in the order of the text.
        mass: (K,) what each span weighs, such as the teacher's attention on it; shown as the shade of the band between
            the two lines. The root is drawn, as a few spans mostly hold almost all of it.

    Returns:
        A matplotlib figure; write it with its ``savefig``.
    """
    # Not pyplot, which keeps every figure until it is closed.
    from matplotlib.figure import Figure

    cells = _placed(spans, mass)
    lines = cells[-1].line + 1 if cells else 1
    legend = _legend(spans, cells, mass is not None)
    columns = max([_COLUMNS * (lines > 1), *(cell.start + cell.width for cell in cells)])
    height = 1.3 * lines + 0.26 * len(legend) + 0.1
    figure = Figure(figsize=((columns + _LABEL + 1) * _INCHES, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-_LABEL, columns + 1), ylim=(-height, 0))
    axes.axis("off")
    for line in range(lines):
        for text, y in (("teacher", -0.3), ("student", -0.98)):
            axes.text(-_LABEL + 0.6, y - 1.3 * line, text, color=_SOFT, size=_SIZE, va="center")
    for cell in cells:
        _draw(axes, cell)
    for number, text in enumerate(legend):
        axes.text(-_LABEL + 0.6, -1.3 * lines - 0.16 - 0.26 * number, text, color=_SOFT, size=9, va="center")
    return figure


def _placed(spans: Sequence[SpanView], mass: npt.ArrayLike | None) -> list[_Cell]:
    """The spans that fit, line by line; one that is wider than a line has a line of its own."""
    found: list[_Cell] = []
    line = start = 0
    for span in spans:
        width = max(_width(span.teacher), _width(span.student))
        if start and start + width > _COLUMNS:
            line, start = line + 1, 0
        if line == _LINES:
            break
        found.append(_Cell(line, start, width, span, 0.35))
        start += width
    if mass is None:
        return found
    shown = np.asarray(mass, float)[: len(found)]
    shades = np.sqrt(shown / max(shown.max(initial=0.0), 1e-12))
    return [
        _Cell(cell.line, cell.start, cell.width, cell.span, float(s)) for cell, s in zip(found, shades, strict=True)
    ]


def _width(tokens: Sequence[str]) -> int:
    """Characters that tokens take side by side, a little room around each."""
    from rich.cells import cell_len

    return sum(max(cell_len(visible(token)), 1) + 1 for token in tokens)


def _legend(spans: Sequence[SpanView], cells: Sequence[_Cell], masses: bool) -> list[str]:
    joined = sum(map(_joined, spans))
    counts = f"{len(spans):,} spans, {joined:,} of them with several tokens on a side (n:m)"
    if len(cells) < len(spans):
        counts += f"; the first {len(cells):,} are shown"
    lines = [f"Each band is a span: the text between two cuts that both tokenizers make. {counts}."]
    if masses:
        lines.append(
            "The darker a band, the greater the span's mass: its share of the attention of the teacher's last token."
        )
    return lines


def _joined(span: SpanView) -> bool:
    return len(span.teacher) > 1 or len(span.student) > 1


def _draw(axes: Axes, cell: _Cell) -> None:
    from matplotlib.patches import Rectangle

    top, joined = -1.3 * cell.line, _joined(cell.span)
    band = Rectangle(
        (cell.start, top - 0.8),
        cell.width,
        0.32,
        facecolor=_JOINED if joined else _ONE,
        alpha=0.08 + 0.8 * cell.shade,
        linewidth=0,
    )
    axes.add_patch(band)
    _tokens(axes, cell, cell.span.teacher, top - 0.48, _TEACHER)
    _tokens(axes, cell, cell.span.student, top - 1.16, _STUDENT)
    for x in (cell.start, cell.start + cell.width):  # a cut of both sides
        axes.plot([x, x], [top - 1.16, top - 0.12], color=_INK, linewidth=1.1, solid_capstyle="butt")
    if joined:
        ratio = f"{len(cell.span.teacher)}:{len(cell.span.student)}"
        colour = "white" if cell.shade > 0.6 else _JOINED
        axes.text(cell.start + cell.width / 2, top - 0.645, ratio, color=colour, **_CENTRED, size=8.5, weight="bold")


_CENTRED: dict[str, Any] = {"ha": "center", "va": "center"}


def _tokens(axes: Axes, cell: _Cell, tokens: Sequence[str], bottom: float, colour: str) -> None:
    """The tokens of one side, each as wide as its text, stretched to the span."""
    from matplotlib.patches import Rectangle

    scale = cell.width / _width(tokens)
    x = float(cell.start)
    for token in tokens:
        width = _width([token]) * scale
        axes.add_patch(Rectangle((x, bottom), width, 0.36, facecolor=colour, edgecolor=_RULE, linewidth=0.6))
        axes.text(x + width / 2, bottom + 0.17, visible(token), color=_INK, size=_SIZE, family="monospace", **_CENTRED)
        x += width
