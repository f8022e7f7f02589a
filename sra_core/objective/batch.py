"""What an objective is given.

Legend: B texts, N tokens of the batch one after another, K spans of the batch, n supervised tokens of it, d width, V
shared vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sra_core.objective.head import Head

__all__ = ["Batch", "ObjectiveContext", "Sizes", "StudentOutput", "TeacherSpans"]


@dataclass(slots=True)
class TeacherSpans:
    """The teacher's spans at one layer, in the order of the batch's spans.

    Args:
        centers: (K, d_T) centres of mass.
        mass: (K,) attention mass of each span.
    """

    centers: Tensor
    mass: Tensor


class Sizes(NamedTuple):
    """Sizes of a batch that shapes on a device depend on: counted where the batch is made, so that no step waits.

    Args:
        longest: Tokens of the longest text.
        in_spans: Tokens inside spans.
        most_spans: Spans of the text that has most of them.
    """

    longest: int
    in_spans: int
    most_spans: int


@dataclass(slots=True)
class Batch:
    """Texts one after another, their spans and what the teacher made of them.

    Args:
        ids: B example ids.
        input_ids: (N,) student tokens.
        starts: (B + 1,) first token of each text, and N.
        labels: (N,), the token itself where it is supervised (response and end of text), else -100.
        span_text: (K,) text of each span, non-decreasing.
        span_range: (K, 2) half-open student token ranges, places of ``input_ids``.
        teacher: Spans by teacher layer.
        supervised: Supervised tokens a forward of the step has on average; unset counts this batch's own.
        teacher_states: Token states (N_T, d_T) by teacher layer, the highest being the last one, after the final
            norm; read only at positions that predict a supervised token, so the rest may be zero.
        teacher_ids: (N_T,) teacher tokens.
        teacher_starts: (B + 1,) as ``starts``.
        teacher_labels: (N_T,), as ``labels``, in teacher tokens.
        teacher_range: (K, 2) the spans' half-open teacher token ranges, places of ``teacher_ids``.
        sizes: Counted from the tensors while unset.
        targets: (n,) places of the supervised tokens that some token of their text precedes; likewise.
        teacher_targets: Likewise, of the teacher's tokens.
    """

    ids: list[str]
    input_ids: Tensor
    starts: Tensor
    labels: Tensor
    span_text: Tensor
    span_range: Tensor
    teacher: dict[int, TeacherSpans]
    supervised: float | None = None
    teacher_states: dict[int, Tensor] | None = None
    teacher_ids: Tensor | None = None
    teacher_starts: Tensor | None = None
    teacher_labels: Tensor | None = None
    teacher_range: Tensor | None = None
    sizes: Sizes = None  # type: ignore[assignment]
    targets: Tensor = None
    teacher_targets: Tensor | None = None

    def __post_init__(self) -> None:
        # On the CPU, where the batch is made: reading a number of a tensor on a GPU waits for the GPU.
        if self.sizes is None:
            spans = torch.bincount(self.span_text, minlength=self.texts)
            in_spans = (self.span_range[:, 1] - self.span_range[:, 0]).clamp(min=0).sum()
            self.sizes = Sizes(int(self.starts.diff().max()), int(in_spans), int(spans.max()))
            self.targets = _targets(self.labels, self.starts)
            if self.teacher_labels is not None and self.teacher_starts is not None:
                self.teacher_targets = _targets(self.teacher_labels, self.teacher_starts)

    @property
    def texts(self) -> int:
        """B, the texts of the batch, those without a span included."""
        return len(self.starts) - 1

    def with_spans(self, kept: Tensor) -> Batch:
        """The batch with some of its spans: (K,) whether each is kept."""
        teacher = {layer: TeacherSpans(each.centers[kept], each.mass[kept]) for layer, each in self.teacher.items()}
        return replace(
            self,
            span_text=self.span_text[kept],
            span_range=self.span_range[kept],
            teacher=teacher,
            teacher_range=None if self.teacher_range is None else self.teacher_range[kept],
            sizes=None,  # type: ignore[arg-type]  # counted anew
        )

    def to(self, device: torch.device | str) -> Batch:
        """The batch with every tensor on ``device``."""
        # Only from pinned memory does non_blocking copy beside the computation.
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The batch in memory that a GPU copies from while it computes."""
        return self._each(Tensor.pin_memory)

    def keep(self, device: torch.device) -> None:
        """Keep the batch's memory on a GPU until what is computed from now on is done, whatever stream copied it."""
        # torch's allocator hands memory back to the stream that it was allocated on: without a record the copy of a
        # later batch could be written into it while this one is still read.
        if device.type == "cuda":
            self._each(lambda tensor: (tensor.record_stream(torch.cuda.current_stream(device)), tensor)[1])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        # Sizes and targets are passed on too, so that nothing is counted anew on the device.
        return Batch(**{field.name: _changed(getattr(self, field.name), change) for field in fields(self)})


@dataclass(slots=True)
class StudentOutput:
    """The student's forward pass, without its LM head.

    Args:
        hidden: (N, d_S) by student layer.
        weights: (N,) attention of each text's last token by student layer; a text's sum to one, no gradient.
        final: (N, d_S) after the final norm.
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
        student_in_teacher: (V_S, V_T) sparse, coalesced: the teacher tokens that each student token stands for, rows
            summing to one, or to zero where there is none; likewise.
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
    student_in_teacher: Tensor | None = None


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, TeacherSpans):
        return TeacherSpans(change(value.centers), change(value.mass))
    if isinstance(value, dict):
        return {key: _changed(item, change) for key, item in value.items()}
    return value


def _targets(labels: Tensor, starts: Tensor) -> Tensor:
    """Places of the labels that count; the first token of a text has nothing before it that could predict it."""
    wanted = labels != -100
    wanted[starts[:-1]] = False
    return wanted.nonzero()[:, 0]
