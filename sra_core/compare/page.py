"""A comparison for people: tables on the terminal and one self-contained HTML page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sra_core.compare.charts import COLOURS, curve_names, line_chart
from sra_core.compare.comparison import Case, MetricResult, RunComparison
from sra_core.compare.intervals import Comparison, Interval
from sra_core.compare.results import Metric
from sra_core.shards import atomic_write

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

__all__ = ["html_report", "page_name", "report_tables", "terminal_report", "write_report"]

CASES = 200
"""Examples shown with their texts; the largest gaps come first."""
CURVES = 8
_LEVEL = 0.05
"""A difference is shown where its p, corrected, is below this and its 95 % interval leaves out 0."""
_READING = (
    "p: share of random swaps of the two that give a difference as large, Holm-corrected. w/t/l: examples on which "
    "the first is better, the same, worse. detectable: smallest true difference that these examples would show in "
    "four of five tests; a smaller one may exist unseen."
)
PERCENTAGES = ("rouge1", "rouge2", "rougeL", "chrf", "top1")
ALL = "all"
"""Stands for all data sets in tables for tracking."""
_BETTER = {True: "higher is better", False: "lower is better"}


def terminal_report(comparison: RunComparison) -> list[RenderableType]:
    """Rich renderables, one narrow table a question: scores, differences, data sets, answers, settings, notes."""
    from rich.text import Text

    shown: list[RenderableType] = []
    for result in _main(comparison):
        shown += [_title(_about(result)), _score_table(result)]
        if result.pairs:
            shown += [_title(f"Differences in {result.metric.title}, example by example"), _difference_table(result)]
            shown += [Text(line) for line in _verdicts(result, comparison.students)]
        if result.parts:
            shown += [_title(f"{result.metric.title} by data set"), _dataset_table(result)]
    if any(result.pairs for result in _main(comparison)):
        shown.append(Text(f"\n{_READING}", style="dim"))
    others = [result for result in comparison.metrics.values() if result not in _main(comparison)]
    if others:
        shown += [_title("Other scores"), _other_table(comparison.systems, others)]
    if comparison.answers:
        shown += [_title("Answers: all are scored, none is dropped"), _answer_table(comparison)]
    if comparison.differing:
        shown += [_title("Settings that differ"), _setting_table(comparison)]
    return [*shown, *(Text(f"\n{note}") for note in comparison.notes)]


def _title(text: str) -> Text:
    return _text(f"\n{text}", "bold")


def _text(name: str, style: str = "") -> Text:
    """A name as it is: brackets in it are no markup."""
    from rich.text import Text

    return Text(name, style=style)


def _table(*columns: str) -> Table:
    """A borderless table: the first column text, the others numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(_text(name), justify="right" if number else "left", overflow="fold")
    return table


def _verdicts(result: MetricResult, students: list[str]) -> Iterator[str]:
    """A sentence on each two students."""
    for first, second in result.pairs:
        if first in students and second in students:
            yield f"{first} against {second}: {_verdict(result, first, second)}."


def _about(result: MetricResult) -> str:
    sets = f", mean of {len(result.parts)} data sets" if result.parts else ""
    return f"{result.metric.title} ({_BETTER[result.metric.higher]}), {result.examples} examples{sets}"


def _score_table(result: MetricResult) -> Table:
    table = _table("model", "score", "95 % interval")
    for system, score in result.scores.items():
        table.add_row(_text(system), _value(result.metric, score.estimate), _range(result.metric, score))
    return table


def _difference_table(result: MetricResult) -> Table:
    table = _table("first - second", "difference", "95 % interval", "p", "w/t/l", "detectable")
    for (first, second), found in result.pairs.items():
        table.add_row(_text(f"{first} - {second}"), *_pair_cells(result.metric, found))
    return table


def _dataset_table(result: MetricResult) -> Table:
    table = _table("model", *result.parts, "average")
    for system, score in result.scores.items():
        parts = [_value(result.metric, scores[system].estimate) for scores in result.parts.values()]
        table.add_row(_text(system), *parts, _value(result.metric, score.estimate))
    return table


def _other_table(systems: list[str], results: list[MetricResult]) -> Table:
    arrows = {True: "↑", False: "↓"}
    table = _table("model", *(f"{result.metric.title} {arrows[result.metric.higher]}" for result in results))
    for system in systems:
        cells = [
            _value(result.metric, result.scores[system].estimate) if system in result.scores else ""
            for result in results
        ]
        if any(cells):
            table.add_row(_text(system), *cells)
    return table


