"""What training reads of the teacher, from what the cache keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from sra_core.alignment import token_bytes
from sra_core.config import ModelRef, RunConfig
from sra_core.models import layer_count, lm_head, load_head, load_tokenizer, resolve_layer
from sra_core.objective import ObjectiveContext, teacher_needs
from sra_core.shards.prepared import STUDENT_TOKENIZER, TEACHER_TOKENIZER
from sra_core.training.data import DistillData

__all__ = ["distill_data", "objective_context"]


def objective_context(config: RunConfig, prepared: Path, teacher: Path | None, student: Any) -> ObjectiveContext:
    """Widths, layers, vocabularies and the teacher's head, as far as the objective reads them.

    Args:
        config: The run config.
        prepared: Folder of the prepared examples.
        teacher: Folder of the cache; None for objectives without a teacher.
        student: The student model.
    """
    width, count = int(lm_head(student).weight.shape[1]), layer_count(student)
    if teacher is None:
        empty = torch.empty(0, dtype=torch.long)
        return ObjectiveContext([], width, 0, None, empty, empty, config.seed)
    kept, needs = load_head(teacher), teacher_needs(config.objective)
    pairs = [(resolve_layer(kept.layers, t), resolve_layer(count, s)) for t, s in config.objective.layers]
    context = ObjectiveContext(
        pairs if needs.span_layers else [],
        width,
        kept.width,
        kept.head,
        kept.student_ids,
        kept.teacher_ids,
        config.seed,
        teacher_full_head=kept.full if needs.full_head else None,
        teacher_embedding=kept.embedding if needs.embedding else None,
    )
    if config.objective.name == "mined":
        context.student_tokens = _token_texts(prepared / STUDENT_TOKENIZER)
        context.teacher_tokens = _token_texts(prepared / TEACHER_TOKENIZER)
    return context


def distill_data(
    config: RunConfig,
    prepared: Any,
    teacher: Any,
    layers: int,
    side: Literal["teacher", "student"] = "student",
) -> DistillData:
    """Batches with what the objective reads, whatever else the cache holds.

    Args:
        config: The run config.
        prepared: The training examples: a `PreparedSet` or what reads like one.
        teacher: The cache of the same examples (a `TeacherSet` or alike), None for objectives without a teacher.
        layers: Number of the teacher's layers.
        side: Whose tokens and spans make the batch.
    """
    if teacher is None:
        return DistillData(prepared, None, side)
    needs = teacher_needs(config.objective)
    wanted = sorted({resolve_layer(layers, layer) for layer in needs.span_layers})
    states = layers if needs.token_states else None
    return DistillData(prepared, teacher, side, layers=wanted, token_states=states)


def _token_texts(folder: Path) -> list[str]:
    """The text of every token; special tokens stand for none."""
    table = token_bytes(load_tokenizer(ModelRef(source=str(folder))))
    return [(text or b"").decode("utf-8", "replace") for text in table]
