"""The evaluate stage: teacher, initial student and student on the same held-out examples, one model at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from sra_core.alignment import SharedVocabulary
from sra_core.capture import TeacherCapture
from sra_core.config import ModelRef, RunConfig
from sra_core.corpus import Corpus, Example
from sra_core.distillation import STUDENT, initial_student
from sra_core.errors import EvaluationError
from sra_core.evaluation import (
    AnswerSet,
    AnswerSettings,
    Interval,
    ModelScores,
    agreement_table,
    count_answers,
    find_leaks,
    interval,
    likelihood_table,
    read_answers,
    response_likelihood,
    teacher_agreement,
)
from sra_core.models import layer_count, lm_head, load_model, load_tokenizer, pick_device
from sra_core.objective import Head
from sra_core.preparation import shared_tokens
from sra_core.shards import Manifest, PreparedRow, PreparedSet, StageFolder, atomic_write, fingerprint
from sra_core.watching import Watcher

__all__ = ["SUMMARY", "score_student"]

SUMMARY = "summary.md"
_KEY = b"sra"
_TOKENS = 4096
_TITLES = {"teacher": "teacher", "initial": "student before", "student": "student after"}
_COLUMNS = (("bits_per_byte", "bits per byte"), ("rougeL", "ROUGE-L"), ("top1", "agrees with teacher"))


def score_student(config: RunConfig, upstream: Sequence[Manifest], folder: StageFolder, watch: Watcher) -> Manifest:
    """Score every contender; what was scored before a restart is not scored again.

    Args:
        config: The run config.
        upstream: Prepared examples and the trained student.
        folder: Where scores, answers and the summary go; its lock is held.
        watch: Told of progress.

    Raises:
        EvaluationError: There is no test example, or each occurs in the training data.
    """
    prepared, trained = upstream
    rows, counts = _examples(config, prepared, watch)
    scores = _Scoring(config, prepared, trained, rows, folder.path, watch).run()
    intervals = {f"{name}/{metric}": value for name, each in scores.items() for metric, value in _intervals(each)}
    answers = {name: each.answers for name, each in scores.items() if each.answers is not None}
    for name, table in answers.items():
        columns = [table[column].to_pylist() for column in ("reference", "answer", "finish_reason")]
        found = count_answers(*columns)
        counts |= {f"{name}_empty_answers": found.empty, f"{name}_unfinished_answers": found.unfinished}
    metrics = {f"evaluate/{name}": value.estimate for name, value in intervals.items()}
    watch.table("evaluate/scores", _score_columns(intervals))
    with atomic_write(folder.path / SUMMARY) as file:
        file.write(_summary(config, trained, intervals, answers).encode())
    names = sorted(path.name for path in folder.path.iterdir() if path.suffix in {".parquet", ".md"})
    return folder.commit(
        upstream=upstream, files=[folder.entry(name) for name in names], counts=counts, metrics=metrics
    )


def _examples(config: RunConfig, prepared: Manifest, watch: Watcher) -> tuple[list[PreparedRow], dict[str, int]]:
    """The test examples that count, and what was left out."""
    settings = config.evaluate
    rows = list(PreparedSet(prepared, "test"))[: settings.examples]
    counts = {"examples": len(rows)}
    if settings.leaks != "off":
        training = PreparedSet(prepared, "train")
        report = find_leaks(rows, training, ngram=settings.leak_ngram, overlap=settings.leak_overlap)
        counts |= {f"leaked_{kind}": count for kind, count in report.counts().items() if count}
        if report.leaks:
            watch.table("evaluate/leaks", report.columns())
            action = "left out" if settings.leaks == "exclude" else "kept, as evaluate.leaks says"
            watch.message(f"{len(report.leaks)} test examples occur in the training data: {action}")
        if settings.leaks == "exclude":
            rows = [row for row in rows if row.id not in report.ids]
            counts |= {"excluded": counts["examples"] - len(rows), "examples": len(rows)}
    if not rows:
        raise EvaluationError(
            "there is no test example to score", "raise corpus.test_share or corpus.max_test, or look at evaluate.leaks"
        )
    return rows, counts


@dataclass(frozen=True, slots=True)
class _Contender:
    """A model under evaluation: ``teacher``, ``initial`` or ``student``; ``model`` tells one version from another."""

    name: str
    side: Literal["teacher", "student"]
    load: Callable[[], tuple[Any, Any]]
    model: str = ""


@dataclass(frozen=True, slots=True)
class _TeacherView:
    """What agreement with the teacher is measured against: its last layer's centres of each row, and its head rows."""

    centers: list[NDArray[Any]]
    head: Head


