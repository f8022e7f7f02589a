"""The report of a grid: for the terminal, as Markdown and as a figure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sra_core.compare.words import COUNTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

    from sra_core.compare.results import Metric
    from sra_core.shards import Manifest

__all__ = ["Report", "figure", "markdown", "terminal"]

_SHORT = {"bits_per_byte": "bits/byte", "top1": "agrees with teacher"}
"""Names that columns have room for, where a metric's own is too long."""
_PERCENTAGES = ("top1", "rougeL", "chrf")
"""Metrics that one decimal is enough for."""
_AT_ONCE = 2
"""Metrics in one table of scores."""
_COST_HEAD = ("best step", "s/step", "GiB")
_GAP_HEAD = ("first - second", "difference", "p (Holm)", "b/t/w", "detectable", "seeds")
_NARROW = {
    f"ROUGE-L ({COUNTED}) ↑": "ROUGE-L ↑\n(Unicode\nwords)",
    "agrees with teacher ↑": "agrees with\nteacher ↑",
    "best step": "best\nstep",
    "detectable": "detect-\nable",
}
"""Headings that a terminal of 80 columns has no room for."""
_LEGEND = (
    "b/t/w: examples that the first does better, alike, worse. Detectable: the smallest true difference that so many "
    "show in four of five tests. * the best baseline. A difference is shown where p is below 0.05 and the interval "
    "leaves out 0."
)


