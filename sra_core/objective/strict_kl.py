"""Strict KL over the shared vocabulary, at spans of one token on both sides (arXiv 2610.08448).

Legend: n such spans, d width, V shared vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sra_core.objective.batch import Batch, StudentOutput
from sra_core.objective.chunks import head_loss, slope_by_autograd
from sra_core.objective.tokens import Side, TokenObjective, single_tokens

__all__ = ["StrictKlObjective"]


class StrictKlObjective(TokenObjective):
    """KL between the next-token distributions that predict the token of a span, the mean over spans of one token.

    Both distributions are restricted to the shared vocabulary and renormalised, at temperature tau; with ``top_k`` to
    the student's likeliest shared tokens.  ``direction`` is forward, ``KL(teacher || student)``, or reverse.
    """

    names = ("strict_kl",)

    def distill(self, batch: Batch, student: StudentOutput, own: Side, teacher: Side) -> Mapping[str, Tensor]:
        """The term ``strict_kl``."""
        tau, top = self.config.temperature, self.config.top_k
        mine, theirs = single_tokens(batch, own, teacher)
        head = self.head("teacher_head", own.rows.device)

        def values(logits: Tensor, teacher_rows: Tensor) -> Tensor:
            teacher_logits = head.logits(teacher_rows)
            if top is not None and top < logits.shape[1]:
                # The student's own, as in the paper's variant: the teacher's likeliest token may be left out.
                likeliest = logits.detach().topk(top).indices
                logits, teacher_logits = logits.gather(1, likeliest), teacher_logits.gather(1, likeliest)
            log_p = torch.log_softmax(teacher_logits / tau, -1)
            log_q = torch.log_softmax(logits / tau, -1)
            if self.config.direction == "reverse":
                log_p, log_q = log_q, log_p
            return (log_p.exp() * (log_p - log_q)).sum(-1)

        rows = student.head.rows(self.context.shared_student_ids.to(own.rows.device))
        total = head_loss(own.rows[mine], rows, slope_by_autograd(values), (teacher.rows[theirs],))
        return {"strict_kl": total / max(1, len(mine))}
