"""A language-model head as plain tensors.  Legend: V entries, d width, n rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Head"]


# eq=False: two tensors compare entry by entry, which is no yes or no.
@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What turns a state into logits: ``softcap * tanh((x weight^T + bias) / softcap)``.

    Args:
        weight: (V, d) rows; the model's own parameter, so that gradients (and tied embeddings) work as usual.
        bias: (V,) or none.
        softcap: Bound of the logits (Gemma 2), or none.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None

    @staticmethod
    def of(head: Head | Tensor | torch.nn.Linear) -> Head:
        """A head from a head, a (V, d) weight or a linear layer."""
        if isinstance(head, Head):
            return head
        if isinstance(head, Tensor):
            return Head(head)
        return Head(head.weight, head.bias)

    def rows(self, ids: Tensor) -> Head:
        """The head of the entries ``ids`` (V',) alone, in that order; gradients flow back to the whole."""
        bias = None if self.bias is None else self.bias.index_select(0, ids)
        return replace(self, weight=self.weight.index_select(0, ids), bias=bias)

    def constant(self) -> Head:
        """The same head without gradients."""
        return replace(self, weight=self.weight.detach(), bias=None if self.bias is None else self.bias.detach())

    def to(self, *args: Any, **kwargs: Any) -> Head:
        """The head with tensors moved as by ``Tensor.to``."""
        bias = None if self.bias is None else self.bias.to(*args, **kwargs)
        return replace(self, weight=self.weight.to(*args, **kwargs), bias=bias)

    def logits(self, rows: Tensor) -> Tensor:
        """(n, d) states to (n, V) logits, in float32 or wider whatever the weights' type."""
        logits = product(rows, self.weight.T)
        if self.bias is not None:
            logits = logits + self.bias
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def accurate(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in its own type where that is wider: sums are never taken in half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` with a result in float32 or wider.

    Half-precision operands are widened first, except on a GPU where no gradient is recorded: its matrix units take the
    halves and give the float32 sums.
    """
    if right.is_cuda and right.dtype in (torch.bfloat16, torch.float16) and not torch.is_grad_enabled():
        # `out_dtype` exists on CUDA alone. A float32 `left` becomes halves here: in float16 all below 6e-8 is lost.
        return torch.mm(left.to(right.dtype), right, out_dtype=torch.float32)
    wide = torch.promote_types(right.dtype, torch.float32)
    return left.to(wide) @ right.to(wide)
