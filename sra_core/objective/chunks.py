"""The one way from states to a loss over a vocabulary, in chunks.  Legend: n rows, d width, V entries of the head.

Logits are formed for a chunk of rows at a time, the loss and its gradient are taken from them at once, and the logits
are dropped: what outlives the forward is the gradient by the rows (n, d) and by the head (V, d), never (n, V).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from sra_core.objective.head import Head, accurate, product

__all__ = ["head_loss", "head_map", "slope_by_autograd"]

LOGITS_AT_ONCE = 1 << 22  # entries of one chunk of logits: 16 MiB in float32
ROWS_AT_LEAST = 32  # of a chunk: each chunk passes once over the (V, d) gradient, which must not dominate

Slope = Callable[..., tuple[Tensor, Tensor]]
"""(logits (n, V), extras...) -> values (n,), d values_i / d logits_i (n, V); may overwrite the logits."""


@dataclass(frozen=True)
class _Plan:
    slope: Slope
    softcap: float | None
    chunk: int
    needs: tuple[bool, bool, bool]  # gradients by rows, head weight, head bias


def head_loss(
    rows: Tensor,
    head: Head,
    slope: Slope,
    extras: Sequence[Tensor] = (),
    weights: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """``sum_i weights_i * value_i(head(rows_i))``, a scalar with gradients by the rows and the head.

    Args:
        rows: (n, d) states.
        head: The head that they go through.
        slope: The value of each row and its derivative by the row's logits.
        extras: Tensors of n entries that ``slope`` takes after the logits, cut into the same chunks; constants.
        weights: (n,) weight of each row, constant; unset weighs all 1.
        chunk: Rows at once; unset takes as many as 16 MiB of logits hold, at least 32.
    """
    tensors = (rows, head.weight, head.bias)
    # Settled here: inside the forward of an autograd Function gradients are always off.
    needs = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in tensors]
    chunk = chunk or rows_at_once(head)
    plan = _Plan(slope, head.softcap, chunk, (needs[0], needs[1], needs[2]))
    weights = accurate(rows.new_ones(len(rows)) if weights is None else weights.detach())
    value: Tensor = _HeadLoss.apply(plan, rows, head.weight, head.bias, weights, *extras)
    return value


def head_map(
    rows: Tensor,
    head: Head,
    function: Callable[..., Tensor],
    extras: Sequence[Tensor] = (),
    chunk: int | None = None,
) -> Tensor:
    """``function(head(rows), extras...)`` row by row, for functions whose output is small.

    The logits of a chunk are dropped after use and formed again in the backward.

    Args:
        rows: (n, d) states.
        head: The head that they go through.
        function: (logits (n, V), extras...) to (n, ...).
        extras: Tensors of n entries, cut into the same chunks.
        chunk: Rows at once; unset takes as many as 16 MiB of logits hold, at least 32.
    """

    def piece(part: Tensor, weight: Tensor, bias: Tensor | None, *others: Tensor) -> Tensor:
        return function(Head(weight, bias, head.softcap).logits(part), *others)

    chunk = chunk or rows_at_once(head)
    outputs = []
    # One piece at least: of nothing torch.cat can make neither a width nor a graph.
    for start in range(0, max(1, len(rows)), chunk):
        part = slice(start, start + chunk)
        operands = (rows[part], head.weight, head.bias, *(extra[part] for extra in extras))
        # Not reentrant: that kind refuses torch.autograd.grad, which diagnostics call for each term.
        outputs.append(
            checkpoint(piece, *operands, use_reentrant=False) if torch.is_grad_enabled() else piece(*operands)
        )
    return torch.cat(outputs)


def rows_at_once(head: Head) -> int:
    """Rows whose logits fill the bound of one chunk, and never so few that the passes over the head dominate."""
    return max(ROWS_AT_LEAST, LOGITS_AT_ONCE // max(1, len(head.weight)))


def slope_by_autograd(values: Callable[..., Tensor]) -> Slope:
    """A slope from a plain function of logits (n, V) and extras to values (n,)."""

    def slope(logits: Tensor, *extras: Tensor) -> tuple[Tensor, Tensor]:
        # It is called inside a Function's forward, where gradients are off. Rows do not mix, so that the gradient of
        # the sum holds each row's own.
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            value = values(logits, *extras)
            (grad,) = torch.autograd.grad(value.sum(), logits)
        return value.detach(), grad

    return slope


class _HeadLoss(torch.autograd.Function):
    """Gradients are formed in the forward and handed over, scaled in place, by the first backward.

    A later backward through a retained graph forms them again.
    """

    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, rows: Tensor, weight: Tensor, bias: Tensor | None, weights: Tensor, *extras: Tensor
    ) -> Tensor:
        value, grads = _fold(plan, rows, weight, bias, weights, extras)
        ctx.plan, ctx.grads = plan, grads
        ctx.save_for_backward(rows, weight, bias, weights, *extras)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, weights, *extras = ctx.saved_tensors
        # Handed over: they are scaled in place below, and a second backward must not scale them again.
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            _, grads = _fold(ctx.plan, rows, weight, bias, weights, extras)
        scaled = [
            None if grad is None else grad.mul_(grad_output).to(tensor.dtype)
            for grad, tensor in zip(grads, (rows, weight, bias), strict=True)
        ]
        return (None, *scaled, None, *(None for _ in extras))  # plan, weights and extras are constants


def _fold(
    plan: _Plan, rows: Tensor, weight: Tensor, bias: Tensor | None, weights: Tensor, extras: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss and its gradients by rows, head weight and head bias (where needed), chunk by chunk."""
    head = Head(weight, bias, plan.softcap)
    total = weights.new_zeros(())
    grads = [
        # In float32 also for halves: every chunk adds to them.
        torch.zeros_like(accurate(tensor.detach())) if needed and tensor is not None else None
        for tensor, needed in zip((rows, weight, bias), plan.needs, strict=True)
    ]
    by_rows, by_weight, by_bias = grads
    for start in range(0, len(rows), plan.chunk):
        part = slice(start, start + plan.chunk)
        logits = head.logits(rows[part])
        # The soft cap's derivative, taken first: `slope` may overwrite the logits.
        bend = None if plan.softcap is None else 1 - (logits / plan.softcap).square_()
        values, slope = plan.slope(logits, *(extra[part] for extra in extras))
        del logits
        total += (values * weights[part]).sum()
        if bend is not None:
            slope.mul_(bend)
        if by_rows is not None:
            # weighed after it: before, weights of a thousandth put most of a slope below what float16 can tell from 0
            by_rows[part] = product(slope, weight).mul_(weights[part, None])
        slope.mul_(weights[part, None])
        if by_weight is not None:
            by_weight.addmm_(slope.T, rows[part].to(slope.dtype))
        if by_bias is not None:
            by_bias += slope.sum(0)
        del slope  # before the next chunk's logits are made
    return total, grads
