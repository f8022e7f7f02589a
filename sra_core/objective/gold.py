"""General online logit distillation across tokenizers (GOLD of TRL: ULD with its hybrid loss), on given texts.

Legend: K spans, V shared vocabulary, V_S and V_T entries of the two vocabularies.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sra_core.config import ObjectiveConfig
from sra_core.objective.batch import Batch, ObjectiveContext, StudentOutput
from sra_core.objective.chunks import head_loss, head_map
from sra_core.objective.divergences import generalised_jsd, sorted_distance
from sra_core.objective.head import Head
from sra_core.objective.pooling import span_tokens
from sra_core.objective.tokens import (
    Side,
    TokenObjective,
    log_likelihood,
    predicted_spans,
    rows_by_place,
    teacher_ranges,
)

__all__ = ["GoldObjective"]


class GoldObjective(TokenObjective):
    """A span's tokens are merged into one distribution on each side, and the two are compared; the mean over spans.

    Merged: the distribution that predicts the span's first token, times the probabilities of its later tokens (a
    constant of the teacher's; of the student's it carries gradient).  On the shared vocabulary the generalised
    Jensen-Shannon divergence of the merged probabilities, weighted by the share of the teacher's vocabulary that is
    shared; on the rest the L1 distance of the two sorted lists, the shorter one padded with zeros, weighted by what
    remains.  At temperature 1, as TRL's defaults.
    """

    names = ("gold",)

    def __init__(self, config: ObjectiveConfig, context: ObjectiveContext) -> None:
        super().__init__(config, context)
        self.rest: dict[str, Tensor] = {}
        # With `alignment.first_tokens` a token of the teacher stands for several of the student's. Its probability
        # counts once, for the first of them: the one of the same bytes, where there is one.
        first = np.sort(np.unique(context.shared_teacher_ids.cpu().numpy(), return_index=True)[1])
        self.shared = context.shared_student_ids[first], context.shared_teacher_ids[first]

    def distill(self, batch: Batch, student: StudentOutput, own: Side, teacher: Side) -> Mapping[str, Tensor]:
        """The term ``gold``."""
        device, theirs = own.rows.device, teacher_ranges(batch)
        known = predicted_spans(own, batch.span_range) & predicted_spans(teacher, theirs)
        head = self.head("teacher_full_head", device)
        student_ids, teacher_ids = (ids.to(device) for ids in self.shared)
        student_rest = self._rest("student", student_ids, len(student.head.weight))
        teacher_rest = self._rest("teacher", teacher_ids, len(head.weight))
        matched = len(teacher_ids) / len(head.weight)

        def values(logits: Tensor, own_later: Tensor, teacher_rows: Tensor, teacher_later: Tensor) -> Tensor:
            # Merged: scaled by the probability of the later tokens, and so no longer summing to one.
            log_q = torch.log_softmax(logits, -1) + own_later[:, None]
            log_p = torch.log_softmax(head.logits(teacher_rows), -1) + teacher_later[:, None]
            shared = generalised_jsd(log_p[:, teacher_ids], log_q[:, student_ids], self.config.beta)
            apart = sorted_distance(log_p[:, teacher_rest].exp(), log_q[:, student_rest].exp())
            return matched * shared + (1 - matched) * apart

        first, later = _parts(own, student.head, batch.span_range[known])
        with torch.no_grad():
            teacher_first, teacher_later = _parts(teacher, head, theirs[known])
        by_later: list[Tensor] = []

        def slope(logits: Tensor, own_later: Tensor, *theirs: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaves = logits.detach().requires_grad_(), own_later.detach().requires_grad_()
                value = values(*leaves, *theirs)
                grad, slope_of_later = torch.autograd.grad(value.sum(), leaves)
            # Chunks come in the order of the spans: one after another they line up with `later`.
            by_later.append(slope_of_later)
            return value.detach(), grad

        total = head_loss(first, student.head, slope, (later, teacher_first, teacher_later))
        # What is added is 0; its gradient is the one by the later tokens, which the loss above takes for constants.
        total = total + ((later - later.detach()) * torch.cat([*by_later, later.new_zeros(0)])).sum()
        return {"gold": total / max(1, len(first))}

    def _rest(self, side: str, shared: Tensor, entries: int) -> Tensor:
        """Ids of a vocabulary that are not shared; found once."""
        if side not in self.rest or self.rest[side].device != shared.device:
            alone = torch.ones(entries, dtype=torch.bool, device=shared.device)
            alone[shared] = False
            self.rest[side] = alone.nonzero()[:, 0]
        return self.rest[side]


def _parts(side: Side, head: Head, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """(K, d) the rows that predict each span's first token, and (K,) the log-likelihood of its later tokens."""
    index = rows_by_place(side)
    tokens, span = span_tokens(ranges)
    after = tokens != ranges[span, 0]
    rows = index[tokens[after]]
    log_q = head_map(side.rows[rows], head, log_likelihood, (side.target[rows],))
    later = log_q.new_zeros(len(ranges)).index_add(0, span[after], log_q)
    return side.rows[index[ranges[:, 0]]], later
