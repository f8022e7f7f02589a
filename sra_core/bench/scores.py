"""From finished cells to scores with intervals and paired differences.  Shapes: E examples, S seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_core.bench.grid import Bench, Cell
from sra_core.bench.report import Report
from sra_core.compare import Comparison, EvaluatedRun, Interval, ModelScores, compare_all, interval, read_run
from sra_core.compare.results import METRICS, Metric
from sra_core.errors import EvaluationError, first_line
from sra_core.shards import Manifest
from sra_core.watch import redact_text

__all__ = ["Found", "collect", "compare", "held_out_bits"]

Floats = NDArray[np.float64]
Scored = tuple[list[tuple[str, str]], Floats, Floats]
"""Keys, (E,) numerators and (E,) denominators."""
MAIN = ("bits_per_byte", "top1", "rougeL", "chrf")
"""Of the scores that every data set can have, those that are compared; lm-eval tasks are compared all."""
_SOME = "{metric} was measured in {count} of {cells} cells that are done, and is not compared."
_APART = "{count} examples that only some cells were scored on ({metric}) are left out: their training texts differ."
CURVE = "validation/bits_per_byte"


@dataclass(frozen=True, slots=True)
class Found:
    """A finished cell.

    Attributes:
        cell: Which.
        run: Its evaluation.
        costs: Metrics of its training.
        curve: Held-out bits per byte while it trained, by step.
    """

    cell: Cell
    run: EvaluatedRun
    costs: Mapping[str, float]
    curve: list[tuple[int, float]]


def collect(bench: Bench, cells: Sequence[Cell]) -> list[Found]:
    """The cells that are done, in the order of the grid."""
    found = []
    for cell in cells:
        scores, student = bench.scores(cell), bench.student(cell)
        if scores is not None:
            run = read_run(Path(scores.folder), cell.name)
            costs = student.metrics if student is not None else {}  # students are large: people delete them
            found.append(Found(cell, run, costs, run.curves.get(CURVE, [])))
    return found


def held_out_bits(scores: Manifest) -> str:
    """Bits per byte of an evaluation's student: on the corpus's own test split, else the mean of its data sets, else
    on its only one; empty where no text has a likelihood."""
    names = [name for name in scores.metrics if name.endswith("/student/bits_per_byte")]
    if not names:
        return ""
    ranks = {"evaluate/student/bits_per_byte": 0, "evaluate/average/student/bits_per_byte": 1}
    return f"{scores.metrics[min(names, key=lambda name: ranks.get(name, 2))]:.4f}"


def compare(bench: Bench, found: Sequence[Found]) -> Report:
    """Scores of every variant, and every pair that the grid asks about, over the cells that are done.

    Raises:
        EvaluationError: Cells that were scored on no common example, or on other texts under the same names.
    """
    done = [each.cell.name for each in found]
    metrics = _metrics(found)
    report = Report(
        title=redact_text(bench.config.name),
        reference=bench.config.bench.reference,
        variants=list(dict.fromkeys(cell.variant for cell in bench.cells)),
        metrics=metrics,
        done=done,
        missing=[(cell.name, _why(bench, cell)) for cell in bench.cells if cell.name not in done],
        cells=[_cell_row(each, metrics) for each in found],
        curves={(each.cell.variant, each.cell.seed): each.curve for each in found},
    )
    baselines = {cell.variant for cell in bench.cells if cell.config.objective.name != "sra"}
    apart: dict[str, int] = {}
    for metric in metrics:
        scores = {each.cell: values for each in found if (values := _values(metric, each.run.models["student"]))}
        common, others = _on_common(scores)
        if others:
            apart[metric.title] = others
        _compare_metric(report, metric, common, baselines)
        report.scores += _frame_rows(found, metric, set(next(iter(common.values()))[0]))
    some = Counter(name for each in found for name in _measured(each))
    for metric in (metric for metric in some if metric not in metrics):
        report.notes.append(_SOME.format(metric=metric.title, count=some[metric], cells=len(found)))
    report.notes += [*_notes(report), *(_APART.format(count=count, metric=metric) for metric, count in apart.items())]
    return report


def _metrics(found: Sequence[Found]) -> list[Metric]:
    """What every student was scored by: agreement is left out where one cell alone reads the teacher."""
    measured: list[Metric] = []
    for number, own in enumerate(map(_measured, found)):
        measured = [metric for metric in measured if metric in own] if number else own
    return sorted(measured, key=lambda metric: MAIN.index(metric.name) if metric.name in MAIN else len(MAIN))


def _measured(found: Found) -> list[Metric]:
    """What a cell's student was scored by, of what grids compare."""
    student = found.run.models["student"]
    asked = [metric for metric in student.metrics() if metric.name in MAIN or metric not in METRICS]
    return [metric for metric in asked if student.values(metric.name) is not None]


