"""Prepare: the corpus through both tokenizers into shards of aligned examples, a shard at a time."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sra_core.alignment import (
    AlignmentAudit,
    AlignmentReport,
    render_figures,
    render_html,
    render_markdown,
    shared_vocabulary,
)
from sra_core.config import AuditThresholds, RunConfig, StudentConfig, TeacherConfig, hashed
from sra_core.corpus import Corpus, Example, Rejected
from sra_core.errors import DataError
from sra_core.models import tokenizer_identity_of
from sra_core.prepare.tasks import (
    Outcome,
    Task,
    Tools,
    encode_shard,
    finished_outcome,
    forget_tools,
    hold_tools,
    save_tools,
)
from sra_core.prepare.tokenizers import save_tokenizers, tell_templates
from sra_core.processes import Pool
from sra_core.runs import Run
from sra_core.shards import SCHEMA_VERSION, Manifest, ShardEntry, StageFolder, atomic_write
from sra_core.shards.files import HashingWriter
from sra_core.shards.prepared import STUDENT_TOKENIZER, TEACHER_TOKENIZER
from sra_core.watch import Watcher

__all__ = ["AUDIT_PAGE", "audit_of", "identity", "prepare_corpus"]

AUDIT = "audit.json"
AUDIT_PAGE = "audit.html"
REJECTED = "rejected.jsonl"
QUARANTINE = "quarantine.jsonl"
OVER_LIMIT = "over_limit"
POSITIONS = "bytes"
"""Of what the cuts between spans are positions: part of the identity, as other rules give other spans."""


@dataclass(slots=True)
class Prepared:
    """What preparing made.

    Attributes:
        audit: Coverage and span statistics over all examples.
        shards: In the order of the corpus.
        counts: Examples in, kept by split, and dropped by reason.
        rejected: What the corpus turned away and no shard has taken along yet.
    """

    audit: AlignmentAudit
    shards: list[ShardEntry] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    rejected: list[Rejected] = field(default_factory=list)


def identity(run: Run) -> dict[str, Any]:
    """All that determines the bytes of prepared examples."""
    config = run.config
    ref = config.student_tokenizer_origin
    # The gate judges what was made and shapes none of it; its defaults stay, as results from before are named by them.
    alignment = {**hashed(config.alignment), "gate": AuditThresholds().model_dump()}
    student = {"train": config.student.vocabulary_size} if ref is None else tokenizer_identity_of(ref)
    return {
        "schema": SCHEMA_VERSION,
        "positions": POSITIONS,
        "corpus": Corpus(config.corpus).identity(),
        "alignment": alignment,
        "teacher": {**tokenizer_identity_of(config.teacher), **_template(config.teacher)},
        "student": {"tokenizer": student, **_template(config.student)},
    }


def _template(part: TeacherConfig | StudentConfig) -> dict[str, Any]:
    """How a side renders examples. Chat templates say how answers end, which they did not always."""
    found: dict[str, Any] = {"template": part.template}
    if part.template == "chat":
        found["answer_end"] = "template"
    if part.template_arguments:
        found["arguments"] = part.template_arguments
    return found


def prepare_corpus(
    config: RunConfig, folder: StageFolder, watch: Watcher, executor: Executor | None = None
) -> Manifest:
    """Make the tokenizers, the shards and the audit, and write the manifest.

    Args:
        config: The run config.
        folder: Where they go; its lock is held.
        watch: Told of progress.
        executor: Where shards are made; unset uses this machine, as ``alignment.workers`` says.

    Raises:
        DataError: Input that cannot be read.
        TokenizerError: A tokenizer without offsets.
        StorageError: The store cannot be written.
    """
    corpus = Corpus(config.corpus, folder.path / QUARANTINE)
    tokenizers = save_tokenizers(config, corpus, folder.path, watch)
    saved = [*folder.entries(TEACHER_TOKENIZER), *folder.entries(STUDENT_TOKENIZER)]
    tell_templates(config, tokenizers, watch)
    shared = shared_vocabulary(*tokenizers, first_tokens=config.alignment.first_tokens)
    if executor is None and config.alignment.workers == 1:  # threads of this process
        tools = hold_tools(config, folder, tokenizers, shared)
    else:
        tools = save_tools(config, folder, tokenizers, shared, saved)
    result = Prepared(AlignmentAudit(shared))
    with atomic_write(folder.path / REJECTED) as log, Pool(encode_shard, config.alignment.workers, executor) as pool:
        # `admitted` looks at all rows, which limits ask for anyway: progress knows its end from the start.
        _Shards(folder, result, log, watch, corpus.admitted).make(_pieces(config, corpus, result), tools, pool)
    forget_tools(folder)
    for note in corpus.notes():
        watch.message(note)
    if not any(shard.rows for shard in result.shards if shard.split == "train"):
        raise DataError(
            f"no training example is left of {result.counts['in']}: {_reasons(result.counts)}",
            f"look at {folder.path / REJECTED}, then mend the data or the limits in corpus and alignment"
            + (", or say with corpus.splits which data is for training" if corpus.brought else ""),
        )
    report = result.audit.report(*tokenizers)
    _write(folder.path / AUDIT, json.dumps(report.to_dict()))
    _write(folder.path / AUDIT_PAGE, render_html(report))
    names = [name for name in (AUDIT, AUDIT_PAGE, REJECTED, QUARANTINE) if (folder.path / name).exists()]
    manifest = folder.commit(
        shards=result.shards,
        files=[*(folder.entry(name) for name in names), *saved],
        counts=result.counts,
        metrics=report.metrics(),
    )
    overall = report.overall
    watch.message(
        f"spans cover {overall.coverage:.2%} of the response bytes, {overall.one_to_one:.0%} of them one token to one; "
        f"{overall.teacher.mean:.2f} teacher and {overall.student.mean:.2f} student tokens per span"
    )
    return manifest


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def audit_of(manifest: Manifest) -> AlignmentReport:
    """The audit that the prepare stage made."""
    return TypeAdapter(AlignmentReport).validate_json((Path(manifest.folder) / AUDIT).read_bytes())


def report_audit(report: AlignmentReport, manifest: Manifest, watch: Watcher) -> None:
    """Pass the audit on as tables, figures, Markdown and a page, that of a reused result too."""
    for name, rows in report.tables().items():
        watch.table(f"alignment/{name}", rows)
    for name, draw in render_figures(report).items():
        watch.figure(name, draw)
    watch.markdown("alignment_audit", render_markdown(report))
    watch.artifact(Path(manifest.folder) / AUDIT_PAGE)


def _reasons(counts: Counter[str]) -> str:
    dropped = {name.removeprefix("dropped_"): n for name, n in counts.items() if name.startswith("dropped_")}
    return ", ".join(f"{n} {reason}" for reason, n in dropped.items()) or "the corpus is empty"


class _Shards:
    """Has every shard made and gathers the outcomes, in the order of the corpus, whoever makes them.

    A shard that was finished earlier stays as it is. Memory holds a few shards, whatever the corpus.
    """

    def __init__(self, folder: StageFolder, result: Prepared, log: HashingWriter, watch: Watcher, total: int) -> None:
        self._folder = folder
        self._result = result
        self._log = log
        self._watch = watch
        self._finished = folder.finished_shards()
        self._done, self._total = 0, total
        if self._finished:
            watch.message(f"{len(self._finished)} shards are finished already")

    def make(self, pieces: Iterable[_Piece], tools: Tools, pool: Pool[Task, Outcome]) -> None:
        """Make the shards of all pieces."""
        # Outcomes come in the order of the pieces, whoever makes them: so does the list of what was turned away.
        turned_away: deque[tuple[Rejected, ...]] = deque()
        for piece in pieces:
            turned_away.append(piece.rejected)
            finished = self._finished.get(piece.name)
            known = finished_outcome(self._folder, finished) if finished else None
            task = Task(self._folder, tools, piece.name, piece.split, piece.examples, finished)
            for outcome in pool.add(known) if known else pool.submit(task):
                self._gather(outcome, turned_away.popleft())
        for outcome in pool.drain():
            self._gather(outcome, turned_away.popleft())
        self._list(self._result.rejected)

    def _gather(self, outcome: Outcome, rejected: Sequence[Rejected]) -> None:
        self._result.shards.append(outcome.entry)
        self._result.audit.add_plain(outcome.audit)
        self._result.counts.update(outcome.entry.counts)
        self._list([*rejected, *outcome.rejected])
        self._done += outcome.entry.rows + len(outcome.rejected)
        self._watch.progress(self._done, self._total, "examples")

    def _list(self, rejected: Sequence[Rejected]) -> None:
        # An id or a detail may hold half of a character, which UTF-8 cannot write.
        for item in rejected:
            self._log.write((json.dumps(asdict(item), ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


@dataclass(frozen=True, slots=True)
class _Piece:
    """A shard's worth of examples, and what the corpus turned away since the piece before."""

    name: str
    split: str
    examples: tuple[Example, ...]
    rejected: tuple[Rejected, ...]


def _pieces(config: RunConfig, corpus: Corpus, result: Prepared) -> Iterator[_Piece]:
    size = config.alignment.examples_per_shard
    waiting: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    made: Counter[str] = Counter()
    rejected = result.rejected  # the list itself: `make` lists what is left after the last piece

    def piece(split: str) -> _Piece:
        name = f"{split}-{made[split]:05d}.arrow"
        made[split] += 1
        found = _Piece(name, split, tuple(waiting[split]), tuple(rejected))
        waiting[split].clear()
        rejected.clear()
        return found

    for split, item in corpus:
        result.counts["in"] += 1
        if isinstance(item, Rejected):
            if item.reason == OVER_LIMIT:  # asked for: neither listed nor held against the data
                result.counts["left_out_by_corpus_max"] += 1
                continue
            result.counts[f"dropped_{item.reason}"] += 1
            result.audit.add(item)
            rejected.append(item)
            continue
        waiting[split].append(item)
        if len(waiting[split]) == size:
            yield piece(split)
    yield from [piece(split) for split, examples in waiting.items() if examples]
