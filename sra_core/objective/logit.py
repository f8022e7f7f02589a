"""Losses over a vocabulary: cross-entropy and the span-logit KL (paper section 3).

Legend: N tokens of a batch, K spans of it, d width, V entries.

Why not a kernel library: liger-kernel's fused linear distillation losses are the nearest thing.  They want a target
token for every row, divide by the number of targets (no weight a row, so no mean over the spans of a text), know no
soft-capping, gather the (V, d) gradient in the weights' own type and copy it once more in the backward, and the package
needs Triton.  What is left to do is three matrix products and a softmax, which torch does well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sra_core.objective.batch import Batch
from sra_core.objective.chunks import Slope, head_loss
from sra_core.objective.head import Head
from sra_core.objective.terms import counts_of_texts

__all__ = ["cross_entropy_slope", "kl_slope", "next_token_loss", "span_logit_kl"]


def span_logit_kl(
    student_centers: Tensor,
    teacher_centers: Tensor,
    student_head: Head | Tensor,
    teacher_head: Head | Tensor,
    temperature: float = 2.0,
    reduction: str = "sum",
    chunk: int | None = None,
    text: Tensor | None = None,
    texts: int | None = None,
) -> Tensor:
    """``sum_i KL(softmax(z^T_i / tau) || softmax(z^S_i / tau))``, the teacher first, no tau^2; mean over texts.

    Only rows of the shared vocabulary take part, a chunk of spans at a time (see :mod:`sra_core.objective.chunks`).

    Args:
        student_centers: (K, d_S).
        teacher_centers: (K, d_T), constant.
        student_head: The student's rows of the shared vocabulary, (V, d_S).
        teacher_head: The teacher's, (V, d_T), in the same order; constant.
        temperature: tau.
        reduction: Over the spans of a text: ``sum`` or ``mean``.
        chunk: Spans at once; unset takes as many as 16 MiB of logits hold, at least 32.
        text: (K,) text of each span; unset when all belong to one.
        texts: B; a text without spans contributes 0.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is 'sum' or 'mean', not {reduction!r}")
    spans = len(student_centers)
    text = torch.zeros(spans, dtype=torch.long, device=student_centers.device) if text is None else text
    texts = max(1, (int(text.max()) + 1 if spans else 1) if texts is None else texts)
    weights = student_centers.new_full(
        (spans,), 1 / texts, dtype=torch.promote_types(student_centers.dtype, torch.float32)
    )
    if reduction == "mean":
        # Never by 0: only texts with a span are looked up.
        weights = weights / counts_of_texts(text, texts).index_select(0, text)
    slope = kl_slope(Head.of(teacher_head).constant(), temperature)
    return head_loss(student_centers, Head.of(student_head), slope, (teacher_centers.detach(),), weights, chunk)


def kl_slope(teacher_head: Head, temperature: float) -> Slope:
    """Value and slope of the forward KL from the teacher's states, in three buffers of the size of the logits."""

    def slope(logits: Tensor, teacher_rows: Tensor) -> tuple[Tensor, Tensor]:
        # The student first: both softmaxes are left in one scratch buffer, and the one that is needed of it is p.
        scratch = torch.empty_like(logits)
        log_q, _ = _log_softmax_(logits.div_(temperature), scratch)
        log_p, total = _log_softmax_(teacher_head.logits(teacher_rows).div_(temperature), scratch)
        p = scratch.div_(total)
        values = log_p.sub_(log_q).mul_(p).sum(-1)
        # d KL / d logits = (q - p) / tau, in the place of log q.
        return values, log_q.exp_().sub_(p).div_(temperature)

    return slope


def next_token_loss(final: Tensor, batch: Batch, head: Head, chunk: int | None = None) -> Tensor:
    """Cross-entropy of the supervised next tokens, the mean over them; 0 where nothing is supervised.

    Where the batch is one forward of a larger step, the sum is divided by ``batch.supervised`` instead: then the mean
    over the step's forwards is the mean over its tokens, however the step was cut.

    Args:
        final: (N, d_S) student states after the final norm.
        batch: For its labels and targets.
        head: The student's head, whole; full-vocabulary logits exist at supervised positions only.
        chunk: Positions at once.
    """
    # The state before a token predicts it; a target is never the first token of its text.
    rows, target = final.index_select(0, batch.targets - 1), batch.labels.index_select(0, batch.targets)
    return head_loss(rows, head, cross_entropy_slope, (target,), chunk=chunk) / (
        batch.supervised or max(1, len(target))
    )


def cross_entropy_slope(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope of the cross-entropy of each row's target."""
    log_q, _ = _log_softmax_(logits, torch.empty_like(logits))
    values = -log_q.gather(1, target[:, None])[:, 0]  # before log q becomes the slope, in place
    slope = log_q.exp_()
    slope.scatter_add_(1, target[:, None], slope.new_full((len(target), 1), -1.0))
    return values, slope


def _log_softmax_(logits: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the softmax over the last dimension, in place.

    Leaves the softmax times its second result (n, 1) in ``scratch``; torch's own would take two more buffers.
    """
    logits.sub_(logits.amax(-1, keepdim=True))
    total = torch.exp(logits, out=scratch).sum(-1, keepdim=True)
    return logits.sub_(total.log()), total