def _why(bench: Bench, cell: Cell) -> str:
    if cell in bench.failed:
        return f"failed: {first_line(bench.failed[cell])}"
    return bench.state(cell)


def _cell_row(found: Found, metrics: Sequence[Metric]) -> dict[str, Any]:
    """One row a cell, for tables that are read by machines."""
    row: dict[str, Any] = {"variant": found.cell.variant, "seed": found.cell.seed}
    for metric in metrics:
        values = _values(metric, found.run.models["student"])
        row[metric.name] = _score(*values).estimate if values else None
    wanted = ("best_bits_per_byte", "best_step", "steps", "seconds", "seconds_per_step", "peak_memory_bytes")
    return row | {name: found.costs.get(f"distill/{name}") for name in wanted} | {"folder": found.run.folder.name}


def _values(metric: Metric, scores: ModelScores) -> Scored | None:
    """Keys, (E,) numerators (answers of several sampling seeds averaged) and (E,) denominators."""
    values = scores.values(metric.name)
    return None if values is None else (values[0], values[1].mean(1), values[2])


def _on_common(scores: Mapping[Cell, Scored]) -> tuple[dict[Cell, Scored], int]:
    """The scores of the examples that every cell was scored on, in the order of the first, and the number of others.

    The leak check leaves out other test examples where the training texts are others.
    """
    keys = [set(each[0]) for each in scores.values()]
    common, every = set.intersection(*keys), set.union(*keys)
    if not common:
        raise EvaluationError(
            "the cells have no test example in common", "leave corpus, alignment and evaluate alike in all variants"
        )
    first = next(iter(scores.values()))
    order = [key for key in first[0] if key in common]
    kept = {}
    for cell, (own, values, weights) in scores.items():
        places = {key: place for place, key in enumerate(own)}
        part = [places[key] for key in order]
        kept[cell] = order, values[part], weights[part]
    # Bytes of each text: with another number it is another text, and its bits would be set against these.
    sizes = next(iter(kept.values()))[2]
    for cell, (_, _, weights) in kept.items():
        if not np.array_equal(weights, sizes):
            raise EvaluationError(
                f"{cell.name} was scored on other texts than the first cell, under the same names",
                "leave corpus, tokenizers, alignment and evaluate alike in all variants",
            )
    return kept, len(every) - len(common)


def _score(keys: Sequence[tuple[str, str]], values: Floats, weights: Floats) -> Interval:
    """The score with its interval; over several data sets the mean of theirs."""
    return interval(values, weights, strata=_strata(keys))


def _strata(keys: Sequence[tuple[str, str]]) -> NDArray[np.int64] | None:
    """(E,) number of each example's data set; None where there is one."""
    numbers: dict[str, int] = {}
    strata = [numbers.setdefault(dataset, len(numbers)) for dataset, _ in keys]
    return np.array(strata) if len(numbers) > 1 else None


def _compare_metric(
    report: Report,
    metric: Metric,
    scores: Mapping[Cell, Scored],
    baselines: set[str],
) -> None:
    """Add the rows of one metric."""
    keys, _, weights = next(iter(scores.values()))
    by_variant: dict[str, dict[int, Floats]] = {}
    for cell, (_, values, _) in scores.items():
        by_variant.setdefault(cell.variant, {})[cell.seed] = values
    means = {}
    for variant, by_seed in by_variant.items():
        score = _score(keys, np.stack(list(by_seed.values()), 1), weights)
        means[variant] = score.estimate
        report.scores.append(
            {"variant": variant, "metric": metric.name, "score": score.estimate, "low": score.low, "high": score.high}
            | {"examples": score.examples, "seeds": score.seeds, **_costs(report, variant)}
        )
    best_first = sorted(means, key=means.__getitem__, reverse=metric.higher)
    best = next((name for name in best_first if name in baselines), None)
    for pair, result, seeds in _pairs(report, by_variant, weights, _strata(keys), baselines, best):
        report.differences.append(_difference_row(metric, pair, result, seeds, best))


