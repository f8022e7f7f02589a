"""Teacher, initial student and student, scored one at a time on the same examples."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from sra_core.alignment import SharedVocabulary
from sra_core.compare import ModelScores, read_answers
from sra_core.compare.results import TASKS, TITLES, file_name
from sra_core.config import ModelRef, RunConfig, StudentConfig, TeacherConfig
from sra_core.evaluate.agreement import agreement_table, teacher_agreement
from sra_core.evaluate.answers import AnswerSet
from sra_core.evaluate.generation import stop_tokens
from sra_core.evaluate.sets import EvaluationSet
from sra_core.evaluate.settings import AnswerSettings, pick_backend
from sra_core.evaluate.tables import is_made_from, write_table
from sra_core.models import (
    TeacherCapture,
    choose_layout,
    initial_student,
    layer_count,
    likelihood_table,
    lm_head,
    load_model,
    load_tokenizer,
    name_answer_end,
    pick_device,
    resolve,
    response_likelihood,
    shared_tokens,
)
from sra_core.models.likelihood import Side
from sra_core.objective import Head
from sra_core.shards import STUDENT, Manifest, fingerprint
from sra_core.watch import Watcher

__all__ = ["Scoring"]

_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class _Contender:
    """A model under evaluation: ``teacher``, ``initial`` or ``student``; ``model`` tells one version from another."""

    name: str
    side: Side
    dtype: str
    load: Callable[[], tuple[Any, Any]]
    folder: Callable[[Path], str | Path]
    """Local folder of the model; one that exists in memory only is written into the scratch folder given."""
    model: str = ""


@dataclass(frozen=True, slots=True)
class _TeacherView:
    """What agreement with the teacher is measured against: its last layer's centres of each row, and its head rows."""

    centers: list[NDArray[Any]]
    head: Head


