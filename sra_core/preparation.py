"""Prepare: the corpus through both tokenizers into shards of aligned examples, a shard at a time."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from pydantic import TypeAdapter

from sra_core.alignment import (
    AlignedExample,
    AlignmentAudit,
    AlignmentReport,
    PairEncoder,
    SharedVocabulary,
    render_figures,
    render_html,
    render_markdown,
    shared_vocabulary,
)
from sra_core.config import ModelRef, RunConfig, identity
from sra_core.corpus import Corpus, Example, Rejected, render
from sra_core.errors import AlignmentError, DataError
from sra_core.models import load_tokenizer, tokenizer_identity, train_tokenizer
from sra_core.shards import (
    PREPARED_SCHEMA,
    SCHEMA_VERSION,
    Manifest,
    PreparedRow,
    ShardEntry,
    StageFolder,
    atomic_write,
    prepared_batch,
)
from sra_core.shards.files import HashingWriter
from sra_core.watching import Watcher

__all__ = ["STUDENT_TOKENIZER", "TEACHER_TOKENIZER", "audit_of", "prepare_corpus", "prepare_identity", "shared_tokens"]

TEACHER_TOKENIZER = "teacher_tokenizer"
STUDENT_TOKENIZER = "student_tokenizer"
AUDIT = "audit.json"
AUDIT_PAGE = "audit.html"
REJECTED = "rejected.jsonl"
QUARANTINE = "quarantine.jsonl"
OVER_LIMIT = "over_limit"


@dataclass(slots=True)
class Prepared:
    """What preparing made.

    Attributes:
        audit: Coverage and span statistics over all examples.
        shards: In the order of the corpus.
        counts: Examples in, kept by split, and dropped by reason.
    """

    audit: AlignmentAudit
    shards: list[ShardEntry] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Task:
    """One shard's worth of examples."""

    name: str
    split: str
    examples: tuple[Example, ...]


def student_tokenizer_ref(config: RunConfig) -> ModelRef | None:
    """Where the student's tokenizer comes from; None when it is trained on the corpus."""
    if config.student.tokenizer == "train":
        return None
    if config.student.tokenizer != "source":
        return ModelRef(source=config.student.tokenizer, trust_remote_code=config.student.trust_remote_code)
    return config.teacher if config.student.source == "teacher" else config.student


def train_student_tokenizer(config: RunConfig, corpus: Corpus) -> Any:
    """A byte-level BPE tokenizer trained on the training split, prompts included."""
    if config.student.template == "chat":
        raise AlignmentError(
            "student.template is `chat`, but a tokenizer trained on the corpus has no chat template",
            "set student.template to `plain`, or name a student.tokenizer that has one",
        )
    return train_tokenizer(_training_texts(config, corpus), config.student.vocabulary_size)


def _training_texts(config: RunConfig, corpus: Corpus) -> Iterator[str]:
    for split, item in corpus:
        if split == "train" and isinstance(item, Example):
            rendered = render(item, "plain", config.corpus.prompt)
            yield rendered.prompt + rendered.response


def prepare_identity(config: RunConfig) -> dict[str, Any]:
    """All that determines the bytes of prepared examples."""
    teacher = load_tokenizer(config.teacher)
    ref = student_tokenizer_ref(config)
    student = {"train": config.student.vocabulary_size} if ref is None else tokenizer_identity(load_tokenizer(ref))
    return {
        "schema": SCHEMA_VERSION,
        "corpus": Corpus(config.corpus).identity(),
        "alignment": identity(config.alignment),
        "teacher": {**tokenizer_identity(teacher), "template": config.teacher.template},
        "student": {"tokenizer": student, "template": config.student.template},
    }


def prepare_corpus(config: RunConfig, folder: StageFolder, watch: Watcher) -> Manifest:
    """Make the tokenizers, the shards and the audit, and write the manifest.

    Args:
        config: The run config.
        folder: Where they go; its lock is held.
        watch: Told of progress.

    Raises:
        DataError: Input that cannot be read.
        TokenizerError: A tokenizer without offsets.
        StorageError: The store cannot be written.
    """
    corpus = Corpus(config.corpus, folder.path / QUARANTINE)
    save_tokenizers(config, corpus, folder.path, watch)
    teacher, student = load_tokenizers(folder.path)
    result = _prepare_shards(config, corpus, folder, shared_tokens(config, folder.path), watch)
    if not any(shard.rows for shard in result.shards if shard.split == "train"):
        raise DataError(
            f"no training example is left of {result.counts['in']}: {_reasons(result.counts)}",
            f"look at {folder.path / REJECTED}, then mend the data or the limits in corpus and alignment",
        )
    report = result.audit.report(teacher, student)
    _write(folder.path / AUDIT, json.dumps(report.to_dict()))
    _write(folder.path / AUDIT_PAGE, render_html(report))
    names = [name for name in (AUDIT, AUDIT_PAGE, REJECTED, QUARANTINE) if (folder.path / name).exists()]
    tokenizers = [*folder.entries(TEACHER_TOKENIZER), *folder.entries(STUDENT_TOKENIZER)]
    manifest = folder.commit(
        shards=result.shards,
        files=[*(folder.entry(name) for name in names), *tokenizers],
        counts=result.counts,
        metrics=report.metrics(),
    )
    _report(report, manifest, watch)
    return manifest


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def load_tokenizers(folder: Path) -> tuple[Any, Any]:
    """Teacher's and student's tokenizers as a prepared folder keeps them."""
    teacher, student = (ModelRef(source=str(folder / name)) for name in (TEACHER_TOKENIZER, STUDENT_TOKENIZER))
    return load_tokenizer(teacher), load_tokenizer(student)


