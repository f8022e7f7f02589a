"""A comparison for people: tables on the terminal and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sra_core.evaluation.charts import COLOURS, curve_names, line_chart
from sra_core.evaluation.compare import Case, MetricResult, RunComparison
from sra_core.evaluation.intervals import Comparison, Interval
from sra_core.evaluation.results import Metric
from sra_core.shards import atomic_write

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["html_report", "report_tables", "terminal_report", "write_report"]

CASES = 200
"""Examples shown with their texts; the largest gaps come first."""
CURVES = 8
_BETTER = {True: "higher is better", False: "lower is better"}


def terminal_report(comparison: RunComparison) -> list[RenderableType]:
    """Rich renderables: scores with intervals, paired differences, settings that differ, notes."""
    from rich.table import Table
    from rich.text import Text

    scores = Table(title="scores with 95 % intervals", title_justify="left")
    scores.add_column("model")
    for result in comparison.metrics.values():
        scores.add_column(f"{result.metric.title} {'↑' if result.metric.higher else '↓'}", justify="right")
    for system in comparison.systems:
        cells = [
            _interval(result.metric, result.scores[system]) if system in result.scores else ""
            for result in comparison.metrics.values()
        ]
        scores.add_row(Text(system), *cells)
    pairs = Table(title="on the same examples", title_justify="left")
    for name in ("metric", "first - second", "difference", "p (Holm)", "wins/ties/losses", "detectable"):
        pairs.add_column(name, justify="left" if name in ("metric", "first - second") else "right")
    for result in _main(comparison):
        for (first, second), found in result.pairs.items():
            row = _pair_cells(result.metric, found)
            pairs.add_row(result.metric.title, Text(f"{first} - {second}"), *row)
    differing = Table(title="settings that differ", title_justify="left")
    for name in ("setting", *(run.name for run in comparison.runs)):
        differing.add_column(Text(name), overflow="fold")
    for name, values in comparison.differing.items():
        differing.add_row(Text(name), *(Text(value) for value in values))
    answers = Table("model", "answers", "empty", "at token limit", title="answers, all counted", title_justify="left")
    for system, counts in comparison.answers.items():
        answers.add_row(Text(system), *(str(n) for n in (counts.answers, counts.empty, counts.unfinished)))
    shown: list[RenderableType] = [scores, pairs]
    if comparison.answers:
        shown.append(answers)
    if comparison.differing:
        shown.append(differing)
    return [*shown, *(Text(note) for note in comparison.notes)]


def report_tables(comparison: RunComparison) -> dict[str, dict[str, list[Any]]]:
    """The report's tables for tracking, column by column: ``scores``, ``differences`` and ``examples``."""
    scores: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for name, result in comparison.metrics.items():
        for system, score in result.scores.items():
            scores.append(
                {"metric": name, "model": system, "score": score.estimate, "low": score.low, "high": score.high}
            )
        for (first, second), found in result.pairs.items():
            gap = found.difference
            differences.append(
                {"metric": name, "first": first, "second": second, "difference": gap.estimate, "low": gap.low}
                | {"high": gap.high, "p": found.adjusted, "wins": found.wins, "ties": found.ties}
                | {"losses": found.losses, "detectable": found.detectable}
            )
    examples = [
        {"id": case.id, "source": case.source, "prompt": case.prompt, "reference": case.reference}
        | {f"answer {name}": case.answers.get(name, "") for name in comparison.systems}
        | {f"ROUGE-L {name}": case.scores.get(name) for name in comparison.systems}
        for case in comparison.cases[:CASES]
    ]
    named = {"scores": scores, "differences": differences, "examples": examples}
    return {name: {key: [row[key] for row in rows] for key in rows[0]} for name, rows in named.items() if rows}


def write_report(comparison: RunComparison, path: Path) -> None:
    """Write the HTML page, whole or not at all."""
    with atomic_write(path) as file:
        file.write(html_report(comparison).encode())


