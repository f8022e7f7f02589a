"""Small training jobs made without the other packages: random examples, teacher cache and student."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sra_core.alignment import SharedVocabulary
from sra_core.config import ModelRef, RunConfig
from sra_core.models import resolve, save_head
from sra_core.objective import Head
from sra_core.runs import settled
from sra_core.shards import (
    PREPARED_SCHEMA,
    PreparedRow,
    StageFolder,
    TeacherRow,
    prepared_batch,
    teacher_batch,
    teacher_schema,
)
from sra_core.training import Job

STUDENTS = {
    "dropout": "random:gpt2?layers=2&width=16&heads=2&vocabulary=270&positions=64&seed=3",
    "plain": "random:llama?layers=2&width=16&heads=2&vocabulary=270&positions=64&seed=3",
}
TEACHER_WIDTH, TEACHER_LAYERS, TEACHER_VOCABULARY = 12, 3, 290
LAYERS = ((2, 1), (3, 2))


def make_config(student: str = "dropout", **distill: Any) -> RunConfig:
    """A run config of a few steps; ``distill`` overrides fields of its training."""
    values = {
        "max_steps": 6,
        "epochs": 50,
        "batch_size": 2,
        "accumulation": 2,
        "learning_rate": 3e-3,
        "validate_every": 3,
        "checkpoint_every": 1,
        "log_every": 1,
        "device": "cpu",
        "precision": "float32",
        **distill,
    }
    return RunConfig.model_validate(
        {
            "teacher": {"source": "random:llama?layers=3&width=12&heads=2&vocabulary=290&seed=1"},
            "student": {"source": STUDENTS[student]},
            "objective": {"layers": [list(pair) for pair in LAYERS], "geometry": 1.0},
            "distill": values,
        }
    )


def make_job(folder: Path, config: RunConfig, examples: int = 14, seed: int = 0) -> Job:
    """A job that `launch` can run, everything that it reads included."""
    config = settled(config)  # as every stage gets it
    rng = np.random.default_rng(seed)
    tokenizer = AutoTokenizer.from_pretrained(resolve(config.student))
    train = [_row(f"train-{i}", rng, tokenizer) for i in range(examples)]
    held_out = [_row(f"held-{i}", rng, tokenizer) for i in range(3)]
    prepared = _write_prepared(folder / "store", {"train": train, "validation": held_out})
    teacher = _write_teacher(folder / "store", train, rng, len(tokenizer))
    initial = folder / "initial"
    model = AutoModelForCausalLM.from_pretrained(resolve(config.student))
    model.save_pretrained(initial)
    work = folder / "work"
    work.mkdir(parents=True)
    return Job(config=config, prepared=prepared, teacher=teacher, initial=initial, folder=work)


def again(job: Job, folder: Path, **distill: Any) -> Job:
    """The same job from the start in another folder, with other training fields."""
    folder.mkdir(parents=True)
    config = job.config.model_copy(deep=True)
    for name, value in distill.items():
        setattr(config.distill, name, value)
    return Job(config=config, prepared=job.prepared, teacher=job.teacher, initial=job.initial, folder=folder)


def _row(name: str, rng: np.random.Generator, tokenizer: Any) -> PreparedRow:
    tokens, first = int(rng.integers(12, 24)), int(rng.integers(2, 6))
    ids = rng.integers(5, 265, tokens).astype(np.int32)
    ids[-1] = tokenizer.eos_token_id
    cuts = np.unique(np.concatenate([[first, tokens - 1], rng.integers(first, tokens - 1, 4)]))
    spans = np.stack([cuts[:-1], cuts[1:]], 1).astype(np.int32)
    return PreparedRow(
        id=name,
        teacher_ids=ids.copy(),
        student_ids=ids,
        teacher_spans=spans,
        student_spans=spans,
        teacher_response=first,
        student_response=first,
        prompt="p",
        response="r" * (tokens - first),
        source="made",
    )


def _write_prepared(store: Path, splits: Mapping[str, list[PreparedRow]]) -> Path:
    folder = StageFolder(store, "prepare", {"made": "for tests"})
    folder.path.mkdir(parents=True)
    shards = [
        folder.write_shard(f"{split}.arrow", split, [prepared_batch(rows)], PREPARED_SCHEMA)
        for split, rows in splits.items()
    ]
    folder.commit(shards=shards)
    return folder.path


def _write_teacher(store: Path, rows: list[PreparedRow], rng: np.random.Generator, vocabulary: int) -> Path:
    folder = StageFolder(store, "cache", {"made": "for tests"})
    folder.path.mkdir(parents=True)
    layers = [teacher for teacher, _ in LAYERS]
    schema = teacher_schema(layers, "float32", TEACHER_WIDTH)
    kept = [_teacher_row(row, layers, rng) for row in rows]
    shard = folder.write_shard("train.arrow", "train", [teacher_batch(kept, schema)], schema)
    ids = np.arange(vocabulary // 2, dtype=np.int32)
    head = Head(torch.from_numpy(rng.normal(size=(TEACHER_VOCABULARY, TEACHER_WIDTH)).astype(np.float32)))
    shared = SharedVocabulary(ids, ids, len(ids), TEACHER_VOCABULARY, vocabulary)
    save_head(folder.path, head, shared, TEACHER_LAYERS)
    folder.commit(shards=[shard])
    return folder.path


def _teacher_row(row: PreparedRow, layers: list[int], rng: np.random.Generator) -> TeacherRow:
    spans = len(row.teacher_spans)
    return TeacherRow(
        id=row.id,
        centers={layer: rng.normal(size=(spans, TEACHER_WIDTH)).astype(np.float32) for layer in layers},
        mass={layer: rng.dirichlet(np.ones(spans)).astype(np.float32) for layer in layers},
    )


def read_history(job: Job, name: str) -> dict[int, float]:
    """A metric by step."""
    import json

    lines = [json.loads(line) for line in job.history.read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def teacher_ref() -> ModelRef:
    return ModelRef(source="random:llama?layers=3&width=12&heads=2&vocabulary=290&seed=1")