def shared_tokens(config: RunConfig, folder: Path) -> SharedVocabulary:
    """The shared vocabulary of a prepared folder's tokenizers, as the config wants it."""
    return shared_vocabulary(*load_tokenizers(folder), first_tokens=config.alignment.first_tokens)


def audit_of(manifest: Manifest) -> AlignmentReport:
    """The audit that the prepare stage made."""
    return TypeAdapter(AlignmentReport).validate_json((Path(manifest.folder) / AUDIT).read_bytes())


def _report(report: AlignmentReport, manifest: Manifest, watch: Watcher) -> None:
    """Pass the audit on as tables, figures, Markdown and a page."""
    for name, columns in report.tables().items():
        watch.table(f"alignment/{name}", columns)
    for name, figure in render_figures(report).items():
        watch.figure(name, figure)
    watch.markdown("alignment_audit", render_markdown(report))
    watch.artifact(Path(manifest.folder) / AUDIT_PAGE)
    overall = report.overall
    watch.message(
        f"spans cover {overall.coverage:.2%} of the response bytes, {overall.one_to_one:.0%} of them one token to one; "
        f"{overall.teacher.mean:.2f} teacher and {overall.student.mean:.2f} student tokens a span"
    )


def save_tokenizers(config: RunConfig, corpus: Corpus, folder: Path, watch: Watcher) -> None:
    """Write both tokenizers into a folder; the student's is trained first where the config wants that."""
    ref = student_tokenizer_ref(config)
    if ref is None:
        watch.message(f"training the student's tokenizer ({config.student.vocabulary_size} entries)")
    student = train_student_tokenizer(config, corpus) if ref is None else load_tokenizer(ref)
    load_tokenizer(config.teacher).save_pretrained(folder / TEACHER_TOKENIZER)
    student.save_pretrained(folder / STUDENT_TOKENIZER)


def _reasons(counts: Counter[str]) -> str:
    dropped = {name.removeprefix("dropped_"): n for name, n in counts.items() if name.startswith("dropped_")}
    return ", ".join(f"{n} {reason}" for reason, n in dropped.items()) or "the corpus is empty"


def make_encoder(config: RunConfig, folder: Path) -> PairEncoder:
    """The encoder of a prepared folder, from the tokenizers saved in it."""
    teacher, student = load_tokenizers(folder)
    return PairEncoder(
        teacher,
        student,
        teacher_template=config.teacher.template,
        student_template=config.student.template,
        prompt=config.corpus.prompt,
        max_length=config.alignment.max_length,
        max_prompt=config.alignment.max_prompt,
    )


@dataclass(slots=True)
class _Outcome:
    """One shard, encoded; ``rejected`` are the examples that the encoder turned away."""

    entry: ShardEntry
    audit: AlignmentAudit
    rejected: list[Rejected]


def _prepare_shards(
    config: RunConfig, corpus: Corpus, folder: StageFolder, shared: SharedVocabulary, watch: Watcher
) -> Prepared:
    """Encode, align and write every example of the corpus; memory holds a few shards, whatever the corpus.

    A shard that was finished earlier stays as it is; its examples are only audited again. The result does not depend on
    the number of worker processes.
    """
    result = Prepared(AlignmentAudit(shared))
    finished = folder.finished_shards()
    if finished:
        watch.message(f"{len(finished)} shards are finished already")
    with atomic_write(folder.path / REJECTED) as log, _Pool(config, folder, finished, shared) as pool:

        def collect(outcome: _Outcome) -> None:
            result.shards.append(outcome.entry)
            result.audit.merge(outcome.audit)
            result.counts.update(outcome.entry.counts)
            for item in outcome.rejected:
                _log(log, item)
            watch.progress(sum(shard.rows for shard in result.shards), 0, "examples")

        for task in _tasks(config, corpus, result, log):
            for outcome in pool.submit(task):
                collect(outcome)
        for outcome in pool.drain():
            collect(outcome)
    return result