class _Scoring:
    """Scores of all contenders on the same rows; tables that are on disk already are read."""

    def __init__(
        self,
        config: RunConfig,
        prepared: Manifest,
        trained: Manifest,
        rows: Sequence[PreparedRow],
        folder: Path,
        watch: Watcher,
    ) -> None:
        self.config = config
        self.prepared = prepared
        self.trained = trained
        self.rows = rows
        self.folder = folder
        self.watch = watch
        self.device = pick_device(config.evaluate.device)
        self._loaded: tuple[str, Any, Any] | None = None
        self._shared: SharedVocabulary | None = None
        self._view: _TeacherView | None = None
        self._whole: list[str] = []

    def run(self) -> dict[str, ModelScores]:
        """Scores by contender."""
        return {contender.name: self._scores(contender) for contender in self._contenders()}

    def _contenders(self) -> Iterator[_Contender]:
        if self.config.evaluate.teacher:
            yield self._teacher()
        if self.config.evaluate.initial:
            yield _Contender("initial", "student", self._initial)
        yield _Contender("student", "student", self._student, self.trained.content)

    def _teacher(self) -> _Contender:
        def load() -> tuple[Any, Any]:
            model = load_model(self.config.teacher, self.config.cache.compute_dtype, self.device)
            return model, load_tokenizer(self.config.teacher)

        return _Contender("teacher", "teacher", load)

    def _initial(self) -> tuple[Any, Any]:
        model, tokenizer = initial_student(self.config, self.prepared)
        return model.to(self.device), tokenizer

    def _student(self) -> tuple[Any, Any]:
        ref = ModelRef(source=str(Path(self.trained.folder) / STUDENT))
        return load_model(ref, self.config.distill.precision, self.device), load_tokenizer(ref)

    def _model(self, contender: _Contender) -> tuple[Any, Any]:
        """The contender's model and tokenizer; the one before it is let go."""
        if self._loaded is None or self._loaded[0] != contender.name:
            self._loaded = None
            self._loaded = (contender.name, *contender.load())
        return self._loaded[1:]

    def _scores(self, contender: _Contender) -> ModelScores:
        return ModelScores(
            likelihood=self._table("likelihood", contender, self._likelihood),
            answers=self._answers(contender),
            agreement=self._table("agreement", contender, self._agreement) if self._agrees(contender) else None,
        )

    def _agrees(self, contender: _Contender) -> bool:
        return self.config.evaluate.teacher and contender.name != "teacher"

    def _table(self, kind: str, contender: _Contender, make: Callable[[_Contender], pa.Table]) -> pa.Table:
        """The table on disk if it was made from this very model and these rows, else a new one."""
        path = self.folder / f"{kind}-{contender.name}.parquet"
        key = fingerprint({"model": contender.model, "rows": [row.id for row in self.rows]}).encode()
        if not path.exists() or (pq.read_schema(path).metadata or {}).get(_KEY) != key:
            table = make(contender)
            with atomic_write(path) as file:
                pq.write_table(table.replace_schema_metadata({_KEY: key}), pa.PythonFile(file, mode="w"))
        return pq.read_table(path)

    def _likelihood(self, contender: _Contender) -> pa.Table:
        model, tokenizer = self._model(contender)
        scored = response_likelihood(
            model,
            self.rows,
            contender.side,
            eos_token_id=tokenizer.eos_token_id,
            progress=lambda done, total: self._progress(done, total, "texts", contender, "bits per byte"),
        )
        return likelihood_table(self.rows, scored)

    def _answers(self, contender: _Contender) -> pa.Table | None:
        settings = self.config.evaluate
        rows = self.rows[: settings.generate]
        if not rows:
            return None
        answers = AnswerSet(
            self.folder, contender.name, contender.side, AnswerSettings.of(settings), model=contender.model
        )
        paths = answers.make(
            lambda: self._model(contender),
            rows,
            self._references()[: len(rows)],
            batch_size=settings.batch_size,
            progress=lambda done, total: self._progress(done, total, "answers", contender, "answers"),
        )
        return read_answers(paths)

    def _references(self) -> list[str]:
        """Whole responses of the rows: what training may have cut short is not what an answer is measured against."""
        if not self._whole:
            whole = {row.id: row.response for row in self.rows}
            if self.prepared.counts.get("truncated"):
                for split, item in Corpus(self.config.corpus):
                    if split == "test" and isinstance(item, Example) and item.id in whole:
                        whole[item.id] = item.response
            self._whole = list(whole.values())
        return self._whole

    def _agreement(self, contender: _Contender) -> pa.Table:
        view = self._teacher_view()
        model, _ = self._model(contender)
        ids = torch.from_numpy(self._vocabulary().student_ids).long()
        head = lm_head(model).constant()
        return agreement_table(
            teacher_agreement(
                model,
                self.rows,
                view.centers,
                head.rows(ids.to(head.weight.device)),
                view.head.to(head.weight.device),
                weighted=self.config.objective.weighted_pooling,
            )
        )

    def _teacher_view(self) -> _TeacherView:
        if self._view is None:
            model, _ = self._model(self._teacher())
            last = layer_count(model)
            captured = TeacherCapture(model, [last], _TOKENS, self.config.objective.weighted_pooling)(self.rows)
            ids = torch.from_numpy(self._vocabulary().teacher_ids).long()
            head = lm_head(model).constant()
            self._view = _TeacherView([row.centers[last] for row in captured], head.rows(ids.to(head.weight.device)))
        return self._view

    def _vocabulary(self) -> SharedVocabulary:
        if self._shared is None:
            self._shared = shared_tokens(self.config, Path(self.prepared.folder))
        return self._shared

    def _progress(self, done: int, total: int, unit: str, contender: _Contender, what: str) -> None:
        self.watch.progress(done, total, unit, f"{_TITLES[contender.name]}: {what}")


