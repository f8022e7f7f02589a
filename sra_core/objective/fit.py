"""Where a projector starts: the least-squares map from the untrained student's centres to the teacher's.

A map that starts at random puts the cosine term near 1, and its gradient then says nothing of the student until the
map is learned. On a pair of two families that cost 0.04 bits a byte of a short run; fitted first, it costs nothing.

Legend: K spans, d_S and d_T widths. Unit vectors c, g of student's and teacher's centres; W maps c to g.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["RIDGES", "Fit", "RidgeFit"]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges that are tried, as shares of the mean diagonal of the normal equations."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted map and how well it carries spans that it was not fitted to.

    Attributes:
        weight: (d_T, d_S) float32.
        ridge: The ridge that carried held-out spans best, as a share of the mean diagonal.
        cosine: Mean cosine between held-out spans' mapped centres and the teacher's.
        identity: The same with the student's centres as they are; None where the widths differ.
    """

    weight: Tensor
    ridge: float
    cosine: float
    identity: float | None


class RidgeFit:
    """Normal equations of one layer pair, in float64 on the device of what is added first.

    ``W^T = (sum c c^T + r I)^-1 sum c g^T`` over the spans added; the ridge r is chosen by the spans held out.
    """

    def __init__(self) -> None:
        self._inner: Tensor | None = None
        self._outer: Tensor | None = None
        self._held_out: list[tuple[Tensor, Tensor]] = []

    def add(self, student: Tensor, teacher: Tensor) -> None:
        """Spans to fit to: centres (K, d_S) and (K, d_T)."""
        own, other = _unit(student), _unit(teacher)
        if self._inner is None or self._outer is None:
            self._inner = own.new_zeros(own.shape[1], own.shape[1])
            self._outer = own.new_zeros(own.shape[1], other.shape[1])
        self._inner += own.T @ own
        self._outer += own.T @ other

    def hold_out(self, student: Tensor, teacher: Tensor) -> None:
        """Spans to choose the ridge by and to judge the map with."""
        self._held_out.append((_unit(student), _unit(teacher)))

    def solve(self) -> Fit:
        """The map of the best ridge.

        Raises:
            ValueError: No span was added, or none held out.
        """
        if self._inner is None or self._outer is None or not self._held_out:
            raise ValueError("a fit needs spans to fit to and spans held out")
        own, other = (torch.cat(parts) for parts in zip(*self._held_out, strict=True))
        scale = self._inner.diagonal().mean()
        found = []
        for ridge in RIDGES:
            regular = self._inner + ridge * scale * torch.eye(len(self._inner), dtype=own.dtype, device=own.device)
            weight = torch.linalg.solve(regular, self._outer).T
            found.append((_cosine(own @ weight.T, other), ridge, weight))
        cosine, ridge, weight = max(found, key=lambda each: each[0])
        identity = _cosine(own, other) if own.shape[1] == other.shape[1] else None
        return Fit(weight.float().cpu().contiguous(), ridge, cosine, identity)


def _unit(centers: Tensor) -> Tensor:
    return functional.normalize(centers.detach().double(), dim=-1)


def _cosine(mapped: Tensor, other: Tensor) -> float:
    return float(functional.cosine_similarity(mapped, other, dim=-1).mean())
