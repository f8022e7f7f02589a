"""Two or more runs on the same examples: scores with intervals, paired differences, breakdowns, wins and losses.

Where there are several data sets, a score is the mean of theirs (the paper's table), and its parts are kept beside it.

Shapes: E examples, S seeds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_core.compare.intervals import Comparison, Interval, compare_all, interval
from sra_core.compare.results import TITLES, EvaluatedRun, Metric, ModelScores, Values, all_references
from sra_core.compare.rouge import AnswerCounts, count_answers
from sra_core.errors import EvaluationError

__all__ = ["Breakdown", "Case", "MetricResult", "RunComparison", "compare_runs"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Key = tuple[str, str]
BANDS = 4
SOURCES = 12
"""Sources shown by name; examples of the smaller ones are taken together."""


@dataclass(slots=True)
class MetricResult:
    """One metric over all systems, on the examples that every one of them was scored on.

    Attributes:
        metric: Which.
        scores: Interval by system.
        pairs: Comparison by (first, second) system; differences are first minus second.
        examples: Examples shared.
        missing: Examples that some system was scored on and another was not.
        parts: Interval by data set and system, where there are several sets; ``scores`` are then their mean.
    """

    metric: Metric
    scores: dict[str, Interval]
    pairs: dict[tuple[str, str], Comparison]
    examples: int
    missing: int
    parts: dict[str, dict[str, Interval]] = field(default_factory=dict)


@dataclass(slots=True)
class Breakdown:
    """A metric by group: source or prompt length.

    Attributes:
        title: What the groups are.
        metric: Which metric.
        groups: Interval by group and system.
    """

    title: str
    metric: Metric
    groups: dict[str, dict[str, Interval]]


@dataclass(slots=True)
class Case:
    """One example with every system's answer.

    Attributes:
        dataset, id, source, prompt, reference: The example.
        answers: Text by system, of the first seed.
        scores: ROUGE-L times 100 by system, averaged over seeds.
        gap: Score of the first student minus that of the one compared with.
    """

    dataset: str
    id: str
    source: str
    prompt: str
    reference: str
    answers: dict[str, str]
    scores: dict[str, float]
    gap: float


@dataclass(slots=True)
class RunComparison:
    """All that a report shows.

    Attributes:
        runs: The runs, in the order given.
        systems: Names of all models compared; students carry their run's name.
        students: The students among them.
        pair: The two whose answers are set against each other.
        reference: The student that is paired with the others.
        metrics: By metric name.
        breakdowns: By source and by prompt length, all data sets together.
        cases: Examples with answers, the largest gaps first.
        differing: Settings and inputs in which the runs differ, with each run's value.
        answers: What each system's average ROUGE is made of.
        notes: What a reader should know: what was left out and why.
    """

    runs: list[EvaluatedRun]
    systems: list[str]
    students: list[str]
    pair: tuple[str, str] | None
    reference: str
    metrics: dict[str, MetricResult] = field(default_factory=dict)
    breakdowns: list[Breakdown] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    differing: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, AnswerCounts] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Scored:
    """A metric as arrays over shared examples."""

    keys: list[Key]
    values: dict[str, Floats]
    weights: Floats
    missing: int

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(dataset for dataset, _ in self.keys))

    @property
    def strata(self) -> Integers | None:
        """(E,) number of each example's data set; None where there is one."""
        names = {name: number for number, name in enumerate(self.datasets)}
        return np.array([names[dataset] for dataset, _ in self.keys]) if len(names) > 1 else None


