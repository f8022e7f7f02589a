"""One shard of the cache stage as a task: any process that reaches the store can run it, and it writes its result."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, Timer

from sra_core.cache.teacher import load_teacher, make_capture
from sra_core.cache.writer import capture_shard
from sra_core.config import RunConfig
from sra_core.models import TeacherCapture
from sra_core.shards import Manifest, ShardEntry, StageFolder
from sra_core.watch import Watcher

__all__ = ["Task", "elsewhere", "run_task"]

_IDLE_SECONDS = 60.0
"""How long a process without tasks keeps the teacher in memory."""


@dataclass(frozen=True, slots=True)
class Task:
    """One teacher shard to make."""

    config: RunConfig
    prepared: Manifest
    """The prepared result, with the one shard that this one is made from."""
    folder: StageFolder


@contextmanager
def elsewhere(
    executor: Executor, config: RunConfig, prepared: Manifest, folder: StageFolder, watch: Watcher
) -> Iterator[None]:
    """Have every missing shard made by tasks while the context lasts; at its end all of them are through.

    Raises:
        SraError: What a task raised.
    """
    sources = [shard for shard in prepared.shards if shard.split == "train"]
    finished = folder.finished_shards({shard.name: shard.sha256 for shard in sources})
    futures = {
        shard.name: executor.submit(run_task, Task(config, prepared.model_copy(update={"shards": [shard]}), folder))
        for shard in sources
        if shard.name not in finished
    }
    done, total = sum(entry.rows for entry in finished.values()), prepared.rows("train")
    try:
        yield
        for shard in sources:
            if shard.name in futures:
                futures[shard.name].result()
                done += shard.rows
                watch.progress(done, total, "examples")
    finally:
        for future in futures.values():
            future.cancel()


class _Teacher:
    """The teacher of the last task, kept for the next one; one task at a time uses it."""

    def __init__(self) -> None:
        self.lock = Lock()
        self._key = ""
        self._loaded: TeacherCapture | None = None
        self._timer: Timer | None = None

    def get(self, task: Task) -> TeacherCapture:
        """The capture of a task's config; loads the teacher unless it is at hand.

        ``lock`` is held.
        """
        # With the folder: its identity says which layers the capture keeps.
        key = f"{task.folder.path} {task.config.model_dump_json(include={'teacher', 'cache'})}"
        if self._timer is not None:
            self._timer.cancel()
        if self._loaded is None or key != self._key:
            self._loaded = None  # before the next one takes its memory
            self._key, self._loaded = key, make_capture(task.config, task.folder, load_teacher(task.config))
        return self._loaded

    def rest(self) -> None:
        """Let the teacher go unless another task comes soon. ``lock`` is held."""
        self._timer = Timer(_IDLE_SECONDS, self._drop)
        self._timer.daemon = True
        self._timer.start()

    def _drop(self) -> None:
        with self.lock:
            self._loaded = None


_teacher = _Teacher()


def run_task(task: Task) -> ShardEntry | None:
    """Capture and write the shard of a task; None where another process is at it."""
    (source,) = task.prepared.shards
    home = StageFolder(task.config.store, "prepare", task.prepared.identity)
    # On another machine the prepared shard lies in the remote store alone.
    home.fetch([source])
    prepared = task.prepared.model_copy(update={"folder": str(home.path)})
    with _teacher.lock:
        try:
            return capture_shard(_teacher.get(task), prepared, task.folder, source)
        finally:
            _teacher.rest()
