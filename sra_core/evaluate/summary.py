"""The report that ends a run, in Markdown: scores before and after, by data set, and answers side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from sra_core.compare import Interval
from sra_core.compare.results import TITLES

__all__ = ["AVERAGE", "summary"]

AVERAGE = "average"
"""Stands for the mean of all data sets, where there are several."""
_COLUMNS = (("bits_per_byte", "bits per byte"), ("rougeL", "ROUGE-L"), ("top1", "agrees with teacher"))

Scores = Mapping[str, Mapping[str, Mapping[str, Interval]]]
"""By model, metric and data set."""


def summary(heading: str, scores: Scores, answers: Mapping[str, pa.Table], counted: str, samples: int) -> str:
    """The whole report.

    Args:
        heading: What was run.
        scores: By model, metric and data set; `AVERAGE` is among the sets where there are several.
        answers: Generated answers by model.
        counted: What was empty or cut, in words.
        samples: Examples shown with all answers.
    """
    lines = [f"# {heading}", ""]
    sets = list(dict.fromkeys(name for each in scores["student"].values() for name in each))
    for metric, title in _COLUMNS:
        if len(sets) > 2 and metric in scores["student"] and len(scores["student"][metric]) > 2:
            lines += _by_dataset(metric, title, scores)
    lines += _overall(scores, AVERAGE if AVERAGE in sets else sets[0], average=AVERAGE in sets)
    lines += [counted, ""] if counted else []
    return "\n".join([*lines, *_samples(answers, samples)])


def _overall(scores: Scores, shown: str, *, average: bool) -> Iterator[str]:
    """One row a model, one column a metric."""
    student = scores["student"]
    columns = [(metric, title) for metric, title in _COLUMNS if metric in student]
    tasks = [(metric, metric.removeprefix("lm_eval/").replace("/", " ")) for metric in student if "/" in metric]
    yield from _table(
        "average over data sets" if average else "model",
        {title: {model: _pick(scores[model].get(metric, {}), shown) for model in scores} for metric, title in columns},
        dict(zip([title for _, title in columns], [metric for metric, _ in columns], strict=True)),
        list(scores),
    )
    if tasks:
        named = {
            title: {model: _pick(scores[model].get(metric, {}), "") for model in scores} for metric, title in tasks
        }
        yield from _table("lm-eval", named, {title: metric for metric, title in tasks}, list(scores))
    main = student.get("bits_per_byte") or student.get("rougeL") or next(iter(student.values()))
    examples = _pick(main, shown)
    count = examples.examples if examples else 0
    yield (
        f"On {count} held-out examples; ± is half of the 95 % interval over examples"
        f"{' and seeds' if examples and _seeds(student) > 1 else ''}. Lower bits per byte are better. ROUGE-L and "
        "agreement (spans whose likeliest token is the teacher's) are percentages. The initial student is the student "
        "before training."
    )
    yield ""


def _seeds(student: Mapping[str, Mapping[str, Interval]]) -> int:
    return max(value.seeds for each in student.values() for value in each.values())


def _pick(by_dataset: Mapping[str, Interval], name: str) -> Interval | None:
    """The score on a data set; where a metric was measured on one set alone, that."""
    return by_dataset.get(name) or (next(iter(by_dataset.values())) if len(by_dataset) == 1 else None)


def _by_dataset(metric: str, title: str, scores: Scores) -> Iterator[str]:
    """One row a model, one column a data set, their average last."""
    sets = list(scores["student"][metric])
    cells = {name: {model: scores[model].get(metric, {}).get(name) for model in scores} for name in sets}
    yield from _table(title, cells, dict.fromkeys(sets, metric), list(scores))


def _table(
    corner: str, columns: Mapping[str, Mapping[str, Interval | None]], metrics: Mapping[str, str], models: list[str]
) -> Iterator[str]:
    yield f"| {corner} | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for model in models:
        yield f"| {TITLES[model]} | {' | '.join(_cell(metrics[name], each[model]) for name, each in columns.items())} |"
    yield ""


def _cell(metric: str, value: Interval | None) -> str:
    if value is None:
        return ""
    digits = 3 if metric == "bits_per_byte" or "/" in metric else 1
    return f"{value.estimate:.{digits}f} ± {(value.high - value.low) / 2:.{digits}f}"


def _samples(answers: Mapping[str, pa.Table], samples: int) -> Iterator[str]:
    if "student" not in answers:
        return
    tables = {name: table.slice(0, samples).to_pylist() for name, table in answers.items()}
    for number, first in enumerate(tables["student"]):
        prompt = [line for line in first["prompt"].splitlines() if line.strip()]
        yield f"## {first['id']}\n"
        yield f"> {_ending(' '.join(prompt))}\n"
        yield f"- **reference**: {_short(first['reference'])}"
        for name, rows in tables.items():
            yield f"- **{TITLES[name]}**: {_short(rows[number]['answer']) or '(empty)'}"
        yield ""


def _ending(text: str, limit: int = 200) -> str:
    """The end of a prompt, where the question is, from a word's start on."""
    return text if len(text) <= limit else "… " + text[-limit:].partition(" ")[2]


def _short(text: str, limit: int = 300) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def counted_answers(counts: Mapping[str, Any]) -> str:
    """Empty and cut answers in words; empty where there are none.

    Args:
        counts: `AnswerCounts` by model.
    """
    parts = [
        f"{TITLES[name]} {each.empty} empty and {each.unfinished} cut at the token limit of {each.answers}"
        for name, each in counts.items()
    ]
    unscorable = max((each.unscorable for each in counts.values()), default=0)
    if unscorable:
        parts.append(
            f"{unscorable} of each to references without a word, which have no ROUGE and are in no average of it"
        )
    return f"Answers: {'; '.join(parts)}." if parts else ""