def compare_runs(
    runs: Sequence[EvaluatedRun],
    *,
    reference: str | None = None,
    all_pairs: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> RunComparison:
    """Compare finished runs on the examples that they share.

    Teachers and initial students that score the same in several runs are shown once.

    Args:
        runs: One or more; names must differ.
        reference: Name of the run that is paired with every other one; unset takes the first.
        all_pairs: Pair every two runs, and every run with the teacher and its start.
        resamples: Bootstrap resamples and random swaps.
        seed: Seed of both.

    Raises:
        EvaluationError: No run, names that repeat, a reference that is none of them, or no example in common.
    """
    if not runs:
        raise EvaluationError("there is no run to compare", "name at least one evaluation folder")
    students = [run.name for run in runs]
    twice = [name for name in students if students.count(name) > 1]
    if twice:
        raise EvaluationError(f"two runs are called {twice[0]!r}", "give each a name of its own, as in NAME=RUN")
    reference = reference or students[0]
    if reference not in students:
        raise EvaluationError(f"the reference {reference!r} is not one of the runs", f"they are {', '.join(students)}")
    systems = _systems(runs)
    result = RunComparison(list(runs), list(systems), students, _pair(students, reference, systems), reference)
    pairs = _pairs(students, None if all_pairs else reference, systems)
    metrics = {metric.name: metric for scores in systems.values() for metric in scores.metrics()}
    ambiguous = _ambiguous(systems)
    for metric in metrics.values():
        scored = _shared(metric.name, systems, ambiguous)
        if scored is None:
            continue
        result.metrics[metric.name] = _metric_result(metric, scored, pairs, resamples, seed)
        if metric.name in ("bits_per_byte", "rougeL"):
            result.breakdowns += _breakdowns(metric, scored, runs[0], resamples, seed)
    if not result.metrics:
        raise EvaluationError("the runs have no example in common", "evaluate them on the same test examples")
    result.cases = _cases(systems, result.pair, ambiguous)
    result.differing = _differing(runs)
    for name, scores in systems.items():
        if scores.answers is not None:
            columns = [scores.answers[column].to_pylist() for column in ("answer", "finish_reason")]
            result.answers[name] = count_answers(all_references(scores.answers), *columns)
    result.notes = _notes(result)
    return result


def _systems(runs: Sequence[EvaluatedRun]) -> dict[str, ModelScores]:
    """The models by name: teachers and initial students that score alike once, under the name of their first run."""
    systems: dict[str, ModelScores] = {}
    for role in ("teacher", "initial"):
        kinds: dict[str, ModelScores] = {}
        for run in runs:
            scores = run.models.get(role)
            if scores is not None and not any(_same(scores, known) for known in kinds.values()):
                kinds[run.name] = scores
        for name, scores in kinds.items():
            systems[TITLES[role] if len(kinds) == 1 else f"{TITLES[role]} ({name})"] = scores
    return systems | {run.name: run.models["student"] for run in runs}


def _same(one: ModelScores, other: ModelScores) -> bool:
    """Whether two runs scored one model: alike but for the last digits, which batches of other shapes move."""
    for name in ("bits_per_byte", "rougeL"):
        left, right = one.values(name), other.values(name)
        if left is None or right is None:
            if left is not right:
                return False
        elif left[0] != right[0] or left[1].shape != right[1].shape or not np.allclose(left[1], right[1], rtol=1e-4):
            return False
    return True


def _pair(students: list[str], reference: str, systems: dict[str, ModelScores]) -> tuple[str, str] | None:
    """The reference and the first other student, or the only student and what it started from."""
    if len(students) > 1:
        return reference, next(name for name in students if name != reference)
    other = next((name for name in (TITLES["initial"], TITLES["teacher"]) if name in systems), None)
    return (students[0], other) if other else None


def _pairs(students: list[str], reference: str | None, systems: Mapping[str, ModelScores]) -> list[tuple[str, str]]:
    """The reference against the other students, its start and its teacher; without one all pairs.

    Each pair more raises the p-values of all, as they are corrected for their number.
    """
    others = [name for name in reversed(list(systems)) if name not in students]
    if reference is None:
        return [*combinations(students, 2), *product(students, others)]
    return [(reference, name) for name in [*students, *others] if name != reference]


def _ambiguous(systems: Mapping[str, ModelScores]) -> set[Key]:
    """Ids under which models were asked other things: with another reference it is another example."""
    known: dict[Key, list[str]] = {}
    found = set()
    for scores in systems.values():
        for key, wanted in scores.wanted().items():
            if known.setdefault(key, wanted) != wanted:
                found.add(key)
    return found


def _shared(metric: str, systems: dict[str, ModelScores], ambiguous: set[Key]) -> _Scored | None:
    tables = {name: found for name, scores in systems.items() if (found := scores.values(metric)) is not None}
    if not tables:
        return None
    first: Values = next(iter(tables.values()))
    everyone = set(first[0]).intersection(*(keys for keys, _, _ in tables.values()))
    everyone -= ambiguous
    anyone = set(first[0]).union(*(keys for keys, _, _ in tables.values()))
    keys = [key for key in first[0] if key in everyone]
    values, weights = {}, {}
    for name, (own, numerators, denominators) in tables.items():
        place = dict(zip(own, range(len(own)), strict=True))
        picked = [place[key] for key in keys]
        values[name], weights[name] = numerators[picked], denominators[picked]
    # the same example with another number of bytes is another text: it was cut elsewhere
    stacked = np.stack(list(weights.values()))
    alike = np.flatnonzero((stacked == stacked[0]).all(0))
    if not len(alike):
        return None
    return _Scored(
        keys=[keys[index] for index in alike],
        values={name: numerators[alike] for name, numerators in values.items()},
        weights=stacked[0][alike],
        missing=len(anyone) - len(alike),
    )


def _metric_result(
    metric: Metric, scored: _Scored, pairs: Sequence[tuple[str, str]], resamples: int, seed: int
) -> MetricResult:
    pairs = [pair for pair in pairs if scored.values.keys() >= set(pair)]
    strata = scored.strata
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    return MetricResult(
        metric=metric,
        scores={
            name: interval(values, scored.weights, strata=strata, **options) for name, values in scored.values.items()
        },
        pairs=compare_all(scored.values, scored.weights, pairs, strata=strata, **options),
        examples=len(scored.keys),
        missing=scored.missing,
        parts={} if strata is None else _grouped(scored, _by_name([key[0] for key in scored.keys]), **options),
    )


def _grouped(scored: _Scored, groups: Mapping[str, Integers], **options: Any) -> dict[str, dict[str, Interval]]:
    """Intervals by group and system, each group by itself."""
    found: dict[str, dict[str, Interval]] = {}
    for group, part in groups.items():
        weights = scored.weights[part]
        found[group] = {name: interval(values[part], weights, **options) for name, values in scored.values.items()}
    return found


def _breakdowns(metric: Metric, scored: _Scored, run: EvaluatedRun, resamples: int, seed: int) -> list[Breakdown]:
    facts = _facts(run)
    sources = [facts.get(key, ("", 0))[0] or "unnamed" for key in scored.keys]
    kept = {name for name, _ in Counter(sources).most_common(SOURCES)}
    lengths = np.array([facts.get(key, ("", 0))[1] for key in scored.keys])
    groups = {"source": _by_name([name if name in kept else "all others" for name in sources])}
    groups["prompt length"] = _by_length(lengths)
    found = []
    for title, parts in groups.items():
        if len(parts) > 1:
            counted = {f"{name} ({len(part)})": part for name, part in parts.items()}
            found.append(Breakdown(title, metric, _grouped(scored, counted, resamples=resamples, seed=seed)))
    return found


def _by_name(names: list[str]) -> dict[str, Integers]:
    """Examples of each name, in the order in which the names come."""
    return {name: np.flatnonzero(np.array(names) == name) for name in dict.fromkeys(names)}


def _by_length(lengths: Integers) -> dict[str, Integers]:
    """Bands that hold about as many examples each."""
    # Lengths that occur: where many prompts are equally long, bands fall together.
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, BANDS + 1)[1:], method="higher"))
    bands = np.searchsorted(edges, lengths)
    return {f"up to {edge:,} bytes": np.flatnonzero(bands == number) for number, edge in enumerate(edges)}


