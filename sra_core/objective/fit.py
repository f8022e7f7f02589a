"""Where a learned map starts: at least squares, from what the untrained student makes to what the teacher made.

A map that starts at random puts the cosine term near 1, and its gradient then says nothing of the student until the
map is learned. On a pair of two families that cost 0.04 bits a byte of a short run; fitted first, it costs nothing.

Legend: K rows to map, d_S and d_T widths of what W maps and of what it maps to (for SRA's projectors unit vectors of
student's and teacher's centres, c and g).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["RIDGES", "Fit", "RidgeFit", "ToFit"]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges that are tried, as shares of the mean diagonal of the normal equations."""


@dataclass(frozen=True, slots=True)
class ToFit:
    """What a batch adds to the fit of one map.

    Attributes:
        weight: Name of the map's parameter in the objective.
        title: What people call it, as in a metric's name.
        inputs: (K, d_S) what it maps.
        targets: (K, d_T) what it is to come to.
        unit: Whether lengths say nothing: rows are then made unit vectors first.
    """

    weight: str
    title: str
    inputs: Tensor
    targets: Tensor
    unit: bool


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted map and how well it carries rows that it was not fitted to.

    Attributes:
        weight: (d_T, d_S) float32.
        ridge: The ridge that carried held-out rows best, as a share of the mean diagonal.
        cosine: Mean cosine between held-out rows as they are mapped and what they should come to.
        identity: The same with the rows as they are; None where the widths differ.
    """

    weight: Tensor
    ridge: float
    cosine: float
    identity: float | None


class RidgeFit:
    """Normal equations of one map, in float64 on the device of what is added first.

    ``W^T = (sum c c^T + r I)^-1 sum c g^T`` over the rows added; the ridge r is chosen by the rows held out.

    Args:
        unit: Make rows unit vectors first.
    """

    def __init__(self, unit: bool = True) -> None:
        self._scaled = _unit if unit else _double
        self._inner: Tensor | None = None
        self._outer: Tensor | None = None
        self._held_out: list[tuple[Tensor, Tensor]] = []

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Rows to fit to, (K, d_S) and (K, d_T)."""
        own, other = self._scaled(inputs), self._scaled(targets)
        if self._inner is None or self._outer is None:
            self._inner = own.new_zeros(own.shape[1], own.shape[1])
            self._outer = own.new_zeros(own.shape[1], other.shape[1])
        # Sums are all that is kept of the rows: neither their number nor the parts that they come in matter.
        self._inner += own.T @ own
        self._outer += own.T @ other

    def hold_out(self, inputs: Tensor, targets: Tensor) -> None:
        """Rows to choose the ridge by and to judge the map with."""
        self._held_out.append((self._scaled(inputs), self._scaled(targets)))

    def solve(self) -> Fit:
        """The map of the best ridge.

        Raises:
            ValueError: Nothing was added, or nothing held out.
        """
        if self._inner is None or self._outer is None or not self._held_out:
            raise ValueError("a fit needs rows to fit to and rows held out")
        own, other = (torch.cat(parts) for parts in zip(*self._held_out, strict=True))
        # Ridges are relative to it: the same ones fit unit vectors and states of any length.
        scale = self._inner.diagonal().mean()
        found = []
        for ridge in RIDGES:
            regular = self._inner + ridge * scale * torch.eye(len(self._inner), dtype=own.dtype, device=own.device)
            weight = torch.linalg.solve(regular, self._outer).T
            found.append((_cosine(own @ weight.T, other), ridge, weight))
        cosine, ridge, weight = max(found, key=lambda each: each[0])
        identity = _cosine(own, other) if own.shape[1] == other.shape[1] else None
        # `weight` is a transposed view, and safetensors, where it goes, refuses those.
        return Fit(weight.float().cpu().contiguous(), ridge, cosine, identity)


def _double(rows: Tensor) -> Tensor:
    return rows.detach().double()


def _unit(rows: Tensor) -> Tensor:
    return functional.normalize(_double(rows), dim=-1)


def _cosine(mapped: Tensor, other: Tensor) -> float:
    return float(functional.cosine_similarity(mapped, other, dim=-1).mean())
