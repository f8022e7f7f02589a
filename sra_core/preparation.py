"""Prepare: the corpus through both tokenizers into shards of aligned examples, a shard at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sra_core.alignment import AlignedExample, AlignmentAudit, PairEncoder
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
from sra_core.watching import Watcher

__all__ = ["check_gate", "prepare_corpus", "prepare_identity", "show_audit"]

TEACHER_TOKENIZER = "teacher_tokenizer"
STUDENT_TOKENIZER = "student_tokenizer"
AUDIT = "audit.json"
REJECTED = "rejected.jsonl"


@dataclass(slots=True)
class Prepared:
    """What preparing made.

    Attributes:
        shards: In the order of the corpus.
        counts: Examples in, kept by split, and dropped by reason.
        audit: Coverage and span statistics over all kept examples.
        rejected: What was dropped, with reasons.
    """

    shards: list[ShardEntry] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    audit: AlignmentAudit = field(default_factory=AlignmentAudit)
    rejected: list[Rejected] = field(default_factory=list)


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
    corpus = Corpus(config.corpus, folder.path / "quarantine.jsonl")
    _save_tokenizers(config, corpus, folder, watch)
    result = prepare_shards(config, corpus, folder, watch)
    if not any(shard.rows for shard in result.shards if shard.split == "train"):
        raise DataError("no training example is left: " + _reasons(result.counts), "look at the reasons above")
    report = result.audit.report()
    with atomic_write(folder.path / AUDIT) as file:
        file.write(report.to_json().encode())
    with atomic_write(folder.path / REJECTED) as file:
        file.write("".join(json.dumps(asdict(item)) + "\n" for item in result.rejected).encode())
    names = [AUDIT, REJECTED, *(["quarantine.jsonl"] if (folder.path / "quarantine.jsonl").exists() else [])]
    tokenizers = [*folder.entries(TEACHER_TOKENIZER), *folder.entries(STUDENT_TOKENIZER)]
    return folder.commit(
        shards=result.shards,
        files=[*(folder.entry(name) for name in names), *tokenizers],
        counts=result.counts,
        metrics=report.metrics(),
    )


def _save_tokenizers(config: RunConfig, corpus: Corpus, folder: StageFolder, watch: Watcher) -> None:
    ref = student_tokenizer_ref(config)
    if ref is None:
        watch.message(f"training the student's tokenizer ({config.student.vocabulary_size} entries)")
    student = train_student_tokenizer(config, corpus) if ref is None else load_tokenizer(ref)
    load_tokenizer(config.teacher).save_pretrained(folder.path / TEACHER_TOKENIZER)
    student.save_pretrained(folder.path / STUDENT_TOKENIZER)


def _reasons(counts: Counter[str]) -> str:
    dropped = {name.removeprefix("dropped_"): n for name, n in counts.items() if name.startswith("dropped_")}
    return ", ".join(f"{n} {reason}" for reason, n in dropped.items()) or "the corpus is empty"


def make_encoder(config: RunConfig, folder: Path) -> PairEncoder:
    """The encoder of a prepared folder, from the tokenizers saved in it."""
    return PairEncoder(
        load_tokenizer(ModelRef(source=str(folder / TEACHER_TOKENIZER))),
        load_tokenizer(ModelRef(source=str(folder / STUDENT_TOKENIZER))),
        teacher_template=config.teacher.template,
        student_template=config.student.template,
        prompt=config.corpus.prompt,
        max_length=config.alignment.max_length,
        max_prompt=config.alignment.max_prompt,
    )


def prepare_shards(config: RunConfig, corpus: Corpus, folder: StageFolder, watch: Watcher) -> Prepared:
    """Encode, align and write every example of the corpus.

    Shards that were finished earlier are audited again but not encoded again. The result does not depend on the number
    of worker processes.

    Raises:
        DataError: Input that cannot be read.
        StorageError: A shard cannot be written.
    """
    result = Prepared()
    finished = folder.finished_shards()
    if finished:
        watch.message(f"{len(finished)} shards are finished already")
    with _Pool(config, folder, set(finished)) as pool:
        for task in _tasks(config, corpus, result):
            for outcome in pool.submit(task):
                _collect(outcome, result, watch)
        for outcome in pool.drain():
            _collect(outcome, result, watch)
    return result


@dataclass(slots=True)
class _Outcome:
    entry: ShardEntry
    audit: AlignmentAudit
    rejected: list[Rejected]


def _collect(outcome: _Outcome, result: Prepared, watch: Watcher) -> None:
    result.shards.append(outcome.entry)
    result.audit.merge(outcome.audit)
    result.rejected += outcome.rejected
    result.counts.update(outcome.entry.counts)
    done = sum(shard.rows for shard in result.shards)
    watch.progress(done, max(done, result.counts["in"]), "examples")


def _tasks(config: RunConfig, corpus: Corpus, result: Prepared) -> Iterator[_Task]:
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
            result.counts[f"dropped_{item.reason}"] += 1
            if item.reason != "over_limit":
                result.rejected.append(item)
            continue
        waiting[split].append(item)
        if len(waiting[split]) == size:
            yield task(split)
    for split, examples in waiting.items():
        if examples:
            yield task(split)


class _Pool:
    """Encodes tasks here or in worker processes; outcomes come in the order of the tasks."""

    def __init__(self, config: RunConfig, folder: StageFolder, finished: set[str]) -> None:
        self._config = config
        self._folder = folder
        self._finished = finished
        self._pending: list[Future[_Outcome]] = []
        self._workers = config.alignment.workers
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Pool:
        if self._workers > 1:
            self._executor = ProcessPoolExecutor(
                self._workers, get_context("spawn"), _start_worker, (self._config, self._folder, self._finished)
            )
        else:
            _start_worker(self._config, self._folder, self._finished)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._executor:
            self._executor.shutdown(cancel_futures=True)

    def submit(self, task: _Task) -> Iterator[_Outcome]:
        """Start a task; yields outcomes that had to be waited for, so that memory stays bounded."""
        if self._executor is None:
            yield _encode_shard(task)
            return
        self._pending.append(self._executor.submit(_encode_shard, task))
        while len(self._pending) > 2 * self._workers:
            yield self._pending.pop(0).result()

    def drain(self) -> Iterator[_Outcome]:
        """Outcomes of all tasks still running."""
        while self._pending:
            yield self._pending.pop(0).result()


_worker: dict[str, Any] = {}


def _start_worker(config: RunConfig, folder: StageFolder, finished: set[str]) -> None:
    _worker.update(encoder=make_encoder(config, folder.path), folder=folder, finished=finished)


def _encode_shard(task: _Task) -> _Outcome:
    folder: StageFolder = _worker["folder"]
    encoded: Sequence[AlignedExample | Rejected] = _worker["encoder"](task.examples)
    rejected = [item for item in encoded if isinstance(item, Rejected)]
    kept = [item for item in encoded if isinstance(item, AlignedExample)]
    audit = AlignmentAudit()
    for item in kept:
        audit.add(item)
    counts = Counter(f"dropped_{item.reason}" for item in rejected)
    counts[f"kept_{task.split}"] = len(kept)
    counts["truncated"] = sum(item.truncated for item in kept)
    counts["prompt_cut"] = sum(item.prompt_cut > 0 for item in kept)
    batches = [prepared_batch([_row(item) for item in kept])]
    entry = folder.write_shard(task.name, task.split, batches, PREPARED_SCHEMA, counts=counts)
    return _Outcome(entry, audit, rejected)


def _row(item: AlignedExample) -> PreparedRow:
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
