"""What training reads of the teacher, from what the cache keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from sra_core.alignment import token_bytes
from sra_core.config import RunConfig
from sra_core.models import layer_count, lm_head, load_head, load_tokenizers, resolve_layer, source_tokens
from sra_core.objective import ObjectiveContext, teacher_needs
from sra_core.training.data import DistillData

__all__ = ["distill_data", "objective_context", "student_in_teacher"]

TEACHER_TOKENS = 4  # that a student token stands for at most in X-Token


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
        teacher_tokenizer, student_tokenizer = load_tokenizers(config, prepared)
        context.student_tokens = _token_texts(student_tokenizer)
        context.teacher_tokens = _token_texts(teacher_tokenizer)
    if config.objective.name == "xtoken":
        tokenizers = load_tokenizers(config, prepared)
        context.student_in_teacher = student_in_teacher(*tokenizers, context, len(lm_head(student).weight))
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
    one_to_one = config.objective.spans == "one_to_one"
    return DistillData(prepared, teacher, side, layers=wanted, token_states=states, one_to_one=one_to_one)


def _token_texts(tokenizer: Any) -> list[str]:
    """The text of every token; special tokens stand for none."""
    return [(text or b"").decode("utf-8", "replace") for text in token_bytes(tokenizer)]


def student_in_teacher(teacher: Any, student: Any, context: ObjectiveContext, entries: int) -> torch.Tensor:
    """(V_S, V_T) sparse, V_S being ``entries``: the teacher tokens of a student token, with halving weights.

    A shared token stands for its partner alone.  A token that is no text (a piece of a character, a special token)
    stands for none.  As X-Token (arXiv 2605.21699), at most four teacher tokens each.
    """
    stands = dict(zip(context.shared_student_ids.tolist(), context.shared_teacher_ids[:, None].tolist(), strict=True))
    spelled = source_tokens(teacher, student, entries)
    for place, text in enumerate(_token_texts(student)):
        if place not in stands and text and "\ufffd" not in text:  # bytes that are no whole character decode to it
            stands[place] = spelled[place]
    rows, columns, weights = [], [], []
    for row, tokens in stands.items():
        halves = [0.5**step for step in range(min(len(tokens), TEACHER_TOKENS))]
        rows += [row] * len(halves)
        columns += tokens[: len(halves)]
        weights += [half / sum(halves) for half in halves]
    assert context.teacher_full_head is not None
    shape = (entries, len(context.teacher_full_head.weight))
    return torch.sparse_coo_tensor(
        torch.tensor([rows, columns]), torch.tensor(weights), shape, check_invariants=True
    ).coalesce()