def html_report(comparison: RunComparison) -> str:
    """The page: no other file, no network, readable in light and dark and at a phone's width."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files(__package__) / "report.html.j2").read_text("utf-8"))
    colours = {system: number for number, system in enumerate(comparison.systems)}
    return template.render(
        title=" · ".join(run.name for run in comparison.runs),
        comparison=comparison,
        colours={system: f"var(--c{number % COLOURS})" for system, number in colours.items()},
        main=[_metric_view(result) for result in _main(comparison)],
        more=[_metric_view(result) for result in comparison.metrics.values() if result not in _main(comparison)],
        breakdowns=[_breakdown_view(comparison, number) for number in range(len(comparison.breakdowns))],
        curves=[(name, Markup(svg)) for name, svg in _curves(comparison, colours)],
        costs=list(_costs(comparison)),
        cases=[_case_view(comparison, case) for case in comparison.cases[:CASES]],
        shared={name: value for name, value in comparison.runs[0].lineage.items() if name not in comparison.differing},
    )


def _main(comparison: RunComparison) -> list[MetricResult]:
    """Bits per byte and ROUGE-L: what the page leads with."""
    return [comparison.metrics[name] for name in ("bits_per_byte", "rougeL") if name in comparison.metrics]


def _value(metric: Metric, value: float, signed: bool = False) -> str:
    digits = 4 if metric.name in ("bits_per_byte", "span_kl") else 2
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def _interval(metric: Metric, score: Interval) -> str:
    return f"{_value(metric, score.estimate)} ({_value(metric, score.low)} to {_value(metric, score.high)})"


def _pair_cells(metric: Metric, found: Comparison) -> tuple[str, str, str, str]:
    gap = found.difference
    wins, losses = (found.wins, found.losses) if metric.higher else (found.losses, found.wins)
    return (
        f"{_value(metric, gap.estimate, True)} ({_value(metric, gap.low, True)} to {_value(metric, gap.high, True)})",
        f"{found.adjusted:.4f}",
        f"{wins}/{found.ties}/{losses}",
        _value(metric, found.detectable),
    )


def _verdict(metric: Metric, first: str, second: str, found: Comparison) -> str:
    if found.adjusted >= 0.05 or found.difference.low <= 0 <= found.difference.high:
        return "no difference shown"
    return f"{first if (found.difference.estimate > 0) == metric.higher else second} is better"


def _metric_view(result: MetricResult) -> dict[str, Any]:
    low = min(score.low for score in result.scores.values())
    high = max(score.high for score in result.scores.values())
    width = max(high - low, 1e-12)

    def place(value: float) -> float:
        return 2 + 96 * (value - low) / width

    return {
        "title": result.metric.title,
        "better": _BETTER[result.metric.higher],
        "examples": result.examples,
        "seeds": max(score.seeds for score in result.scores.values()),
        "scores": [
            {
                "system": system,
                "estimate": _value(result.metric, score.estimate),
                "range": f"{_value(result.metric, score.low)} to {_value(result.metric, score.high)}",
                "left": place(score.low),
                "width": place(score.high) - place(score.low),
                "dot": place(score.estimate),
            }
            for system, score in result.scores.items()
        ],
        "pairs": [
            (first, second, *_pair_cells(result.metric, found), _verdict(result.metric, first, second, found))
            for (first, second), found in result.pairs.items()
        ],
    }


def _breakdown_view(comparison: RunComparison, number: int) -> dict[str, Any]:
    breakdown = comparison.breakdowns[number]
    metric = breakdown.metric
    systems = list(comparison.metrics[metric.name].scores)
    rows = []
    for group, scores in breakdown.groups.items():
        cells = [
            (_value(metric, scores[s].estimate), _value(metric, scores[s].low), _value(metric, scores[s].high))
            for s in systems
        ]
        rows.append((group, cells))
    return {
        "title": f"{metric.title} by {breakdown.title}",
        "better": _BETTER[metric.higher],
        "systems": systems,
        "rows": rows,
    }


def _curves(comparison: RunComparison, colours: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for name in curve_names(comparison)[:CURVES]:
        series = {run.name: run.curves[name] for run in comparison.runs if name in run.curves}
        yield name, line_chart(series, colours, f"{name} by training step")


def _costs(comparison: RunComparison) -> Iterator[tuple[str, list[str]]]:
    for name in dict.fromkeys(name for run in comparison.runs for name in run.costs):
        yield name, [_amount(name, run.costs[name]) if name in run.costs else "" for run in comparison.runs]


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
        "source": case.source,
        "prompt": case.prompt.strip(),
        "reference": case.reference,
        "gap": case.gap,
        "outcome": outcome,
        "answers": [
            (name, case.answers[name], f"{case.scores[name]:.1f}")
            for name in comparison.systems
            if name in case.answers
        ],
    }