def _answer_table(comparison: RunComparison) -> Table:
    table = _table("model", "answers", "empty", "cut at token limit", "unscorable")
    for system, counts in comparison.answers.items():
        table.add_row(
            _text(system), *(str(n) for n in (counts.answers, counts.empty, counts.unfinished, counts.unscorable))
        )
    return table


def _setting_table(comparison: RunComparison) -> Table:
    table = _table("setting", *(run.name for run in comparison.runs))
    for name, values in comparison.differing.items():
        table.add_row(_text(name), *(_text(value) for value in values))
    return table


def report_tables(comparison: RunComparison) -> dict[str, list[dict[str, Any]]]:
    """The rows of the report's tables, for tracking: ``scores``, ``differences`` and ``answers``."""
    scores: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for name, result in comparison.metrics.items():
        for dataset, by_system in {**result.parts, ALL: result.scores}.items():
            scores += [
                {"metric": name, "data set": dataset, "model": system, "score": score.estimate}
                | {"low": score.low, "high": score.high, "examples": score.examples, "seeds": score.seeds}
                for system, score in by_system.items()
            ]
        for (first, second), found in result.pairs.items():
            gap = found.difference
            differences.append(
                {"metric": name, "first": first, "second": second, "difference": gap.estimate, "low": gap.low}
                | {"high": gap.high, "p": found.adjusted, "wins": found.wins, "ties": found.ties}
                | {"losses": found.losses, "detectable": found.detectable}
            )
    examples = []
    for case in comparison.cases[:CASES]:
        row: dict[str, Any] = {"data set": case.dataset, "id": case.id, "source": case.source}
        row |= {"prompt": case.prompt, "reference": case.reference}
        row |= {f"answer {name}": case.answers.get(name, "") for name in comparison.systems}
        row |= {f"ROUGE-L {name}": case.scores.get(name) for name in comparison.systems}
        examples.append(row)
    named = {"scores": scores, "differences": differences, "answers": examples}
    return {name: rows for name, rows in named.items() if rows}


def page_name(comparison: RunComparison) -> str:
    """A file name for the page, made of the runs' names."""
    names = (re.sub(r"[^a-z0-9.]+", "-", run.name.lower()).strip("-.") for run in comparison.runs)
    return f"comparison-{'-'.join(names)[:80]}.html"


def write_report(comparison: RunComparison, path: Path) -> None:
    """Write the HTML page, whole or not at all."""
    with atomic_write(path) as file:
        file.write(html_report(comparison).encode())


