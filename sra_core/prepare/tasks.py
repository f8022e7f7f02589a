"""One shard of the prepare stage as a task: any process that reaches the store can run it, and it writes its result.

What a task needs besides its examples (both tokenizers, the shared vocabulary, the limits) lies in a file of the stage
folder, which a process reads once. Nothing heavy is imported, unless a chat template asks for it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np

from sra_core.alignment import AlignedExample, AlignmentAudit, BareTokenizer, PairEncoder, SharedVocabulary
from sra_core.alignment.encode import encoder_of
from sra_core.config import RunConfig
from sra_core.corpus import Example, Rejected
from sra_core.models import load_tokenizers
from sra_core.shards import PREPARED_SCHEMA, FileEntry, ShardEntry, StageFolder, prepared_batch, prepared_row

__all__ = ["Outcome", "Task", "Tools", "encode_shard", "finished_outcome", "forget_tools", "hold_tools", "save_tools"]

Tools: TypeAlias = tuple[FileEntry, ...]
"""Files of the stage folder that a process reads before its first task."""

TOOLS = "tools.json"
_NOTE = ".audit.json"


@dataclass(frozen=True, slots=True)
class Task:
    """One shard's worth of examples, and where it goes."""

    folder: StageFolder
    tools: Tools
    name: str
    split: str
    examples: tuple[Example, ...]
    finished: ShardEntry | None = None
    """The shard, if it is there already and only its audit is missing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One shard, written: its entry, its audit in plain form and the examples that the encoder turned away."""

    entry: ShardEntry
    audit: dict[str, Any]
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a process keeps from task to task."""

    encoder: PairEncoder
    shared: SharedVocabulary

    @classmethod
    def read(cls, folder: Path) -> _Loaded:
        values = json.loads((folder / TOOLS).read_bytes())
        config = RunConfig.model_validate(values["config"])
        tokenizers = [BareTokenizer.parse(side) for side in values["tokenizers"]] or load_tokenizers(config, folder)
        ids = {name: np.array(values["shared"][name], np.int32) for name in ("teacher_ids", "student_ids")}
        return cls(encoder_of(config, *tokenizers), SharedVocabulary(**{**values["shared"], **ids}))


_kept: dict[tuple[str, ...], _Loaded] = {}
_lock = Lock()


def hold_tools(config: RunConfig, folder: StageFolder, tokenizers: Sequence[Any], shared: SharedVocabulary) -> Tools:
    """Keep what every task reads for tasks in this process: nothing is written, and no tokenizer loaded again."""
    with _lock:
        _kept[(str(folder.path),)] = _Loaded(encoder_of(config, *tokenizers), shared)
    return ()


def save_tools(
    config: RunConfig,
    folder: StageFolder,
    tokenizers: Sequence[Any],
    shared: SharedVocabulary,
    saved: Sequence[FileEntry],
) -> Tools:
    """Write what every task reads. A chat template needs the saved tokenizers, anything else only their bare form."""
    chat = "chat" in (config.teacher.template, config.student.template)
    parts = {"teacher", "student", "corpus", "alignment"}
    values = {
        "config": config.model_dump(mode="json", include=parts),
        "tokenizers": [] if chat else [BareTokenizer.of(tokenizer).plain() for tokenizer in tokenizers],
        "shared": {
            **{name: getattr(shared, name) for name in ("exact", "teacher_size", "student_size")},
            **{name: getattr(shared, name).tolist() for name in ("teacher_ids", "student_ids")},
        },
    }
    folder.write_note(TOOLS, json.dumps(values))
    tools = (folder.entry(TOOLS), *(saved if chat else ()))
    folder.send(tools)
    return tools


def forget_tools(folder: StageFolder) -> None:
    """Remove what only tasks read, here and in the store."""
    with _lock:
        _drop([key for key in _kept if key[0] == str(folder.path)])
    folder.remove_note(TOOLS)


def _drop(keys: Sequence[tuple[str, ...]]) -> None:
    for key in keys:
        del _kept[key]


def _loaded(task: Task) -> _Loaded:
    key = (str(task.folder.path), *(entry.sha256 for entry in task.tools))
    with _lock:  # also while reading: of threads that begin together one loads the tokenizers
        if key not in _kept:
            task.folder.fetch(task.tools)
            _drop([other for other in _kept if len(other) > 1])  # what is held for threads is in no file
            _kept[key] = _Loaded.read(task.folder.path)
        return _kept[key]


def encode_shard(task: Task) -> Outcome:
    """Encode and align the examples of a task, write their shard and, beside it, what the audit found.

    Raises:
        StorageError: The shard cannot be written.
    """
    loaded = _loaded(task)
    audit = AlignmentAudit(loaded.shared)
    encoded = loaded.encoder(task.examples)
    for item in encoded:
        audit.add(item)
    rejected = tuple(item for item in encoded if isinstance(item, Rejected))
    kept = [item for item in encoded if isinstance(item, AlignedExample)]
    entry = task.finished or _write_shard(task, kept, rejected)
    # Written after the shard, with its checksum: beside another shard the note does not count.
    note = {"shard": entry.sha256, "audit": audit.plain(), "rejected": [asdict(item) for item in rejected]}
    task.folder.write_note(f"{task.name}{_NOTE}", json.dumps(note, ensure_ascii=False))
    return _outcome(entry, note)


def finished_outcome(folder: StageFolder, entry: ShardEntry) -> Outcome | None:
    """The outcome of a shard that was finished earlier; None if the note of its audit is not there."""
    try:
        note = json.loads(folder.read_note(f"{entry.name}{_NOTE}") or "{}")
        return _outcome(entry, note) if note.get("shard") == entry.sha256 else None
    except (ValueError, KeyError, TypeError):  # a torn note costs time only: the shard is made again
        return None


def _outcome(entry: ShardEntry, note: Mapping[str, Any]) -> Outcome:
    return Outcome(entry, note["audit"], tuple(Rejected(**item) for item in note["rejected"]))


def _write_shard(task: Task, kept: Sequence[AlignedExample], rejected: Sequence[Rejected]) -> ShardEntry:
    counts = Counter(f"dropped_{item.reason}" for item in rejected)
    counts[f"kept_{task.split}"] = len(kept)
    counts["truncated"] = sum(item.truncated for item in kept)
    counts["prompt_cut"] = sum(item.prompt_cut > 0 for item in kept)
    for name in ("special_as_text", "end_stripped", "reasoning_left_out"):
        if found := sum(getattr(item, name) for item in kept):
            counts[name] = found
    batches = [prepared_batch([prepared_row(item) for item in kept])]
    return task.folder.write_shard(task.name, task.split, batches, PREPARED_SCHEMA, counts=counts)