def _tasks(config: RunConfig, corpus: Corpus, result: Prepared, log: HashingWriter) -> Iterator[_Task]:
    size = config.alignment.examples_per_shard
    waiting: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    made: Counter[str] = Counter()

    def task(split: str) -> _Task:
        name = f"{split}-{made[split]:05d}.arrow"
        made[split] += 1
        examples, waiting[split] = tuple(waiting[split]), []
        return _Task(name, split, examples)

    for split, item in corpus:
        result.counts["in"] += 1
        if isinstance(item, Rejected):
            if item.reason == OVER_LIMIT:  # asked for: neither listed nor held against the data
                result.counts["left_out_by_corpus_max"] += 1
                continue
            result.counts[f"dropped_{item.reason}"] += 1
            result.audit.add(item)
            _log(log, item)
            continue
        waiting[split].append(item)
        if len(waiting[split]) == size:
            yield task(split)
    for split, examples in waiting.items():
        if examples:
            yield task(split)


def _log(log: HashingWriter, item: Rejected) -> None:
    log.write((json.dumps(asdict(item), ensure_ascii=False) + "\n").encode())


class _Pool:
    """Encodes tasks here or in worker processes; outcomes come in the order of the tasks."""

    def __init__(
        self, config: RunConfig, folder: StageFolder, finished: Mapping[str, ShardEntry], shared: SharedVocabulary
    ) -> None:
        self._setting = (config, folder, dict(finished), shared)
        self._workers = config.alignment.workers
        self._pending: deque[Future[_Outcome]] = deque()
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Pool:
        if self._workers > 1:
            spawn = get_context("spawn")
            self._executor = ProcessPoolExecutor(self._workers, spawn, _start_process, self._setting)
        else:
            _start_worker(*self._setting)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._executor:
            self._executor.shutdown(cancel_futures=True)
        _worker.clear()

    def submit(self, task: _Task) -> Iterator[_Outcome]:
        """Start a task; yields outcomes that had to be waited for, so that memory stays bounded."""
        if self._executor is None:
            yield _encode_shard(task)
            return
        self._pending.append(self._executor.submit(_encode_shard, task))
        while len(self._pending) > 2 * self._workers:
            yield self._pending.popleft().result()

    def drain(self) -> Iterator[_Outcome]:
        """Outcomes of all tasks still running."""
        while self._pending:
            yield self._pending.popleft().result()


_worker: dict[str, Any] = {}


def _start_process(*setting: Any) -> None:
    """A worker process must not outlive the stage, however that ends."""
    Thread(target=_end_with_parent, daemon=True).start()
    _start_worker(*setting)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start_worker(
    config: RunConfig, folder: StageFolder, finished: Mapping[str, ShardEntry], shared: SharedVocabulary
) -> None:
    _worker.update(encoder=make_encoder(config, folder.path), folder=folder, finished=finished, shared=shared)


def _encode_shard(task: _Task) -> _Outcome:
    encoded: Sequence[AlignedExample | Rejected] = _worker["encoder"](task.examples)
    audit = AlignmentAudit(_worker["shared"])
    for item in encoded:
        audit.add(item)
    kept = [item for item in encoded if isinstance(item, AlignedExample)]
    rejected = [item for item in encoded if isinstance(item, Rejected)]
    entry = _worker["finished"].get(task.name) or _write_shard(task, kept, rejected)
    return _Outcome(entry, audit, rejected)


def _write_shard(task: _Task, kept: Sequence[AlignedExample], rejected: Sequence[Rejected]) -> ShardEntry:
    counts = Counter(f"dropped_{item.reason}" for item in rejected)
    counts[f"kept_{task.split}"] = len(kept)
    counts["truncated"] = sum(item.truncated for item in kept)
    counts["prompt_cut"] = sum(item.prompt_cut > 0 for item in kept)
    folder: StageFolder = _worker["folder"]
    batches = [prepared_batch([prepared_row(item) for item in kept])]
    return folder.write_shard(task.name, task.split, batches, PREPARED_SCHEMA, counts=counts)


def prepared_row(item: AlignedExample) -> PreparedRow:
    """An aligned example as it is stored."""
    return PreparedRow(
        id=item.id,
        teacher_ids=item.teacher_ids,
        student_ids=item.student_ids,
        teacher_spans=item.spans.teacher,
        student_spans=item.spans.student,
        teacher_response=item.teacher_response,
        student_response=item.student_response,
        prompt=item.prompt,
        response=item.response,
        source=item.source,
    )
