"""Capture shard by shard: what is finished is kept, the next shard is computed while the last one is written.

Any number of processes, on one machine or several, may do this for the same cache at once: each claims a shard before
it makes it, and the last shards are waited for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from sra_core.cache.holdings import Holdings
from sra_core.models import TeacherCapture
from sra_core.shards import (
    Claim,
    Manifest,
    PreparedSet,
    ShardEntry,
    StageFolder,
    TeacherRow,
    teacher_batches,
    teacher_schema,
)
from sra_core.watch import Watcher

__all__ = ["capture_shard", "capture_shards"]

_POLL_SECONDS = 0.3


def capture_shards(
    capture: TeacherCapture, prepared: Manifest, folder: StageFolder, watch: Watcher
) -> list[ShardEntry]:
    """One teacher shard for every prepared training shard: those that are missing are made, here or by others.

    Args:
        capture: Runs the teacher.
        prepared: Result of the prepare stage.
        folder: Where the shards go.
        watch: Told of progress.

    Raises:
        StorageError: A shard cannot be written.
    """
    # Training texts alone: on the others nothing is learned from the teacher.
    sources = [shard for shard in prepared.shards if shard.split == "train"]
    finished = folder.finished_shards({shard.name: shard.sha256 for shard in sources})
    if finished:
        watch.message(f"{len(finished)} of {len(sources)} shards are finished already")
    work, waiting = _Work(capture, prepared, folder, watch, finished), False
    with work.writing():
        while pending := [shard for shard in sources if shard.name not in finished]:
            # In one order for all: a claimed shard is passed over at once, so that processes fan out over the rest.
            made = [work.make(shard) for shard in pending]
            work.settle()
            if not any(made):  # others are at work on what is left
                if not waiting:
                    watch.message(f"waiting for {len(pending)} shards that other processes make")
                waiting = True
                time.sleep(_POLL_SECONDS)
    return [finished[shard.name] for shard in sources]


def capture_shard(
    capture: TeacherCapture, prepared: Manifest, folder: StageFolder, source: ShardEntry
) -> ShardEntry | None:
    """The teacher shard of one prepared shard, made here unless it is finished; None if another process is at it.

    Raises:
        StorageError: The shard cannot be written.
    """
    finished: dict[str, ShardEntry] = {}
    work = _Work(capture, prepared, folder, Watcher(), finished)
    with work.writing():
        work.make(source)
        work.settle()
    return finished.get(source.name)


class _Work:
    """What this process does for a cache; ``finished`` grows as shards are made, here or by others."""

    def __init__(
        self,
        capture: TeacherCapture,
        prepared: Manifest,
        folder: StageFolder,
        watch: Watcher,
        finished: dict[str, ShardEntry],
    ) -> None:
        stored, holds = folder.identity["cache"], Holdings.model_validate(folder.identity["holds"])
        compressed = stored["compression"] != "none"
        self._schema = teacher_schema(
            holds.layers, stored["dtype"], capture.width, states=holds.tokens, compressed=compressed
        )
        self._compression = stored["compression"] if compressed else None
        self._capture = capture
        self._prepared = prepared
        self._folder = folder
        self._watch = watch
        self._finished = finished
        self._unwritten = 0  # examples captured and not yet in a finished shard
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Shards are written in the background while the context lasts; at its end all are."""
        with self._writer:
            yield

    def settle(self) -> None:
        """Wait for the shard that is being written.

        Raises:
            StorageError: It could not be.
        """
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def make(self, source: ShardEntry) -> bool:
        """Make a shard unless it is finished meanwhile; false if another process is at it."""
        claim = self._folder.claim(source.name)
        if claim is None:
            return False
        try:
            # Looked for under the claim: its last owner may have finished the shard since it was listed as missing.
            entry = self._folder.finished_shard(source.name, source.sha256)
            if entry is None:
                prepared = PreparedSet(self._prepared.model_copy(update={"shards": [source]}), source.split)
                rows = self._capture(list(prepared), self._progress)
                self.settle()  # at most one shard waits in memory, and a failed write stops the capture
                # The claim goes along and is given back by the writer's thread, when the shard is whole.
                self._pending = self._writer.submit(self._write, claim, source, rows)
                return True
        except BaseException:
            claim.release()
            raise
        claim.release()
        self._finished[source.name] = entry
        self._progress(0)
        return True

    def _progress(self, examples: int) -> None:
        self._unwritten += examples
        finished = list(self._finished.values())  # a copy: the thread that writes adds to it meanwhile
        done = sum(entry.rows for entry in finished) + self._unwritten
        self._watch.progress(done, self._prepared.rows("train"), "examples")

    def _write(self, claim: Claim, source: ShardEntry, rows: Sequence[TeacherRow]) -> None:
        spans = sum(len(mass) for row in rows for mass in list(row.mass.values())[:1])  # all layers have the same spans
        tokens = sum(len(row.states) for row in rows if row.states is not None)
        try:
            self._finished[source.name] = self._folder.write_shard(
                source.name,
                source.split,
                teacher_batches(rows, self._schema),
                self._schema,
                compression=self._compression,
                counts={"spans": spans, "states": tokens},
                source=source.sha256,
            )
            self._unwritten -= len(rows)
        finally:
            claim.release()
