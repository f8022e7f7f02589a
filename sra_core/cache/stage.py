"""The cache stage: load the teacher, keep its head, capture every shard, measure what storing changed."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sra_core.cache.fidelity import check_stored
from sra_core.cache.holdings import Holdings
from sra_core.cache.tasks import elsewhere
from sra_core.cache.teacher import load_teacher, make_capture
from sra_core.cache.workers import helpers
from sra_core.cache.writer import capture_shards
from sra_core.compare import kept_nats, teacher_lead
from sra_core.config import RunConfig
from sra_core.errors import ConfigError, SraError
from sra_core.models import (
    choose_layout,
    initial_student,
    input_embeddings,
    known_before,
    layer_count,
    lm_head,
    load_kept_tokenizer,
    load_tokenizers,
    name_answer_end,
    pick_device,
    save_head,
    shared_tokens,
    spread_over,
    tokenizer_identity,
)
from sra_core.objective import teacher_needs
from sra_core.shards import Manifest, StageFolder
from sra_core.watch import Watcher

__all__ = ["capture_teacher"]


def capture_teacher(
    config: RunConfig, prepared: Manifest, folder: StageFolder, watch: Watcher, executor: Executor | None = None
) -> Manifest:
    """Capture what ``folder`` lacks, write its manifest, and tell how far the teacher is ahead of the student.

    Other processes may do the same for the same folder at the same time: they share the shards, and the first one to
    see them all finished writes the manifest.

    Args:
        config: The run config.
        prepared: Result of the prepare stage.
        folder: Where the cache goes.
        watch: Told of progress.
        executor: Where shards are captured; unset uses this machine, as ``cache.workers`` says.

    Raises:
        ConfigError: The objective does not fit the tokenizers.
        ModelError: The teacher cannot be loaded.
        ShardError: What is stored differs from what the teacher computes by more than ``cache`` allows.
        StorageError: The store cannot be written.
    """
    teacher, student = load_tokenizers(config, Path(prepared.folder))
    _refuse_other_tokenizer(config, teacher, student)
    manifest = _capture(config, prepared, folder, watch, executor)
    _tell_lead(config, prepared, manifest, watch)
    return manifest


def _capture(
    config: RunConfig, prepared: Manifest, folder: StageFolder, watch: Watcher, executor: Executor | None
) -> Manifest:
    """When it returns, the teacher has left memory."""
    with folder.guard():
        if (made := folder.manifest([prepared])) is not None:
            return made
        # What it names is not whole or was made from other bytes; shards that hold are found by their receipts.
        folder.reset()
    started = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(
            elsewhere(executor, config, prepared, folder, watch)
            if executor
            else helpers(config, prepared, folder, watch)
        )
        model = load_teacher(config)
        layout = str(choose_layout(model))
        if places := spread_over(model):
            watch.message(f"the teacher is spread over {places}")
        watch.message(f"the teacher reads batches {layout}")
        shared = shared_tokens(config, Path(prepared.folder))
        head, tokens = lm_head(model), Holdings.model_validate(folder.identity["holds"]).tokens
        # Every process that captures writes the head, each the same bytes, so for this moment one at a time.
        with folder.guard():
            embedding = input_embeddings(model) if tokens else None
            files = save_head(folder.path, head, shared, layer_count(model), embedding)
        capture = make_capture(config, folder, model)
        if executor:
            stack.close()  # the tasks are through; what they left to others is waited for below
        shards = capture_shards(capture, prepared, folder, watch)
    metrics = check_stored(config, capture, prepared, folder, shards)
    # Bits per byte leave out what ends an answer, which the model's settings have to name for it.
    name_answer_end(model, load_kept_tokenizer(config, Path(prepared.folder), "teacher"), config.teacher)
    known = known_before(config, model, prepared, "teacher")
    if known is not None:
        metrics["cache/teacher_bits_per_byte"] = known.bits_per_byte
    counts = {
        "examples": sum(shard.rows for shard in shards),
        "spans": sum(shard.counts["spans"] for shard in shards),
        "states": sum(shard.counts["states"] for shard in shards),
    }
    size = float(sum(shard.bytes for shard in shards))
    metrics |= {"cache/bytes": size, "cache/seconds": time.monotonic() - started}
    if counts["spans"]:
        metrics["cache/bytes_per_span"] = size / counts["spans"]
    with folder.guard():
        # Several processes come here; the manifest of the first one stays.
        return folder.manifest([prepared]) or folder.commit(
            upstream=[prepared],
            shards=shards,
            files=[folder.entry(name) for name in files],
            counts={**counts, "shared_vocabulary": len(shared)},
            metrics=metrics,
            # By text, as the distill stage, which has no teacher in memory, pairs them with those of its own student.
            notes={"layout": layout, **(kept_nats(known.nats) if known else {})},
        )


def _tell_lead(config: RunConfig, prepared: Manifest, manifest: Manifest, watch: Watcher) -> None:
    """Before anything is trained: what there is to learn. A student that does not fit one device is not measured."""
    if config.distill.zero_stage == 3:
        return
    try:
        student, _ = initial_student(config, prepared)
    except SraError as error:
        watch.message(f"what the student knows before training cannot be measured: {error.problem}")
        return
    known = known_before(config, student.to(pick_device(config.distill.device)), prepared, "student")
    if known and (lead := teacher_lead(manifest, known.nats, known.bytes)):
        watch.message(lead.told(config.adapt.enabled))


def _refuse_other_tokenizer(config: RunConfig, teacher: Any, student: Any) -> None:
    same = tokenizer_identity(teacher)["tokenizer"] == tokenizer_identity(student)["tokenizer"]
    if teacher_needs(config.objective).same_tokenizer and not same:
        raise ConfigError(
            f"objective {config.objective.name} needs the same tokenizer on both sides",
            "choose an objective across tokenizers, such as sra, or a student with the teacher's tokenizer",
        )