def _facts(run: EvaluatedRun) -> dict[Key, tuple[str, int]]:
    """Source and prompt bytes of each example."""
    facts: dict[Key, tuple[str, int]] = {}
    for scores in run.models.values():
        if scores.answers is not None:
            table = scores.answers.select(["dataset", "id", "source", "prompt"]).to_pylist()
            facts |= {(row["dataset"], row["id"]): (row["source"], len(row["prompt"].encode())) for row in table}
        if scores.likelihood is not None:
            table = scores.likelihood.select(["dataset", "id", "source", "prompt_bytes"]).to_pylist()
            facts |= {(row["dataset"], row["id"]): (row["source"], row["prompt_bytes"]) for row in table}
    return facts


def _cases(systems: dict[str, ModelScores], pair: tuple[str, str] | None, ambiguous: set[Key]) -> list[Case]:
    tables = {name: scores.answers.to_pylist() for name, scores in systems.items() if scores.answers is not None}
    cases: dict[Key, Case] = {}
    totals: dict[tuple[Key, str], list[float]] = {}
    for name, rows in tables.items():
        for row in rows:
            key = row["dataset"], row["id"]
            if key in ambiguous:
                continue
            case = cases.setdefault(key, Case(*key, row["source"], row["prompt"], row["reference"], {}, {}, 0.0))
            case.answers.setdefault(name, row["answer"])
            if not math.isnan(row["rougeL"]):  # a reference without a word: nothing to score
                totals.setdefault((key, name), []).append(100 * row["rougeL"])
    for (key, name), values in totals.items():
        cases[key].scores[name] = float(np.mean(values))
    for case in cases.values():
        if pair and all(name in case.scores for name in pair):
            case.gap = round(case.scores[pair[0]] - case.scores[pair[1]], 9)  # a rounding error is no win
    return sorted(cases.values(), key=lambda case: (-abs(case.gap), case.dataset, case.id))


