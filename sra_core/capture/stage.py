"""The cache stage: load the teacher, keep its head rows, capture every shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sra_core.alignment import shared_vocabulary
from sra_core.capture.heads import HEAD_FILE, META_FILE, save_head
from sra_core.capture.teacher import TeacherCapture
from sra_core.capture.writer import capture_shards
from sra_core.config import ModelRef, RunConfig, identity
from sra_core.models import (
    layer_count,
    lm_head,
    load_model,
    load_tokenizer,
    model_identity,
    pick_device,
    resolve,
    resolve_layer,
)
from sra_core.preparation import STUDENT_TOKENIZER, TEACHER_TOKENIZER
from sra_core.shards import SCHEMA_VERSION, Manifest, StageFolder
from sra_core.watching import Watcher

__all__ = ["cache_identity", "capture_teacher"]


def cache_identity(config: RunConfig, prepared: str) -> dict[str, Any]:
    """All that determines the bytes of a teacher cache.

    Args:
        config: The run config.
        prepared: Fingerprint of the prepared examples.
    """
    return {
        "schema": SCHEMA_VERSION,
        "prepared": prepared,
        "teacher": model_identity(config.teacher),
        "layers": _layers(config),
        "weighted_pooling": config.objective.weighted_pooling,
        "cache": identity(config.cache),
    }


def _layers(config: RunConfig) -> list[int]:
    from transformers import AutoConfig

    count = layer_count(AutoConfig.from_pretrained(resolve(config.teacher)))
    return sorted({resolve_layer(count, teacher) for teacher, _ in config.objective.layers})


def capture_teacher(config: RunConfig, prepared: Manifest, folder: StageFolder, watch: Watcher) -> Manifest:
    """Capture what ``folder`` lacks and write its manifest.

    Args:
        config: The run config.
        prepared: Result of the prepare stage.
        folder: Where the cache goes; its lock is held.
        watch: Told of progress.

    Raises:
        ModelError: The teacher cannot be loaded.
        StorageError: The store cannot be written.
    """
    layers = folder.identity["layers"]
    model = load_model(config.teacher, config.cache.compute_dtype, pick_device(config.cache.device))
    head = lm_head(model)
    teacher, student = (
        load_tokenizer(ModelRef(source=str(Path(prepared.folder) / name)))
        for name in (TEACHER_TOKENIZER, STUDENT_TOKENIZER)
    )
    shared = shared_vocabulary(teacher, student)
    save_head(folder.path, head, shared, layer_count(model))
    capture = TeacherCapture(model, layers, config.cache.tokens_per_batch, config.objective.weighted_pooling)
    shards = capture_shards(capture, prepared, folder, layers, int(head.weight.shape[1]), watch)
    size = sum(shard.bytes for shard in shards)
    spans = sum(shard.counts["spans"] for shard in shards)
    return folder.commit(
        upstream=[prepared],
        shards=shards,
        files=[folder.entry(HEAD_FILE), folder.entry(META_FILE)],
        counts={"examples": sum(shard.rows for shard in shards), "spans": spans, "shared_vocabulary": len(shared)},
        metrics={"cache/bytes": float(size), "cache/bytes_per_span": size / max(1, spans)},
    )