class Scoring:
    """Scores of all contenders on the same examples; tables that are on disk already are read.

    Args:
        config: The run config, the teacher adapted where it is to be.
        prepared: Prepared examples.
        sets: What to score on.
        folder: Where tables go.
        watch: Told of progress.
    """

    def __init__(
        self,
        config: RunConfig,
        prepared: Manifest,
        sets: Sequence[EvaluationSet],
        folder: Path,
        watch: Watcher,
    ) -> None:
        self.config = config
        self.prepared = prepared
        self.sets = sets
        self.folder = folder
        self.watch = watch
        self.device = pick_device(config.evaluate.device)
        self.backend = pick_backend(config.evaluate.backend, self.device)
        self._loaded: tuple[str, Any, Any] | None = None
        self._shared: SharedVocabulary | None = None
        self._view: _TeacherView | None = None

    def run(self, trained: Manifest) -> dict[str, ModelScores]:
        """Scores by contender; ``trained`` is the trained student."""
        return {contender.name: self._scores(contender) for contender in self._contenders(trained)}

    def teacher_answers(self) -> pa.Table | None:
        """What the teacher answers; None where nothing is asked."""
        return self._answers(self._teacher())

    def _contenders(self, trained: Manifest) -> Iterator[_Contender]:
        if self.config.evaluate.teacher:
            yield self._teacher()
        precision = self.config.distill.precision
        if self.config.evaluate.initial:
            yield _Contender("initial", "student", "float32", self._initial, self._initial_folder)
        folder, trusted = Path(trained.folder) / STUDENT, self.config.student_origin.trust_remote_code
        ref = ModelRef(source=str(folder), trust_remote_code=trusted)
        load = self._loader("student", ref, precision)
        yield _Contender("student", "student", precision, load, lambda _: folder, trained.content)

    def _teacher(self) -> _Contender:
        ref, dtype = self.config.teacher, self.config.cache.compute_dtype
        return _Contender("teacher", "teacher", dtype, self._loader("teacher", ref, dtype), lambda _: resolve(ref))

    def _loader(self, side: Side, ref: ModelRef, dtype: str) -> Callable[[], tuple[Any, Any]]:
        # A tokenizer's code may come from another repository than the model's, with a trust of its own.
        tokenizer = ref.model_copy(update={"trust_remote_code": self.config.trusts_tokenizer(side)})
        return lambda: (load_model(ref, dtype, self.device), load_tokenizer(tokenizer))

    def _initial(self) -> tuple[Any, Any]:
        model, tokenizer = initial_student(self.config, self.prepared)
        return model.to(self.device), tokenizer

    def _initial_folder(self, scratch: Path) -> Path:
        for part in initial_student(self.config, self.prepared):
            part.save_pretrained(scratch)
        return scratch

    def _model(self, contender: _Contender) -> tuple[Any, Any]:
        """The contender's model and tokenizer; the one before it is let go."""
        if self._loaded is None or self._loaded[0] != contender.name:
            # Before the next one takes its memory.
            self._loaded = None
            model, tokenizer = contender.load()
            name_answer_end(model, tokenizer, self._part(contender))
            self._loaded = (contender.name, model, tokenizer)
            layout = choose_layout(self._loaded[1], self.config.layout, self.config.alignment.max_length)
            self.watch.message(f"{TITLES[contender.name]}: reads batches {layout}")
        return self._loaded[1:]

    def _part(self, contender: _Contender) -> TeacherConfig | StudentConfig:
        return self.config.teacher if contender.side == "teacher" else self.config.student

    def _scores(self, contender: _Contender) -> ModelScores:
        """Agreement comes first: the teacher, which was scored before, is still loaded."""
        settings = self.config.evaluate
        asked = (settings.teacher or settings.agreement) and contender.name != "teacher" and self.sets[0].rows
        agreement = self._agreement(contender) if asked else None
        likelihood = [self._likelihood(contender, each) for each in self.sets if each.rows]
        answers = self._answers(contender)
        return ModelScores(
            likelihood=pa.concat_tables(likelihood) if likelihood else None,
            answers=answers,
            agreement=agreement,
            tasks=self._tasks(contender) if settings.lm_eval else None,
        )

    def _table(self, name: str, contender: _Contender, made_from: Any, make: Callable[[], pa.Table]) -> pa.Table:
        """The table on disk if it was made from this very model and input, else a new one."""
        path = self.folder / name
        # The folder's name says all else. Teacher and initial student need no digest: they are in its identity.
        key = fingerprint({"model": contender.model, "input": made_from})
        if not is_made_from(path, key):
            write_table(path, make(), key)
        return pq.read_table(path).replace_schema_metadata(None)

    def _likelihood(self, contender: _Contender, each: EvaluationSet) -> pa.Table:
        def make() -> pa.Table:
            model, tokenizer = self._model(contender)
            scored = response_likelihood(
                model,
                each.rows,
                contender.side,
                eos_token_id=stop_tokens(model, tokenizer),
                progress=self._progress("texts", contender, each.name, "bits per byte"),
            )
            return likelihood_table(each.name, each.rows, scored)

        name = file_name("likelihood", each.name, contender.name)
        return self._table(name, contender, [row.id for row in each.rows], make)

    def _answers(self, contender: _Contender) -> pa.Table | None:
        """Answers to all sets; vLLM's engine is opened once for them, and let go afterwards."""
        settings = self.config.evaluate
        with TemporaryDirectory() as scratch:
            load = self._engine(contender, Path(scratch)) if self.backend == "vllm" else lambda: self._model(contender)
            paths = []
            for each in self.sets:
                # plain text asks nothing, so there is nothing to answer
                rows = [row for row in each.questions[: settings.generate] if row.prompt]
                answers = AnswerSet(
                    self.folder,
                    contender.name,
                    contender.side,
                    AnswerSettings.of(settings),
                    each.name,
                    self.backend,
                    contender.model,
                )
                progress = self._progress("answers", contender, each.name, "answers")
                references = [[row.response, *each.references.get(row.id, ())] for row in rows]
                paths += answers.make(load, rows, references, batch_size=settings.batch_size, progress=progress)
        return read_answers(paths) if paths else None

    def _engine(self, contender: _Contender, scratch: Path) -> Callable[[], tuple[Any, Any]]:
        """Opens the contender in vLLM at the first call, once the model that is loaded has left the GPU."""
        opened: list[tuple[Any, Any]] = []

        def load() -> tuple[Any, Any]:
            from sra_core.evaluate.vllm_backend import open_engine

            if not opened:
                self._loaded = None
                gc.collect()
                # torch keeps what a model has left until it is told to give it back.
                torch.cuda.empty_cache()
                folder = contender.folder(scratch)
                trusted = self.config.trusts_tokenizer(contender.side)
                tokenizer = load_tokenizer(ModelRef(source=str(folder), trust_remote_code=trusted))
                origin = self.config.teacher if contender.side == "teacher" else self.config.student_origin
                engine = open_engine(folder, contender.dtype, origin.trust_remote_code)
                name_answer_end(engine, tokenizer, self._part(contender))
                opened.append((engine, tokenizer))
            return opened[0]

        return load

    def _tasks(self, contender: _Contender) -> pa.Table:
        from sra_core.evaluate.tasks import score_tasks

        settings = self.config.evaluate
        asked = [settings.lm_eval, settings.lm_eval_chat, settings.lm_eval_folder, settings.lm_eval_limit]
        self.watch.message(f"{TITLES[contender.name]}: lm-eval {', '.join(settings.lm_eval)}")
        make = lambda: score_tasks(*self._model(contender), settings)  # noqa: E731
        return self._table(TASKS.format(contender.name), contender, asked, make)

    def _agreement(self, contender: _Contender) -> pa.Table:
        """Agreement with the teacher on the first set."""
        each = self.sets[0]

        def make() -> pa.Table:
            view = self._teacher_view()
            model, _ = self._model(contender)
            ids = torch.from_numpy(self._vocabulary().student_ids).long()
            head = lm_head(model).constant()
            scored = teacher_agreement(
                model,
                each.rows,
                view.centers,
                head.rows(ids.to(head.weight.device)),
                view.head.to(head.weight.device),
                weighted=self.config.objective.weighted_pooling,
            )
            return agreement_table(each.name, scored)

        name = file_name("agreement", each.name, contender.name)
        return self._table(name, contender, [row.id for row in each.rows], make)

    def _teacher_view(self) -> _TeacherView:
        if self._view is None:
            model, _ = self._model(self._teacher())
            last = layer_count(model)
            weighted = self.config.objective.weighted_pooling
            # Live, not from the cache, which holds training texts alone.
            captured = TeacherCapture(model, [last], _TOKENS, weighted, attention=weighted)(self.sets[0].rows)
            ids = torch.from_numpy(self._vocabulary().teacher_ids).long()
            head = lm_head(model).constant()
            self._view = _TeacherView([row.centers[last] for row in captured], head.rows(ids.to(head.weight.device)))
        return self._view

    def _vocabulary(self) -> SharedVocabulary:
        if self._shared is None:
            self._shared = shared_tokens(self.config, Path(self.prepared.folder))
        return self._shared

    def _progress(self, unit: str, contender: _Contender, dataset: str, what: str) -> Callable[[int, int], None]:
        where = f" on {dataset}" if len(self.sets) > 1 else ""
        return lambda done, total: self.watch.progress(done, total, unit, f"{TITLES[contender.name]}: {what}{where}")
