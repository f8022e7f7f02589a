"""The evaluate stage: score, count, say what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sra_core.compare import (
    AnswerCounts,
    Interval,
    ModelScores,
    all_references,
    count_answers,
    interval,
)
from sra_core.config import RunConfig
from sra_core.evaluate.contenders import Scoring
from sra_core.evaluate.sets import evaluation_sets
from sra_core.evaluate.summary import AVERAGE, SUMMARY, counted_answers, summary
from sra_core.shards import Manifest, StageFolder, atomic_write
from sra_core.watch import Watcher

__all__ = ["score_student"]


Scores = dict[str, dict[str, dict[str, Interval]]]


def score_student(config: RunConfig, upstream: Sequence[Manifest], folder: StageFolder, watch: Watcher) -> Manifest:
    """Score every contender on every data set; what was scored before a restart is not scored again.

    Args:
        config: The run config.
        upstream: Prepared examples and the trained student.
        folder: Where scores, answers and the summary go; its lock is held.
        watch: Told of progress.

    Raises:
        DataError: A data set cannot be read.
        EvaluationError: There is no test example, or each occurs in the training data.
    """
    prepared, trained = upstream
    sets, counts = evaluation_sets(config, prepared, folder.path, watch)
    made = Scoring(config, prepared, sets, folder.path, watch).run(trained)
    scores = {name: _intervals(each) for name, each in made.items()}
    answers = {name: each.answers for name, each in made.items() if each.answers is not None}
    counted = {name: _counted(made[name]) for name in answers}
    for name, found in counted.items():
        counts |= {f"{name}_empty_answers": found.empty, f"{name}_unfinished_answers": found.unfinished}
    heading = f"{config.name}: {config.objective.name}, {trained.counts['steps']} steps"
    text = summary(heading, scores, answers, _remarks(config, counted), config.evaluate.samples)
    with atomic_write(folder.path / SUMMARY) as file:
        file.write(text.encode())
    # Whatever was made before a restart is part of the result as well.
    names = sorted(path.name for path in folder.path.iterdir() if path.suffix in {".parquet", ".md", ".jsonl"})
    return folder.commit(
        upstream=upstream,
        files=[folder.entry(name) for name in names],
        counts=counts,
        metrics=dict(_metrics(scores, sets[0].name, own=sets[0].name == config.evaluate.test_name)),
    )


def _counted(scores: ModelScores) -> AnswerCounts:
    assert scores.answers is not None
    texts = (scores.answers[name].to_pylist() for name in ("answer", "finish_reason"))
    return count_answers(all_references(scores.answers), *texts)


def _remarks(config: RunConfig, counted: Mapping[str, AnswerCounts]) -> str:
    remarks = [counted_answers(counted)]
    if config.teacher.source.startswith("random:"):
        remarks.append("The models of this recipe are untrained: these figures only show that everything runs.")
    return "\n\n".join(remark for remark in remarks if remark)


def _intervals(scores: ModelScores) -> dict[str, dict[str, Interval]]:
    """By metric and data set, their average last where there are several."""
    found: dict[str, dict[str, Interval]] = {}
    for metric in scores.metrics():
        values = scores.values(metric.name)
        if values is None:
            continue
        keys, numerators, denominators = values
        groups: dict[str, list[int]] = {}
        for index, (dataset, _) in enumerate(keys):
            groups.setdefault(dataset, []).append(index)
        found[metric.name] = {name: interval(numerators[part], denominators[part]) for name, part in groups.items()}
        if len(groups) > 1:
            numbers = {name: number for number, name in enumerate(groups)}
            strata = np.array([numbers[dataset] for dataset, _ in keys])
            # Sets weigh alike in it, however many examples each has.
            found[metric.name][AVERAGE] = interval(numerators, denominators, strata=strata)
    return found


def _metrics(scores: Scores, first: str, own: bool) -> Iterator[tuple[str, float]]:
    """Names that every run has: ``evaluate/<model>/<metric>`` is the corpus's own test split.

    Where there are several data sets, or one that is not the corpus's own, ``evaluate/<data set>/<model>/<metric>`` is
    each of them and ``evaluate/average/<model>/<metric>`` their mean.
    """
    for model, metrics in scores.items():
        for metric, by_dataset in metrics.items():
            for dataset, value in by_dataset.items():
                # A slash marks tasks of lm-eval, which belong to no data set.
                plain = "/" in metric or (own and dataset == first)
                if plain:
                    yield f"evaluate/{model}/{metric}", value.estimate
                if len(by_dataset) > 1 or not plain:
                    yield f"evaluate/{dataset}/{model}/{metric}", value.estimate