def _pairs(
    report: Report,
    by_variant: Mapping[str, Mapping[int, Floats]],
    weights: Floats,
    strata: NDArray[np.int64] | None,
    baselines: set[str],
    best: str | None,
) -> Iterator[tuple[tuple[str, str], Comparison, list[int]]]:
    """Every variant against the reference, and SRA's against the best baseline, on the seeds that both have."""
    wanted = [(name, report.reference) for name in by_variant if name != report.reference]
    wanted += [
        (name, best)
        for name in by_variant
        if best not in (None, report.reference) and name not in (*baselines, report.reference)
    ]
    possible = {}
    for first, second in wanted:
        seeds = sorted(by_variant[first].keys() & by_variant.get(second, {}).keys())
        if seeds:
            possible[first, second] = seeds
    # By name and seeds: pairs that rest on other seeds are corrected together all the same.
    tables: dict[str, Floats] = {}
    for (first, second), seeds in possible.items():
        for name in (first, second):
            tables[f"{name}\0{seeds}"] = np.stack([by_variant[name][seed] for seed in seeds], 1)
    asked = {
        (f"{first}\0{seeds}", f"{second}\0{seeds}"): (first, second) for (first, second), seeds in possible.items()
    }
    for key, result in compare_all(tables, weights, list(asked), strata=strata).items():
        yield asked[key], result, possible[asked[key]]


def _difference_row(
    metric: Metric, pair: tuple[str, str], result: Comparison, seeds: list[int], best: str | None
) -> dict[str, Any]:
    gap = result.difference
    better, worse = (result.wins, result.losses) if metric.higher else (result.losses, result.wins)
    return {
        "metric": metric.name,
        "first": pair[0],
        "second": pair[1],
        "best_baseline": pair[1] == best,
        "difference": gap.estimate,
        "low": gap.low,
        "high": gap.high,
        "p": result.adjusted,
        "better": better,
        "ties": result.ties,
        "worse": worse,
        "detectable": result.detectable,
        "seeds": len(seeds),
    }


def _costs(report: Report, variant: str) -> dict[str, float | None]:
    """Median step time, highest memory and mean best step of a variant's cells."""
    rows = [row for row in report.cells if row["variant"] == variant]
    times = [row["seconds_per_step"] for row in rows if row["seconds_per_step"] is not None]
    memory = [row["peak_memory_bytes"] for row in rows if row["peak_memory_bytes"] is not None]
    steps = [row["best_step"] for row in rows if row["best_step"] is not None]
    return {
        "seconds_per_step": median(times) if times else None,
        "peak_memory_bytes": max(memory) if memory else None,
        "best_step": sum(steps) / len(steps) if steps else None,
    }


def _frame_rows(found: Sequence[Found], metric: Metric, common: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """The ceiling and the floor, where a finished cell scored them."""
    for system, title in (("teacher", "(teacher)"), ("initial", "(initial student)")):
        models = [each.run.models[system] for each in found if system in each.run.models]
        if models and (values := _values(metric, models[0])) is not None:
            keys, scores, weights = values
            part = [place for place, key in enumerate(keys) if key in common]
            score = _score([keys[place] for place in part], scores[part], weights[part])
            row = {"variant": title, "metric": metric.name, "score": score.estimate, "low": score.low}
            row |= {"high": score.high, "examples": score.examples, "seeds": 1}
            yield row | {"seconds_per_step": None, "peak_memory_bytes": None, "best_step": None}


def _notes(report: Report) -> Iterator[str]:
    if report.missing:
        names = "; ".join(f"{name} ({why})" for name, why in report.missing)
        yield f"{len(report.missing)} of {len(report.missing) + len(report.done)} cells are missing: {names}."
    if report.done and not any(row["variant"] == report.reference for row in report.cells):
        yield f"Nothing of the reference {report.reference} is done, so no pair is compared with it."
    uneven = {row["seeds"] for row in report.scores if not row["variant"].startswith("(")}
    if len(uneven) > 1:
        yield "Variants have different numbers of seeds so far; pairs are compared on the seeds that both have."
