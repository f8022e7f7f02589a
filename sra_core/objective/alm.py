"""Approximate likelihood matching (ALM, arXiv 2503.20083).  Legend: K spans of the batch, n supervised positions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sra_core.objective.batch import Batch, StudentOutput
from sra_core.objective.chunks import head_map
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
        theirs = teacher_ranges(batch)
        # A chunk's likelihood needs each of its tokens: one with nothing before it has none.
        known = predicted_spans(own, batch.span_range) & predicted_spans(teacher, theirs)
        student_log = _span_likelihood(own, student.head, batch.span_range[known])
        with torch.no_grad():
            head = self.head("teacher_full_head", own.rows.device)
            teacher_log = _span_likelihood(teacher, head, theirs[known])
        gap = TEMPERATURE * binary_kl(teacher_log / TEMPERATURE, student_log / TEMPERATURE)
        return {"alm": gap.sum() / max(1, len(gap))}


def binary_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(Bernoulli(p) || Bernoulli(q))`` from log-probabilities <= 0."""
    log_p, log_q = log_p - FLOOR, log_q - FLOOR
    # -expm1(x) is 1 - exp(x) without cancellation: in float32 1 - exp(-1e-6) keeps one or two digits.
    return log_p.exp() * (log_p - log_q) - torch.expm1(log_p) * (_log_complement(log_p) - _log_complement(log_q))


def _log_complement(log_p: Tensor) -> Tensor:
    """``log(1 - exp(log_p))`` for log_p < 0."""
    return torch.log(-torch.expm1(log_p))


def _span_likelihood(side: Side, head: Head, ranges: Tensor) -> Tensor:
    """(K,) log-likelihood of each span's tokens, all of which are predicted."""
    log_q = head_map(side.rows, head, log_likelihood, (side.target,))
    tokens, span = span_tokens(ranges)
    values = log_q.index_select(0, rows_by_place(side).index_select(0, tokens))
    return log_q.new_zeros(len(ranges)).index_add(0, span, values)
