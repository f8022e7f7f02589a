"""The objectives spelled out: loops over texts, spans and tokens, full logits, autograd.  Written from the formulas.

Tests compare ``sra_core.objective`` with it in float64; benchmarks/objective.py measures against it.
Legend: B texts, N tokens of all of them, T tokens of one, K spans of one text, d width, V entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor


def pool(
    hidden: Tensor, weights: Tensor, ranges: Sequence[tuple[int, int]], weighted: bool = True
) -> tuple[Tensor, Tensor]:
    """Centres (K, d) and masses (K,) of one text."""
    centers, masses = [], []
    for begin, end in ranges:
        mass = sum((weights[t] for t in range(begin, end)), torch.zeros((), dtype=weights.dtype))
        total = torch.zeros(hidden.shape[1], dtype=hidden.dtype)
        for t in range(begin, end):
            total = total + (weights[t] * hidden[t] if weighted else hidden[t])
        centers.append(total / (max(mass.item(), 1e-5) if weighted else max(1, end - begin)))
        masses.append(mass)
    if not centers:
        return hidden.new_zeros(0, hidden.shape[1]), weights.new_zeros(0)
    return torch.stack(centers), torch.stack(masses)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt())


def span_weights(mass: Tensor, p: float) -> Tensor:
    return mass**p / (mass**p).sum()


def cosine_loss(
    student: Tensor, teacher: Tensor, mass: Tensor, projector: Callable[[Tensor], Tensor], p: float
) -> Tensor:
    """One text."""
    pi = span_weights(mass, p)
    total = student.sum() * 0
    for i in range(len(mass)):
        total = total + pi[i] * (1 - cosine(projector(student[i]), teacher[i]))
    return total


def geometry_loss(student: Tensor, teacher: Tensor, mass: Tensor, p: float) -> Tensor:
    """One text."""
    pi = span_weights(mass, p)
    pairs = [(i, j) for i in range(len(mass)) for j in range(len(mass)) if i != j]
    norm = sum(float(pi[i] * pi[j]) for i, j in pairs)
    total = student.sum() * 0
    for i, j in pairs:
        gap = cosine(student[i], student[j]) - cosine(teacher[i], teacher[j])
        total = total + pi[i] * pi[j] / norm * gap**2
    return total


def trajectory_loss(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    masses: Sequence[Tensor],
    projectors: Sequence[Callable[[Tensor], Tensor]],
    p: float,
) -> Tensor:
    """One text."""
    steps = []
    for layer in range(1, len(students)):
        pi = span_weights(masses[layer], p)
        total = students[0].sum() * 0
        for i in range(len(pi)):
            mine = projectors[layer](students[layer][i]) - projectors[layer - 1](students[layer - 1][i])
            total = total + pi[i] * (1 - cosine(mine, teachers[layer][i] - teachers[layer - 1][i]))
        steps.append(total)
    return torch.stack(steps).mean()


def logits(rows: Tensor, weight: Tensor, bias: Tensor | None = None, softcap: float | None = None) -> Tensor:
    z = rows @ weight.T
    if bias is not None:
        z = z + bias
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def kl(teacher_logits: Tensor, student_logits: Tensor, tau: float) -> Tensor:
    """(K,) KL(teacher || student) at temperature tau, whole logits at once."""
    p = torch.softmax(teacher_logits / tau, -1)
    return (p * (torch.log_softmax(teacher_logits / tau, -1) - torch.log_softmax(student_logits / tau, -1))).sum(-1)


def cross_entropy(final: Tensor, labels: Tensor, starts: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Mean over the supervised tokens of a batch that some token of their text precedes."""
    values = []
    for begin, end in pairwise(starts.tolist()):
        for t in range(begin + 1, end):
            if labels[t] != -100:
                z = logits(final[t - 1][None], weight, bias)[0]
                values.append(-torch.log_softmax(z, -1)[labels[t]])
    return torch.stack(values).mean() if values else final.sum() * 0
