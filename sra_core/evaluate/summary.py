"""The report that ends a run, in Markdown: scores before and after, by data set, and answers side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sra_core.compare import Interval, compare_runs, figures, read_run, report_tables
from sra_core.compare.results import TITLES
from sra_core.compare.words import COUNTED, COUNTED_NOTE
from sra_core.shards import Manifest
from sra_core.watch import Watcher, escape_markdown

__all__ = ["AVERAGE", "SUMMARY", "counted_answers", "report_evaluation", "summary"]

SUMMARY = "summary.md"
"""File of the report."""
AVERAGE = "average"
"""Stands for the mean of all data sets, where there are several."""
_COLUMNS = (("bits_per_byte", "bits per byte"), ("rougeL", f"ROUGE-L ({COUNTED})"), ("top1", "agrees with teacher"))

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
    corner = "average over data sets" if average else "model"
    for name, titled, dataset in ((corner, columns, shown), ("lm-eval", tasks, "")):
        cells: dict[str, dict[str, Interval | None]] = {}
        for metric, title in titled:
            cells[title] = {model: _pick(scores[model].get(metric, {}), dataset) for model in scores}
        if cells:
            yield from _table(name, cells, {title: metric for metric, title in titled}, list(scores))
    main = student.get("bits_per_byte") or student.get("rougeL") or next(iter(student.values()))
    examples = _pick(main, shown)
    count = examples.examples if examples else 0
    seeds = max(value.seeds for by_dataset in student.values() for value in by_dataset.values())
    yield (
        f"On {count} held-out examples; ± is half of the 95 % interval over examples"
        f"{' and seeds' if examples and seeds > 1 else ''}. Lower bits per byte are better. ROUGE-L and "
        f"agreement (spans whose likeliest token is the teacher's) are percentages. {COUNTED_NOTE} The initial student "
        "is the student before training."
    )
    yield ""


def _pick(by_dataset: Mapping[str, Interval], name: str) -> Interval | None:
    """The score on a data set; where a metric was measured on one set alone, that."""
    return by_dataset.get(name) or (next(iter(by_dataset.values())) if len(by_dataset) == 1 else None)


def _by_dataset(metric: str, title: str, scores: Scores) -> Iterator[str]:
    """One row a model, one column a data set, their average last."""
    sets = list(scores["student"][metric])
    cells: dict[str, dict[str, Interval | None]] = {}
    for name in sets:
        cells[name] = {model: scores[model].get(metric, {}).get(name) for model in scores}
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
    """Questions with the answers of teacher and student side by side: good, fair and middling ones, by ROUGE-L."""
    if "student" not in answers or not samples or not len(answers["student"]):
        return
    tables = {name: table.to_pylist() for name, table in answers.items()}
    rows = tables["student"]
    asked = _bare_prompts([row["prompt"] for row in rows])
    # A reference without a word has no ROUGE: it comes last.
    order = sorted(range(len(rows)), key=lambda place: -np.nan_to_num(rows[place]["rougeL"], nan=-1))
    steps = range(samples) if samples > 1 else (0,)
    ranks = dict.fromkeys(step * (len(order) // 2) // max(1, samples - 1) for step in steps)
    shown = [name for name in ("teacher", "student") if name in tables]
    for rank in ranks:
        place = order[rank]
        yield f"### {escape_markdown(asked[place])}\n"
        yield f"| reference | {' | '.join(TITLES[name] for name in shown)} |"
        yield "|---" * (len(shown) + 1) + "|"
        cells = [rows[place]["reference"], *(tables[name][place]["answer"] for name in shown)]
        yield f"| {' | '.join(_short(cell) or '(empty)' for cell in cells)} |"
        yield f"\nThe student's answer {rank + 1} of {len(order)} by ROUGE-L.\n"


def _bare_prompts(prompts: Sequence[str], limit: int = 200) -> list[str]:
    """Prompts without the lines that all of them begin and end with, which are the template's."""
    split = [list(filter(str.strip, prompt.splitlines())) for prompt in prompts]
    first, last = _common(split), _common([lines[::-1] for lines in split])
    bare = []
    for lines in split:
        text = " ".join(lines[first : len(lines) - last]) if len(set(prompts)) > 1 else " ".join(lines)
        bare.append(text if len(text) <= limit else "… " + text[-limit:].partition(" ")[2])  # where the question is
    return bare


def _common(texts: Sequence[Sequence[str]]) -> int:
    """How many first lines all texts share."""
    count = 0
    for lines in zip(*texts, strict=False):
        if len(set(lines)) > 1:
            break
        count += 1
    return count


def _short(text: str, limit: int = 300) -> str:
    flat = " ".join(text.split())
    return escape_markdown(flat if len(flat) <= limit else flat[: limit - 1] + "…")


def counted_answers(counts: Mapping[str, Any]) -> str:
    """Empty and cut answers in words; empty where there are none.

    Args:
        counts: `AnswerCounts` by model.
    """
    parts = [
        f"{TITLES[name]} {each.empty} empty and {each.unfinished} cut at the token limit, of {each.answers}"
        for name, each in counts.items()
    ]
    unscorable = max((each.unscorable for each in counts.values()), default=0)
    if unscorable:
        parts.append(
            f"{unscorable} of each to references without a word, which have no ROUGE and are in no average of it"
        )
    return f"Answers: {'; '.join(parts)}." if parts else ""


def report_evaluation(manifest: Manifest, watch: Watcher) -> None:
    """Pass a finished evaluation on: the summary, and tables and figures of the same names for every run."""
    folder = Path(manifest.folder)
    watch.markdown("summary", (folder / SUMMARY).read_text())
    comparison = compare_runs([read_run(folder, "student")], resamples=500)
    for name, rows in report_tables(comparison).items():
        watch.table(f"evaluate/{name}", rows)
    for name, draw in figures(comparison).items():
        watch.figure(f"evaluate/{name}", draw)
