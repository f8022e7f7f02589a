"""Dual-space distillation with cross-model attention (DSKD, arXiv 2406.17328).

Legend: B texts, n and m supervised positions of student and teacher, d_S and d_T widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from sra_core.config import ObjectiveConfig
from sra_core.errors import ConfigError
from sra_core.objective.batch import Batch, ObjectiveContext, StudentOutput
from sra_core.objective.chunks import head_loss, head_map
from sra_core.objective.fit import ToFit
from sra_core.objective.head import accurate
from sra_core.objective.logit import cross_entropy_slope, kl_slope
from sra_core.objective.projector import orthogonal
from sra_core.objective.tokens import Side, TokenObjective, pad, single_tokens, student_side, teacher_side

__all__ = ["DskdObjective"]


class DskdObjective(TokenObjective):
    """Each model's states are carried into the other's space and compared there through that space's head.

    Attention between the two token sequences (queries: the student's input and target embeddings; keys: the teacher's)
    takes the place of an alignment.  Terms: ``teacher_to_student_ce``, cross-entropy of the carried teacher, which
    trains the projectors; ``teacher_to_student``, KL from it (constant) to the student where its best token is right;
    ``student_to_teacher``, KL from the teacher to the carried student.  Each is a mean over supervised positions.
    """

    names = ("teacher_to_student_ce", "teacher_to_student", "student_to_teacher")

    def __init__(self, config: ObjectiveConfig, context: ObjectiveContext) -> None:
        super().__init__(config, context)
        narrow, wide, seed = context.student_width, context.teacher_width, context.seed
        self.query = _linear(2 * narrow, 2 * wide, seed)
        self.to_student = _linear(wide, narrow, seed + 1)
        self.to_teacher = _linear(narrow, wide, seed + 2)

    def distill(self, batch: Batch, student: StudentOutput, own: Side, teacher: Side) -> Mapping[str, Tensor]:
        """The three terms."""
        scores, mask = self._scores(student, own, teacher)
        carried, _ = pad(teacher, _apply(self.to_student, self._to_carry(teacher)))
        as_student = (_attention(scores, mask) @ carried)[own.text, own.rank]
        carried, _ = pad(own, _apply(self.to_teacher, own.rows))
        as_teacher = (_attention(scores.mT, mask.mT) @ carried)[teacher.text, teacher.rank]

        # Constant: cross-entropy of the carried teacher trains the maps, not the student's head.
        head, whole, tau = (
            student.head.constant(),
            self.head("teacher_full_head", own.rows.device),
            self.config.temperature,
        )
        with torch.no_grad():
            right = head_map(as_student, head, _best).eq(own.target)
        ce = head_loss(as_student, head, cross_entropy_slope, (own.target,))
        down = head_loss(
            own.rows, student.head, kl_slope(head, tau), (as_student.detach(),), right.to(as_student.dtype)
        )
        up = head_loss(as_teacher, whole, kl_slope(whole, tau), (teacher.rows,))
        return {
            "teacher_to_student_ce": ce / max(1, len(own.rows)),
            "teacher_to_student": down / max(1, len(own.rows)),
            "student_to_teacher": up / max(1, len(teacher.rows)),
        }

    def to_fit(self, batch: Batch, student: StudentOutput) -> list[ToFit]:
        """What the three maps can be fitted to: positions that predict a span of one token on both sides.

        The paper starts them at random and learns them for long; fitted, attention starts at the same piece of text.
        """
        own, teacher = student_side(batch, student), teacher_side(batch)
        # Only at such spans is it known which position of the other side predicts the same text.
        mine, theirs = single_tokens(batch, own, teacher)
        rows, carried = own.rows[mine], self._to_carry(teacher)[theirs]
        return [
            ToFit("query.weight", "query", self._asked(student, own)[mine], self._keys(teacher)[theirs], unit=False),
            ToFit("to_student.weight", "to_student", carried, rows, unit=False),
            ToFit("to_teacher.weight", "to_teacher", rows, teacher.rows[theirs], unit=False),
        ]

    def _scores(self, student: StudentOutput, own: Side, teacher: Side) -> tuple[Tensor, Tensor]:
        """(B, n, m) attention scores between the two sequences, and the mask of real pairs."""
        queries, keys = _apply(self.query, self._asked(student, own)), self._keys(teacher)
        queries, real = pad(own, queries)
        keys, present = pad(teacher, keys)
        return queries @ keys.mT / math.sqrt(keys.shape[-1]), real[:, :, None] & present[:, None, :]

    def _asked(self, student: StudentOutput, own: Side) -> Tensor:
        """(n, 2 d_S) the student's embeddings of the token read and of the one to predict."""
        if student.embedding is None:
            raise ConfigError(
                "objective dskd needs the student's input embeddings", "pass them as StudentOutput.embedding"
            )
        table = student.embedding.detach()
        return torch.cat([table[own.source], table[own.target]], -1)

    def _keys(self, teacher: Side) -> Tensor:
        """(m, 2 d_T) the teacher's, scaled."""
        keys = torch.cat([self._embedded(teacher.source), self._embedded(teacher.target)], -1)
        return keys / _spread(keys)

    def _to_carry(self, teacher: Side) -> Tensor:
        """(m, d_T) the teacher's states and the embeddings of the tokens to predict, each scaled."""
        targets = self._embedded(teacher.target)
        return teacher.rows / _spread(teacher.rows) + targets / _spread(targets)

    def _embedded(self, ids: Tensor) -> Tensor:
        table = self.constants.get("embedding")
        if table is None or table.device != ids.device:
            if self.context.teacher_embedding is None:
                raise ConfigError(
                    "objective dskd needs the teacher's input embeddings, and the cache has none",
                    "run the cache stage again with this objective",
                )
            self.constants["embedding"] = table = self.context.teacher_embedding.detach().to(ids.device)
        return accurate(table[ids])


def _attention(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension within the mask; 0 in rows without any real pair."""
    # Finite: with -inf a row without any real pair is NaN, which the mask would not make 0.
    return torch.softmax(scores.masked_fill(~mask, -1e5), -1) * mask


def _apply(linear: nn.Linear, rows: Tensor) -> Tensor:
    rows = accurate(rows)
    return linear(rows.to(linear.weight.dtype)).to(rows.dtype)


def _linear(inputs: int, outputs: int, seed: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.copy_(orthogonal(inputs, outputs, seed))
        functional.normalize(linear.weight, dim=-1, out=linear.weight)
        linear.bias.zero_()
    return linear


def _spread(values: Tensor) -> Tensor:
    """One standard deviation over everything, as in the paper's code; never 0."""
    return values.std().clamp(min=1e-6) if values.numel() > 1 else values.new_ones(())


def _best(logits: Tensor) -> Tensor:
    return logits.argmax(-1)