def _differing(runs: Sequence[EvaluatedRun]) -> dict[str, list[str]]:
    """Settings with other values in some runs; one that a run has no use for (sft: the cache's) is no difference."""
    found = {}
    for name in dict.fromkeys(name for run in runs for name in run.lineage):
        if len({run.lineage[name] for run in runs if name in run.lineage}) > 1:
            found[name] = [run.lineage.get(name, "") for run in runs]
    return found


def _notes(result: RunComparison) -> list[str]:
    notes = []
    for found in result.metrics.values():
        if found.missing:
            notes.append(
                f"{found.metric.title}: compared on the {found.examples} examples that all share; "
                f"{found.missing} others were scored for some models only, are another text "
                "under the same id, or were cut elsewhere."
            )
    for run in result.runs:
        for dataset, (leaked, excluded) in _leaks(run).items():
            where = f" of {dataset}" if len(run.datasets) > 1 else ""
            what = "left out of the scores" if excluded else "still in the scores"
            notes.append(f"{run.name}: {leaked} test examples{where} occur in the training data; they are {what}.")
    return notes


def _leaks(run: EvaluatedRun) -> dict[str, tuple[int, int]]:
    """Leaked and excluded examples by data set, where there are any."""
    found: dict[str, tuple[int, int]] = {}
    for name, count in run.counts.items():
        dataset, _, kind = name.rpartition("/")
        dataset = dataset or run.datasets[0]
        leaked, excluded = found.get(dataset, (0, 0))
        if kind.startswith("leaked_"):
            found[dataset] = leaked + count, excluded
        elif kind == "excluded":
            found[dataset] = leaked, count
    return {dataset: counts for dataset, counts in found.items() if counts[0]}