def html_report(comparison: RunComparison) -> str:
    """The page: no other file, no network, readable in light and dark and at a phone's width."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files(__package__) / "page.html.j2").read_text("utf-8"))
    colours = {system: number for number, system in enumerate(comparison.systems)}
    curves, costs = [], []
    for name in curve_names(comparison)[:CURVES]:
        series = {run.name: run.curves[name] for run in comparison.runs if name in run.curves}
        # Markup passes jinja's escaping by: `line_chart` escapes the label itself.
        curves.append((name, Markup(line_chart(series, colours, f"{name} by training step"))))
    for name in dict.fromkeys(name for run in comparison.runs for name in run.costs):
        costs.append((name, [_amount(name, run.costs[name]) if name in run.costs else "" for run in comparison.runs]))
    return template.render(
        title=" · ".join(run.name for run in comparison.runs),
        comparison=comparison,
        colours={system: f"var(--c{number % COLOURS})" for system, number in colours.items()},
        main=[_metric_view(result) for result in _main(comparison)],
        more=[_metric_view(result) for result in comparison.metrics.values() if result not in _main(comparison)],
        breakdowns=[_breakdown_view(comparison, number) for number in range(len(comparison.breakdowns))],
        curves=curves,
        costs=costs,
        cases=[_case_view(comparison, case) for case in comparison.cases[:CASES]],
        shared={name: value for name, value in comparison.runs[0].lineage.items() if name not in comparison.differing},
    )


def _main(comparison: RunComparison) -> list[MetricResult]:
    """Bits per byte and ROUGE-L: what the page leads with."""
    return [comparison.metrics[name] for name in ("bits_per_byte", "rougeL") if name in comparison.metrics]


def _value(metric: Metric, value: float, signed: bool = False, fine: bool = False) -> str:
    """A score, or with more digits a difference."""
    digits = 1 if metric.name in PERCENTAGES else 4 if fine else 3
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def _range(metric: Metric, score: Interval, signed: bool = False) -> str:
    return f"{_value(metric, score.low, signed, signed)} to {_value(metric, score.high, signed, signed)}"


def _pair_cells(metric: Metric, found: Comparison) -> tuple[str, str, str, str, str]:
    """Difference, interval, p, wins/ties/losses and detectable difference."""
    gap = found.difference
    wins, losses = (found.wins, found.losses) if metric.higher else (found.losses, found.wins)
    return (
        _value(metric, gap.estimate, True, True),
        _range(metric, gap, True),
        f"{found.adjusted:.3f}",
        f"{wins}/{found.ties}/{losses}",
        _value(metric, found.detectable, fine=True),
    )


def _verdict(result: MetricResult, first: str, second: str) -> str:
    """Which of the two is better, or that it was not shown, with the reason where interval and p disagree."""
    found = result.pairs[first, second]
    apart, significant = not found.difference.low <= 0 <= found.difference.high, found.adjusted < _LEVEL
    if apart and significant:
        return f"{first if (found.difference.estimate > 0) == result.metric.higher else second} is better"
    if apart and _least_p(result, found) >= _LEVEL:
        count = f"{len(result.pairs)} comparisons" if len(result.pairs) > 1 else "one comparison"
        return f"not shown: {result.examples} examples are too few for p below {_LEVEL} in {count}"
    if apart:
        return f"not shown: the interval leaves out 0, but p is {found.adjusted:.3f}"
    if significant:
        return f"not shown: p is {found.adjusted:.3f}, but the interval holds 0"
    return "no difference shown"


def _least_p(result: MetricResult, found: Comparison) -> float:
    """The smallest p, corrected, that so few examples can give: one of all swaps and its mirror image."""
    most = max(each.wins + each.losses for each in result.pairs.values())
    return max(2.0 ** (1 - found.wins - found.losses), len(result.pairs) * 2.0 ** (1 - most))


def _metric_view(result: MetricResult) -> dict[str, Any]:
    low = min(score.low for score in result.scores.values())
    high = max(score.high for score in result.scores.values())
    width = max(high - low, 1e-12)

    def place(value: float) -> float:
        return 2 + 96 * (value - low) / width

    return {
        "title": result.metric.title,
        "about": _about(result).removeprefix(f"{result.metric.title} "),
        "datasets": list(result.parts),
        "by_dataset": _dataset_rows(result),
        "seeds": max(score.seeds for score in result.scores.values()),
        "scores": [
            {
                "system": system,
                "estimate": _value(result.metric, score.estimate),
                "range": _range(result.metric, score),
                "left": place(score.low),
                "width": place(score.high) - place(score.low),
                "dot": place(score.estimate),
            }
            for system, score in result.scores.items()
        ],
        "pairs": [
            (first, second, *_pair_cells(result.metric, found), _verdict(result, first, second))
            for (first, second), found in result.pairs.items()
        ],
    }


def _dataset_rows(result: MetricResult) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each system's score and interval on each data set, and on all of them."""
    rows = []
    for system in result.scores:
        scores = [each[system] for each in (*result.parts.values(), result.scores)]
        rows.append((system, [(_value(result.metric, each.estimate), _range(result.metric, each)) for each in scores]))
    return rows


def _breakdown_view(comparison: RunComparison, number: int) -> dict[str, Any]:
    breakdown = comparison.breakdowns[number]
    metric = breakdown.metric
    systems = list(comparison.metrics[metric.name].scores)
    rows = []
    for group, scores in breakdown.groups.items():
        cells = [(_value(metric, scores[s].estimate), _range(metric, scores[s])) for s in systems]
        rows.append((group, cells))
    return {
        "title": f"{metric.title} by {breakdown.title}",
        "better": _BETTER[metric.higher],
        "systems": systems,
        "rows": rows,
    }


def _amount(name: str, value: float) -> str:
    if "bytes" in name and "per" not in name:
        for unit in ("B", "kB", "MB", "GB"):
            if value < 1000 or unit == "GB":
                return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
            value /= 1000
    if name.endswith("seconds"):
        return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"
    return f"{value:,.4g}"


def _case_view(comparison: RunComparison, case: Case) -> dict[str, Any]:
    outcome = "win" if case.gap > 0 else "loss" if case.gap < 0 else "tie"
    return {
        "id": case.id,
        "source": " · ".join(dict.fromkeys(part for part in (case.dataset, case.source) if part)),
        "prompt": case.prompt.strip(),
        "reference": case.reference,
        "gap": case.gap,
        "outcome": outcome,
        "answers": [
            (name, case.answers[name], f"{case.scores[name]:.1f}" if name in case.scores else "–")
            for name in comparison.systems
            if name in case.answers
        ],
    }
