"""Capture shard by shard: what is finished is kept, the next shard is computed while the last one is written."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from sra_core.capture.teacher import TeacherCapture
from sra_core.shards import Manifest, PreparedSet, ShardEntry, StageFolder, TeacherRow, teacher_batch, teacher_schema
from sra_core.watching import Watcher

__all__ = ["capture_shards"]


def capture_shards(
    capture: TeacherCapture,
    prepared: Manifest,
    folder: StageFolder,
    layers: list[int],
    width: int,
    watch: Watcher,
) -> list[ShardEntry]:
    """Write one teacher shard for every prepared training shard that has none yet.

    Args:
        capture: Runs the teacher.
        prepared: Result of the prepare stage.
        folder: Where the shards go; its lock is held.
        layers: Layers to keep.
        width: Teacher width d.
        watch: Told of progress.

    Raises:
        StorageError: A shard cannot be written.
    """
    stored = folder.identity["cache"]
    schema = teacher_schema(layers, stored["dtype"], width)
    compression = None if stored["compression"] == "none" else stored["compression"]
    finished: Mapping[str, ShardEntry] = folder.finished_shards()
    sources = [shard for shard in prepared.shards if shard.split == "train"]
    total = sum(shard.rows for shard in sources)
    done = sum(finished[shard.name].rows for shard in sources if shard.name in finished)
    if finished:
        watch.message(f"{len(finished)} of {len(sources)} shards are finished already")

    def more(examples: int) -> None:
        nonlocal done
        done += examples
        watch.progress(done, total, "examples")

    def write(name: str, rows: list[TeacherRow]) -> ShardEntry:
        batch, spans = teacher_batch(rows, schema), sum(len(row.mass[layers[0]]) for row in rows)
        return folder.write_shard(name, "train", [batch], schema, compression=compression, counts={"spans": spans})

    entries: dict[str, Future[ShardEntry]] = {}
    with ThreadPoolExecutor(max_workers=1) as writer:
        for source in sources:
            if source.name in finished:
                continue
            rows = capture(list(PreparedSet(_only(prepared, source), "train")), more)
            for future in entries.values():  # at most one shard waits in memory, and a failed write stops the capture
                future.result()
            entries[source.name] = writer.submit(write, source.name, rows)
    return [finished.get(shard.name) or entries[shard.name].result() for shard in sources]


def _only(manifest: Manifest, shard: ShardEntry) -> Manifest:
    return manifest.model_copy(update={"shards": [shard]})