def _intervals(scores: ModelScores) -> Iterator[tuple[str, Interval]]:
    for metric in ("bits_per_byte", "rougeL", "rouge1", "rouge2", "span_kl", "top1"):
        values = scores.values(metric)
        if values is not None:
            _, numerators, denominators = values
            yield metric, interval(numerators, denominators)


def _score_columns(intervals: dict[str, Interval]) -> dict[str, list[Any]]:
    parts = [name.partition("/") for name in intervals]
    return {
        "model": [model for model, _, _ in parts],
        "metric": [metric for _, _, metric in parts],
        "score": [value.estimate for value in intervals.values()],
        "low": [value.low for value in intervals.values()],
        "high": [value.high for value in intervals.values()],
        "examples": [value.examples for value in intervals.values()],
    }


def _summary(config: RunConfig, trained: Manifest, intervals: dict[str, Interval], answers: dict[str, pa.Table]) -> str:
    """The report that ends a run, in Markdown: scores before and after, and answers side by side."""
    models = list(dict.fromkeys(name.partition("/")[0] for name in intervals))
    columns = [(metric, title) for metric, title in _COLUMNS if f"student/{metric}" in intervals]
    lines = [
        f"# {config.name}: {config.objective.name}, {trained.counts['steps']} steps",
        "",
        f"| model | {' | '.join(title for _, title in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for model in models:
        cells = [_cell(metric, intervals.get(f"{model}/{metric}")) for metric, _ in columns]
        lines.append(f"| {_TITLES[model]} | {' | '.join(cells)} |")
    examples = intervals["student/bits_per_byte"].examples
    lines += [
        "",
        f"On {examples} held-out examples; ± is half of the 95 % interval over examples. Lower bits per byte are "
        "better. ROUGE-L and agreement (spans whose likeliest token is the teacher's) are percentages.",
        "",
    ]
    if config.teacher.source.startswith("random:"):
        lines += ["The models of this recipe are untrained: these figures only show that everything runs.", ""]
    return "\n".join([*lines, *_samples(config, answers)])


def _cell(metric: str, value: Interval | None) -> str:
    if value is None:
        return ""
    digits = 3 if metric == "bits_per_byte" else 1
    return f"{value.estimate:.{digits}f} ± {(value.high - value.low) / 2:.{digits}f}"


def _samples(config: RunConfig, answers: dict[str, pa.Table]) -> Iterator[str]:
    if "student" not in answers:
        return
    first = answers["student"]
    for number in range(min(config.evaluate.samples, len(first))):
        prompt = [line for line in first["prompt"][number].as_py().splitlines() if line.strip()]
        yield f"## {first['id'][number].as_py()}\n"
        yield f"> {_ending(' '.join(prompt))}\n"
        yield f"- **reference**: {_short(first['reference'][number].as_py())}"
        for name, table in answers.items():
            yield f"- **{_TITLES[name]}**: {_short(table['answer'][number].as_py()) or '(empty)'}"
        yield ""


def _ending(text: str, limit: int = 200) -> str:
    """The end of a prompt, where the question is, from a word's start on."""
    return text if len(text) <= limit else "… " + text[-limit:].partition(" ")[2]


def _short(text: str, limit: int = 300) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
