"""Approximate likelihood matching (ALM, arXiv 2503.20083).  Legend: K spans of the batch, n supervised positions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sra_core.errors import ConfigError
from sra_core.objective.batch import Batch, StudentOutput
from sra_core.objective.chunks import head_map
from sra_core.objective.head import Head
from sra_core.objective.pooling import span_tokens
from sra_core.objective.tokens import Side, TokenObjective

__all__ = ["AlmObjective", "binary_kl"]

TEMPERATURE = 100.0  # of the paper's binarised likelihoods
FLOOR = 1e-6  # log-likelihoods are kept this far below 0, where the binary divergence is singular


class AlmObjective(TokenObjective):
    """Binary KL between the likelihoods that teacher and student give the same chunk of text, the mean over chunks.

    A chunk is a span.  Its likelihood is the product over its tokens, raised to 1 / tau with tau = 100.  The divergence
    is multiplied by tau, which gives it a finite limit for large tau and changes no minimum; without it the term
    vanishes beside cross-entropy.  The paper's optional debiasing of chunk ends is left out: clean cuts end spans
    where both tokenizers end a token.
    """

    names = ("alm",)

    def distill(self, batch: Batch, student: StudentOutput, own: Side, teacher: Side) -> Mapping[str, Tensor]:
        """The term ``alm``."""
        if batch.teacher_range is None:
            raise ConfigError(
                "objective alm needs the teacher's token ranges of the spans, and the batch has none",
                "prepare the batch with teacher_range, which the prepared shards hold as teacher_spans",
            )
        head = self.head("teacher_full_head", own.rows.device)
        student_log, student_known = _span_likelihood(own, student.head, batch.span_range)
        with torch.no_grad():
            teacher_log, teacher_known = _span_likelihood(teacher, head, batch.teacher_range)
        known = (student_known & teacher_known).to(student_log.dtype)
        gap = TEMPERATURE * binary_kl(teacher_log / TEMPERATURE, student_log / TEMPERATURE)
        return {"alm": (gap * known).sum() / known.sum().clamp(min=1)}


def binary_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(Bernoulli(p) || Bernoulli(q))`` from log-probabilities <= 0."""
    log_p, log_q = log_p - FLOOR, log_q - FLOOR
    return log_p.exp() * (log_p - log_q) - torch.expm1(log_p) * (_log_complement(log_p) - _log_complement(log_q))


def _log_complement(log_p: Tensor) -> Tensor:
    """``log(1 - exp(log_p))`` for log_p < 0."""
    return torch.log(-torch.expm1(log_p))


def _span_likelihood(side: Side, head: Head, span_range: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) log-likelihood of each span's tokens, and whether every one of them is predicted."""
    log_q = head_map(side.rows, head, _target_log_probability, (side.target,))
    none = len(log_q)  # index of an extra zero, for tokens that are not predicted
    index = torch.full((side.tokens,), none, dtype=torch.long, device=log_q.device)
    index[side.place] = torch.arange(none, device=log_q.device)
    tokens, span = span_tokens(span_range)
    index = index.index_select(0, tokens)
    zeros = log_q.new_zeros(len(span_range))
    missing = zeros.index_add(0, span, (index == none).to(zeros.dtype))
    values = torch.cat([log_q, log_q.new_zeros(1)]).index_select(0, index)
    return zeros.index_add(0, span, values), missing == 0


def _target_log_probability(logits: Tensor, target: Tensor) -> Tensor:
    return logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(-1)
