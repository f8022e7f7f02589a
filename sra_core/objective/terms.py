"""The span terms on centres of mass (paper section 3).

Legend: B texts, K spans of one text or of a batch, d width.

Every function takes the spans of one text, or those of B texts with ``text`` (K,), the text of each span, and
``texts``, their number.  A value is the mean over the B texts; a text without spans counts as one that contributes 0,
so that the gradient of a span does not depend on which texts share its batch.  The teacher's quantities are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import cosine_similarity, normalize

from sra_core.objective.head import accurate

__all__ = ["counts_of_texts", "span_cosine_loss", "span_geometry_loss", "span_trajectory_loss", "span_weights"]

NORM_FLOOR = 1e-8  # of a vector in a cosine, as in torch.nn.functional.cosine_similarity
PAIRS_AT_ONCE = 1 << 22  # entries of one block of cosines: 16 MiB in float32


def span_weights(mass: Tensor, p: float = 1.0, text: Tensor | None = None, texts: int | None = None) -> Tensor:
    """``pi_i = m_i^p / sum_j m_j^p`` over the spans of each text; p = 0 weighs all alike (no WSL).

    Args:
        mass: (K,) the teacher's masses.
        p: Power.
        text: (K,) text of each span; unset when all belong to one.
        texts: B.

    Returns:
        (K,) weights that sum to one in each text (to zero where every mass is zero and p > 0).
    """
    text, texts = _texts(mass, text, texts)
    mass = accurate(mass.detach())
    largest = mass.new_zeros(texts).scatter_reduce(0, text, mass, "amax")
    # A text whose masses are all 0 gets weights of 0, not 0 / 0. For p = 0 torch's 0 ** 0 is 1: all weigh alike.
    smallest = torch.finfo(mass.dtype).tiny
    powers = (mass / largest.clamp(min=smallest).index_select(0, text)) ** p  # relative, so that no power underflows
    total = powers.new_zeros(texts).index_add(0, text, powers).clamp(min=smallest)
    return powers / total.index_select(0, text)


def span_cosine_loss(
    student_centers: Tensor,
    teacher_centers: Tensor,
    mass: Tensor,
    projector: Callable[[Tensor], Tensor],
    p: float = 1.0,
    text: Tensor | None = None,
    texts: int | None = None,
) -> Tensor:
    """``sum_i pi_i (1 - cos(W C^S_i, C^T_i))``, a scalar.

    Args:
        student_centers: (K, d_S).
        teacher_centers: (K, d_T), constant.
        mass: (K,) the teacher's masses.
        projector: W, from d_S to d_T.
        p: Power of the mass.
        text: (K,) text of each span; unset when all belong to one.
        texts: B; unset counts up to the last text with a span.
    """
    text, texts = _texts(mass, text, texts)
    return _distance(projector(student_centers), teacher_centers, span_weights(mass, p, text, texts), texts)


def span_trajectory_loss(
    student_centers: Sequence[Tensor],
    teacher_centers: Sequence[Tensor],
    mass: Sequence[Tensor],
    projectors: Sequence[Callable[[Tensor], Tensor]],
    p: float = 1.0,
    text: Tensor | None = None,
    texts: int | None = None,
) -> Tensor:
    """``mean over consecutive layer pairs of sum_i pi_i (1 - cos(dC^S_i, dC^T_i))``, a scalar.

    dC is the change of a centre from one mapped layer to the next.  The student's is taken between projected centres,
    since the two widths differ; pi comes from the masses of the later layer.

    Args:
        student_centers: (K, d_S) for each of L >= 2 layer pairs.
        teacher_centers: (K, d_T) for each.
        mass: (K,) for each.
        projectors: One for each.
        p: Power of the mass.
        text: (K,) text of each span; unset when all belong to one.
        texts: B.
    """
    text, texts = _texts(mass[0], text, texts)
    projected = [projector(centers) for projector, centers in zip(projectors, student_centers, strict=True)]
    steps = [
        _distance(
            projected[layer] - projected[layer - 1],
            accurate(teacher_centers[layer]) - accurate(teacher_centers[layer - 1]),
            span_weights(mass[layer], p, text, texts),
            texts,
        )
        for layer in range(1, len(projected))
    ]
    return torch.stack(steps).mean()


def span_geometry_loss(
    student_centers: Tensor,
    teacher_centers: Tensor,
    mass: Tensor,
    p: float = 1.0,
    text: Tensor | None = None,
    texts: int | None = None,
    most: int | None = None,
) -> Tensor:
    """``sum_{i != j} rho_ij (cos(C^S_i, C^S_j) - cos(C^T_i, C^T_j))^2``, a scalar.

    ``rho_ij = pi_i pi_j / sum_{k != l} pi_k pi_l``; a text with fewer than two spans contributes 0.  Pairs are formed
    within a text only, in blocks of bounded size, with the gradient formed in the forward.

    Args:
        student_centers: (K, d_S), not projected.
        teacher_centers: (K, d_T), constant.
        mass: (K,) the teacher's masses.
        p: Power of the mass.
        text: (K,) text of each span, non-decreasing; unset when all belong to one.
        texts: B.
        most: Spans of the text that has most of them; unset counts them, for which a GPU is waited for.
    """
    text, texts = _texts(mass, text, texts)
    weights = span_weights(mass, p, text, texts)
    counts = counts_of_texts(text, texts)
    place = torch.arange(len(text), device=text.device) - (counts.cumsum(0) - counts).index_select(0, text)
    longest = most if most is not None else int(counts.max()) if texts else 0
    # Text by text, since pairs are formed within a text alone; the places added beyond its spans weigh 0.
    student, teacher, weights = (
        value.new_zeros(texts, longest, *value.shape[1:]).index_put((text, place), value)
        for value in (_unit(student_centers), _unit(teacher_centers).detach(), weights)
    )
    value: Tensor = _PairLoss.apply(student, teacher, weights.to(student.dtype)) / max(texts, 1)
    return value


class _PairLoss(torch.autograd.Function):
    """Sum over texts of the weighted squared differences of two matrices of cosines, a block of rows at a time.

    The matrix of derivatives by the cosines is symmetric, so a block of its rows gives the whole gradient of the
    spans of these rows.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        texts, spans, _ = student.shape
        block = max(1, PAIRS_AT_ONCE // max(1, texts * spans))
        starts = range(0, spans, block)
        # Summed pair by pair: 1 - sum pi^2, the same number, cancels where one span holds nearly all mass.
        pairs = weights.new_zeros(texts)
        for start in starts:
            pairs += _pair_weights(weights, start, block).sum((1, 2))
        # 0 for a text of fewer than two spans, which has no pair.
        scale = pairs.clamp(min=torch.finfo(pairs.dtype).tiny).reciprocal() * (pairs > 0)
        value = student.new_zeros(())
        grad = torch.empty_like(student)
        for start in starts:
            rows = slice(start, start + block)
            gap = student[:, rows] @ student.mT - teacher[:, rows] @ teacher.mT
            slope = _pair_weights(weights, start, block).mul_(scale[:, None, None]).mul_(gap)
            value += (slope * gap).sum()
            grad[:, rows] = (slope @ student).mul_(4)  # 2 of the square, 2 of the symmetry
        ctx.save_for_backward(grad)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_output, None, None


def _pair_weights(weights: Tensor, start: int, block: int) -> Tensor:
    """(B, block, K) products pi_i pi_j of the rows from ``start`` on, 0 for i = j."""
    rows = weights[:, start : start + block]
    products = rows[:, :, None] * weights[:, None, :]
    products.diagonal(offset=start, dim1=1, dim2=2).zero_()
    return products


def _distance(student: Tensor, teacher: Tensor, weights: Tensor, texts: int) -> Tensor:
    """Weighted sum of 1 - cos over the spans, divided by the number of texts."""
    cosine = cosine_similarity(accurate(student), accurate(teacher.detach()), dim=-1, eps=NORM_FLOOR)
    return (weights * (1 - cosine)).sum() / max(texts, 1)


def _unit(vectors: Tensor) -> Tensor:
    return normalize(accurate(vectors), dim=-1, eps=NORM_FLOOR)


def _texts(mass: Tensor, text: Tensor | None, texts: int | None) -> tuple[Tensor, int]:
    """The text of each span and the number of texts, where unset."""
    if text is None:
        return torch.zeros(len(mass), dtype=torch.long, device=mass.device), 1 if texts is None else texts
    if texts is None:
        texts = int(text.max()) + 1 if len(text) else 1
    return text.long(), texts


def counts_of_texts(text: Tensor, texts: int) -> Tensor:
    """(B,) how often each text occurs among (K,); unlike ``torch.bincount`` no GPU is waited for."""
    return torch.zeros(texts, dtype=torch.long, device=text.device).index_add(0, text, torch.ones_like(text))
