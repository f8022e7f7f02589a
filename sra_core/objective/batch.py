"""What an objective is given.  Legend: B texts, T tokens, N spans of the batch, d width, V shared vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sra_core.objective.head import Head

__all__ = ["Batch", "ObjectiveContext", "StudentOutput", "TeacherSpans"]


@dataclass(slots=True)
class TeacherSpans:
    """The teacher's spans at one layer, in the order of the batch's spans.

    Args:
        centers: (N, d_T) centres of mass.
        mass: (N,) attention mass of each span.
    """

    centers: Tensor
    mass: Tensor


@dataclass(slots=True)
class Batch:
    """Texts, their spans and what the teacher made of them.

    Args:
        ids: B example ids.
        input_ids: (B, T) student tokens, padded on either side.
        attention_mask: (B, T), 1 on real tokens.
        labels: (B, T), the token itself where it is supervised (response and end of text), else -100.
        span_text: (N,) row of each span, non-decreasing.
        span_range: (N, 2) half-open student token ranges, columns of ``input_ids``.
        teacher: Spans by teacher layer.
        supervised: Supervised tokens a forward of the step has on average; unset counts this batch's own.
        teacher_states: Token states (B, T_T, d_T) by teacher layer, the highest being the last one, after the final
            norm; read only at positions that predict a supervised token, so the rest may be zero.
        teacher_ids: (B, T_T) teacher tokens.
        teacher_labels: (B, T_T), as ``labels``, in teacher tokens; -100 on padding and where no real token precedes.
        teacher_range: (N, 2) the spans' half-open teacher token ranges, columns of ``teacher_ids``.
    """

    ids: list[str]
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    span_text: Tensor
    span_range: Tensor
    teacher: dict[int, TeacherSpans]
    supervised: float | None = None
    teacher_states: dict[int, Tensor] | None = None
    teacher_ids: Tensor | None = None
    teacher_labels: Tensor | None = None
    teacher_range: Tensor | None = None

    @property
    def texts(self) -> int:
        """B, the texts of the batch, those without a span included."""
        return int(self.input_ids.shape[0])

    def to(self, device: torch.device | str) -> Batch:
        """The batch with every tensor on ``device``."""
        return Batch(**{field.name: _move(getattr(self, field.name), device) for field in fields(self)})


@dataclass(slots=True)
class StudentOutput:
    """The student's forward pass, without its LM head.

    Args:
        hidden: (B, T, d_S) by student layer.
        weights: (B, T) last-row attention by student layer; rows sum to one, no gradient.
        final: (B, T, d_S) after the final norm.
        head: The student's own head, whole.
        embedding: (V_S, d_S) input embeddings, for objectives that read them (``student_embedding`` of the needs).
    """

    hidden: dict[int, Tensor]
    weights: dict[int, Tensor]
    final: Tensor
    head: Head
    embedding: Tensor | None = None


@dataclass(slots=True)
class ObjectiveContext:
    """What an objective must know about the two models.

    Args:
        layers: Pairs of teacher and student layers, resolved (no -1).
        student_width: d_S.
        teacher_width: d_T.
        teacher_head: The teacher's rows of the shared vocabulary, in shared order.
        shared_student_ids: (V,) student ids of the shared vocabulary.
        shared_teacher_ids: (V,) teacher ids of the shared vocabulary.
        seed: Seed of the projectors' start.
        teacher_full_head: The teacher's whole head, where :func:`teacher_needs` asks for it.
        teacher_embedding: The teacher's (V_T, d_T) input embeddings, likewise.
        student_tokens: Text of every student token, likewise (for token alignment by edit distance).
        teacher_tokens: Text of every teacher token.
    """

    layers: list[tuple[int, int]]
    student_width: int
    teacher_width: int
    teacher_head: Head | None
    shared_student_ids: Tensor
    shared_teacher_ids: Tensor
    seed: int = 0
    teacher_full_head: Head | None = None
    teacher_embedding: Tensor | None = None
    student_tokens: list[str] | None = None
    teacher_tokens: list[str] | None = None


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, TeacherSpans):
        return TeacherSpans(_move(value.centers, device), _move(value.mass, device))
    if isinstance(value, dict):
        return {key: _move(item, device) for key, item in value.items()}
    return value
