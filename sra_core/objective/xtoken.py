"""Projected KL of X-Token (arXiv 2605.21699): the student's distribution carried into the teacher's vocabulary.

Legend: n supervised positions, K spans, V_S and V_T entries, k teacher tokens that are compared.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sra_core.config import ObjectiveConfig
from sra_core.errors import ConfigError
from sra_core.objective.batch import Batch, ObjectiveContext, StudentOutput
from sra_core.objective.chunks import head_map, rows_at_once
from sra_core.objective.head import Head
from sra_core.objective.pooling import span_tokens
from sra_core.objective.tokens import Side, TokenObjective, predicted_spans, rows_by_place, teacher_ranges

__all__ = ["XTokenObjective"]

LIKELIEST = 8192  # teacher tokens that the paper compares
TINY = 1e-10  # keeps the logarithm of a probability finite where no student token leads to a teacher token


class XTokenObjective(TokenObjective):
    """``tau^2 KL(teacher || student)`` over the teacher's vocabulary, the mean over spans.

    Each student token stands for at most four teacher tokens (``student_in_teacher`` of the context).  Both sides are
    restricted to the ``top_k`` teacher tokens that are likeliest anywhere in the batch, and averaged over the tokens of
    a span: the student's probabilities, renormalised, and the teacher's log-softmax over those k.
    """

    names = ("xtoken",)

    def __init__(self, config: ObjectiveConfig, context: ObjectiveContext) -> None:
        super().__init__(config, context)
        if context.student_in_teacher is None:
            raise ConfigError(
                "objective xtoken needs the teacher's tokens of every student token",
                "pass student_in_teacher in the objective's context",
            )
        self._given: Tensor | None = None

    def distill(self, batch: Batch, student: StudentOutput, own: Side, teacher: Side) -> Mapping[str, Tensor]:
        """The term ``xtoken``."""
        theirs, tau = teacher_ranges(batch), self.config.temperature
        known = predicted_spans(own, batch.span_range) & predicted_spans(teacher, theirs)
        if not known.any():
            # 0 that hangs on the graph: a backward finds zeros in place of an error.
            return {"xtoken": own.rows.sum() * 0}
        head = self.head("teacher_full_head", own.rows.device)
        with torch.no_grad():
            kept = _likeliest(teacher.rows, head, self.config.top_k or LIKELIEST)
            log_p = _span_means(teacher, theirs[known], _on_teacher(teacher.rows, head.rows(kept), tau))
        matrix = self._matrix(kept, own.rows)

        def carried(logits: Tensor) -> Tensor:
            return torch.sparse.mm(matrix, torch.softmax(logits / tau, -1).T).T

        q = _span_means(own, batch.span_range[known], head_map(own.rows, student.head, carried))
        log_q = (q / q.sum(-1, keepdim=True).clamp(min=TINY)).clamp(min=TINY).log()
        return {"xtoken": tau**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()}

    def _matrix(self, kept: Tensor, like: Tensor) -> Tensor:
        """(k, V_S) sparse: what each student token gives to the teacher tokens that are compared."""
        if self._given is None or self._given.device != like.device:  # moved once, not at every step
            self._given = self.context.student_in_teacher.to(like.device)  # type: ignore[union-attr]
        given = self._given
        rows, columns = given.indices()
        place = torch.full((given.shape[1],), -1, dtype=torch.long, device=like.device)
        place[kept] = torch.arange(len(kept), device=like.device)
        inside = place[columns] >= 0
        index = torch.stack([place[columns[inside]], rows[inside]])
        # The other factor is a softmax of logits, which are in float32 or wider; both must have one type.
        wide = torch.promote_types(like.dtype, torch.float32)
        return torch.sparse_coo_tensor(
            index, given.values()[inside].to(wide), (len(kept), given.shape[0]), check_invariants=False
        )


def _likeliest(rows: Tensor, head: Head, count: int) -> Tensor:
    """The teacher tokens whose probability is highest at any of the rows, in the order of their ids."""
    if count >= len(head.weight):
        return torch.arange(len(head.weight), device=rows.device)
    best = torch.full((len(head.weight),), -torch.inf, device=rows.device)
    for part in rows.split(rows_at_once(head)):
        best = torch.maximum(best, torch.log_softmax(head.logits(part), -1).amax(0).to(best.dtype))
    return best.topk(count).indices.sort().values


def _on_teacher(rows: Tensor, head: Head, tau: float) -> Tensor:
    """(n, k) the teacher's log-softmax over the entries of ``head``."""
    return torch.cat([torch.log_softmax(head.logits(part) / tau, -1) for part in rows.split(rows_at_once(head))])


def _span_means(side: Side, ranges: Tensor, values: Tensor) -> Tensor:
    """(K, k) means of (n, k) values over the tokens of each span."""
    tokens, span = span_tokens(ranges)
    picked = values.index_select(0, rows_by_place(side).index_select(0, tokens))
    total = values.new_zeros(len(ranges), values.shape[1]).index_add(0, span, picked)
    return total / (ranges[:, 1] - ranges[:, 0])[:, None]