@dataclass(slots=True)
class Report:
    """What a grid has shown so far.

    Attributes:
        title: Name of the benchmark.
        reference: The variant that the others are paired with.
        variants: All variants, in the order of the grid.
        metrics: What is compared, in order.
        done: Names of the cells that are done.
        missing: Name and state of the others.
        cells: A row for each finished cell.
        scores: A row for each variant and metric.
        differences: A row for each pair and metric; differences are first minus second.
        curves: (step, held-out bits per byte) by variant and seed.
        notes: What a reader must know to read the tables right.
        manifest: Of the folder that it was written to.
    """

    title: str
    reference: str
    variants: list[str]
    metrics: list[Metric]
    done: list[str]
    missing: list[tuple[str, str]]
    cells: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[tuple[str, int], list[tuple[int, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    manifest: Manifest | None = None

    def tracked(self) -> dict[str, float]:
        """Scores and differences by names that a tracking server takes."""
        found = {f"benchmark/{_slug(row['variant'])}/{row['metric']}": row["score"] for row in self.scores}
        for row in self.differences:
            pair = f"{_slug(row['first'])}_minus_{_slug(row['second'])}"
            found |= {
                f"benchmark/{pair}/{row['metric']}{suffix}": row[name]
                for suffix, name in (("", "difference"), ("_low", "low"), ("_high", "high"))
            }
        return found


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_")


def terminal(report: Report) -> list[RenderableType]:
    """Rich renderables: scores with intervals, paired differences, notes."""
    from rich.table import Table
    from rich.text import Text

    def table(title: str, head: Sequence[str], rows: Iterator[list[str]]) -> Table:
        made = Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for place, name in enumerate(head):
            heading = Text(_NARROW.get(name, name))
            made.add_column(heading, justify="right" if place else "left", no_wrap=place > 0, vertical="bottom")
        for row in rows:
            made.add_row(*(Text(cell) for cell in row))
        return made

    title = f"{report.title}, 95 % intervals"
    shown: list[RenderableType] = [
        table(title, _score_head(*part), _score_rows(report, *part)) for part in _parts(report)
    ]
    shown += [table(_gap_title(metric), _GAP_HEAD, _gap_rows(report, metric)) for metric in _compared(report)]
    legend = [_LEGEND] if report.differences else []
    return [*shown, Text(""), *(Text(note) for note in [*legend, *report.notes])]


def markdown(report: Report) -> str:
    """The report as Markdown, ready to be pasted."""
    lines = [f"# {report.title}", ""]
    for part in _parts(report):
        lines += [*_table(_score_head(*part), _score_rows(report, *part)), ""]
    lines += [
        "Mean and 95 % bootstrap interval over test examples and seeds. Time is the median step's, memory the",
        "highest of a training process, the best step the mean over seeds.",
        "",
    ]
    for metric in _compared(report):
        lines += [f"{_gap_title(metric)}:", "", *_table(_GAP_HEAD, _gap_rows(report, metric)), ""]
    if report.differences:
        lines += [
            "Paired example by example and seed by seed; p swaps examples and takes the seeds as they are, the",
            f"interval draws them too. {_LEGEND}",
            "",
        ]
    return "\n".join([*lines, *(f"{note}\n" for note in report.notes)])


def _compared(report: Report) -> list[Metric]:
    named = {row["metric"] for row in report.differences}
    return [metric for metric in report.metrics if metric.name in named]


def _gap_title(metric: Metric) -> str:
    return f"{metric.title}, on the same examples"


def _digits(metric: Metric) -> int:
    """Of a score; a difference has one more."""
    return 1 if metric.name in _PERCENTAGES else 3


def _parts(report: Report) -> Iterator[tuple[list[Metric], bool]]:
    """Metrics of each table of scores, and whether it shows what training cost: the first one does."""
    for start in range(0, max(1, len(report.metrics)), _AT_ONCE):
        yield report.metrics[start : start + _AT_ONCE], start == 0


def _score_head(metrics: Sequence[Metric], costs: bool) -> list[str]:
    scored = [f"{_SHORT.get(each.name, each.title)} {'↑' if each.higher else '↓'}" for each in metrics]
    return ["variant", *scored, *(_COST_HEAD if costs else ()), "seeds"]


def _table(head: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _score_rows(report: Report, metrics: Sequence[Metric], costs: bool) -> Iterator[list[str]]:
    for variant in dict.fromkeys([*report.variants, *(row["variant"] for row in report.scores)]):
        rows = {row["metric"]: row for row in report.scores if row["variant"] == variant}
        first = next(iter(rows.values()), None)
        if first is None:
            yield [variant, "missing", *[""] * (len(_score_head(metrics, costs)) - 3), "0"]
            continue
        shown = [_interval(each, rows[each.name], "score") if each.name in rows else "" for each in metrics]
        if costs:
            shown += [
                _number(first["best_step"], ".0f"),
                _number(first["seconds_per_step"], ".3g"),
                _number(first["peak_memory_bytes"], ".2f", 2**30),
            ]
        yield [variant, *shown, str(first["seeds"])]


def _gap_rows(report: Report, metric: Metric) -> Iterator[list[str]]:
    for row in (row for row in report.differences if row["metric"] == metric.name):
        yield [
            f"{row['first']} - {row['second']}{'*' if row['best_baseline'] else ''}",
            _interval(metric, row, "difference", "+", 1),
            f"{row['p']:.4f}",
            f"{row['better']}/{row['ties']}/{row['worse']}",
            f"{row['detectable']:.{_digits(metric) + 1}f}",
            str(row["seeds"]),
        ]


def _interval(metric: Metric, row: dict[str, Any], name: str, sign: str = "", more: int = 0) -> str:
    shown = [f"{row[key]:{sign}.{_digits(metric) + more}f}" for key in (name, "low", "high")]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _number(value: float | None, shape: str, unit: float = 1) -> str:
    return "" if value is None else f"{value / unit:{shape}}"


def figure(report: Report) -> Figure:
    """Held-out bits per byte over steps: a line for each variant's mean, a band from the lowest to the highest seed."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    made = Figure(figsize=(7, 4.5), layout="constrained")
    axes = made.add_subplot()
    for place, variant in enumerate(report.variants):
        curves = [dict(curve) for (name, _), curve in report.curves.items() if name == variant and curve]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        if steps:
            values = np.array([list(map(curve.__getitem__, steps)) for curve in curves])
            colour, style = colormaps["tab10"](place % 10), "-" if place < 10 else "--"
            axes.plot(steps, values.mean(0), style, color=colour, label=variant)
            axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="step", ylabel="held-out bits per byte", title=report.title)
    trained = [value for curve in report.curves.values() for _, value in curve[1:]]
    if len(trained) > 1 and max(trained) > min(trained):
        margin = 0.05 * (max(trained) - min(trained))  # the untrained student, in the table, would flatten all else
        axes.set_ylim(min(trained) - margin, max(trained) + margin)
    if axes.lines:
        axes.legend(fontsize=8)
    return made
