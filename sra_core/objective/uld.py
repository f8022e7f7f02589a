"""Universal logit distillation (ULD, arXiv 2402.12030).  Legend: n paired positions, V_S and V_T entries."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sra_core.objective.batch import Batch, StudentOutput
from sra_core.objective.chunks import head_loss, slope_by_autograd
from sra_core.objective.divergences import sorted_distance
from sra_core.objective.tokens import Side, TokenObjective, paired

__all__ = ["UldObjective"]


class UldObjective(TokenObjective):
    """``sum_v |p_sorted(v) - q_sorted(v)|``: probabilities in falling order, the shorter vector padded with zeros.

    Positions are paired in order from the start of the response; the mean over the pairs.
    """

    names = ("uld",)

    def distill(self, batch: Batch, student: StudentOutput, own: Side, teacher: Side) -> Mapping[str, Tensor]:
        """The term ``uld``."""
        mine, theirs = paired(own, teacher)
        head = self.head("teacher_full_head", own.rows.device)

        def values(logits: Tensor, teacher_rows: Tensor) -> Tensor:
            return sorted_distance(head.logits(teacher_rows).softmax(-1), logits.softmax(-1))

        total = head_loss(own.rows[mine], student.head, slope_by_autograd(values), (teacher.rows[theirs],))
        return {"uld": total / max(1, len(mine))}
