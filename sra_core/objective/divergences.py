"""Divergences between next-token distributions, for a teacher with the student's own tokenizer.

p is the teacher's distribution and q the student's, both at temperature tau, no tau^2 factor.  Legend: n positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sra_core.config import ObjectiveConfig
from sra_core.errors import AlignmentError, ConfigError
from sra_core.objective.batch import Batch, ObjectiveContext, StudentOutput
from sra_core.objective.chunks import head_loss, slope_by_autograd
from sra_core.objective.tokens import Side, TokenObjective

__all__ = ["DIVERGENCES", "DivergenceObjective", "generalised_jsd", "sorted_distance"]


def forward_kl(log_p: Tensor, log_q: Tensor, skew: float) -> Tensor:
    """``KL(p || q)`` of each row."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(log_p: Tensor, log_q: Tensor, skew: float) -> Tensor:
    """``KL(q || p)`` of each row."""
    return forward_kl(log_q, log_p, skew)


def jensen_shannon(log_p: Tensor, log_q: Tensor, skew: float) -> Tensor:
    """``KL(p || m) / 2 + KL(q || m) / 2`` with ``m = (p + q) / 2``, of each row."""
    # Mixed in logarithms, where a probability that underflows on one side does no harm.
    log_m = torch.logaddexp(log_p, log_q) - torch.log(log_p.new_tensor(2.0))
    return (forward_kl(log_p, log_m, skew) + forward_kl(log_q, log_m, skew)) / 2


def skewed_kl(log_p: Tensor, log_q: Tensor, skew: float) -> Tensor:
    """``KL(p || skew p + (1 - skew) q)`` of each row (DistiLLM, arXiv 2402.03898)."""
    if skew == 0:
        return forward_kl(log_p, log_q, skew)
    share = log_p.new_tensor(skew)
    return forward_kl(log_p, torch.logaddexp(log_p + share.log(), log_q + torch.log1p(-share)), skew)


def generalised_jsd(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``, of each row (arXiv 2306.13649).

    Its limits are taken as ``KL(p || q)`` at beta 0 and ``KL(q || p)`` at 1, as there.
    """
    if beta in (0, 1):
        return forward_kl(log_p, log_q, 0) if beta == 0 else forward_kl(log_q, log_p, 0)
    share = log_p.new_tensor(beta)
    log_m = torch.logaddexp(log_p + share.log(), log_q + torch.log1p(-share))
    return beta * forward_kl(log_p, log_m, 0) + (1 - beta) * forward_kl(log_q, log_m, 0)


def sorted_distance(p: Tensor, q: Tensor) -> Tensor:
    """L1 distance of each row's probabilities in falling order, the shorter list padded with zeros.

    Where the shorter list has ended, the distance is what the longer one has left: so that one is never sorted whole.
    """
    long, short = (p, q) if p.shape[-1] >= q.shape[-1] else (q, p)
    leading = long.topk(short.shape[-1], -1).values
    apart = (leading - short.sort(-1, descending=True).values).abs().sum(-1)
    return apart + long.sum(-1) - leading.sum(-1)


DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "fkl": forward_kl,
    "rkl": reverse_kl,
    "js": jensen_shannon,
    "skl": skewed_kl,
}


class DivergenceObjective(TokenObjective):
    """A divergence at every supervised position over the shared vocabulary, the mean over positions."""

    def __init__(self, config: ObjectiveConfig, context: ObjectiveContext) -> None:
        super().__init__(config, context)
        self.names = (config.name,)
        # The same tokenizer pairs every token with itself; that texts are cut alike is seen in `distill`.
        if not torch.equal(context.shared_student_ids.cpu(), context.shared_teacher_ids.cpu()):
            raise ConfigError(
                f"objective {config.name} needs the same tokenizer on both sides",
                "choose an objective across tokenizers, such as sra, or a student with the teacher's tokenizer",
            )

    def distill(self, batch: Batch, student: StudentOutput, own: Side, teacher: Side) -> Mapping[str, Tensor]:
        """The term named like the objective."""
        if not torch.equal(own.target, teacher.target):
            raise AlignmentError(
                f"objective {self.config.name} compares tokens one by one, and the two sides' tokens differ",
                "use it with a student that keeps its teacher's tokenizer, or choose objective sra",
            )
        name, tau, skew = self.config.name, self.config.temperature, self.config.skew
        head = self.head("teacher_head", own.rows.device)

        def values(logits: Tensor, teacher_rows: Tensor) -> Tensor:
            log_p = torch.log_softmax(head.logits(teacher_rows) / tau, -1)
            return DIVERGENCES[name](log_p, torch.log_softmax(logits / tau, -1), skew)

        rows = student.head.rows(self.context.shared_student_ids.to(own.rows.device))
        total = head_loss(own.rows, rows, slope_by_autograd(values), (teacher.rows,))
        return {name: total / max(1, len(own.rows))}
