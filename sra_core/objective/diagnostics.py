"""Numbers that tell why a run goes wrong.  Legend: K spans of a text, V entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sra_core.objective.base import Objective
from sra_core.objective.batch import Batch, StudentOutput
from sra_core.objective.pooling import pool_spans
from sra_core.objective.sra import SraObjective
from sra_core.objective.terms import span_weights

__all__ = ["center_cosines", "diagnose", "gradient_norms", "span_statistics", "weighted_terms"]

Number = TypeVar("Number", Tensor, float)


def diagnose(
    objective: Objective,
    batch: Batch,
    student: StudentOutput,
    terms: Mapping[str, Tensor],
    parameters: Iterable[Tensor],
    shared: int,
) -> dict[str, float]:
    """All that this file measures, by stable names; draws no random number and leaves gradients and graph alone.

    Args:
        objective: What gave the terms.
        batch: What it was called with.
        student: Likewise.
        terms: Its result, with the graph.
        parameters: The student's parameters.
        shared: Entries of the shared vocabulary; 0 for objectives without a teacher.

    Returns:
        ``gradient_norm/<term>``, ``center_cosine_<teacher layer>_<student layer>`` and what `span_statistics` gives.
    """
    norms = gradient_norms(objective, terms, parameters)
    found = {f"gradient_norm/{name}": float(norm) for name, norm in norms.items()}
    found |= {name: float(value) for name, value in center_cosines(objective, batch, student).items()}
    return found | span_statistics(batch, shared, len(student.head.weight), _mass_power(objective))


def _mass_power(objective: Objective) -> float:
    """Power of the teacher's mass in the loss weights; 0 where all spans weigh alike, as in baselines."""
    return objective.power if isinstance(objective, SraObjective) else 0.0


def weighted_terms(objective: Objective, terms: Mapping[str, Number]) -> dict[str, Number]:
    """What each term adds to the loss; the values sum to ``terms["loss"]``.

    Args:
        objective: What gave the terms.
        terms: Its result; terms that only itemise another one (``cosine_*``) and ``spans`` are left out.
    """
    weights = objective.weights()
    return {name: weights[name] * value for name, value in terms.items() if name in weights}


def gradient_norms(
    objective: Objective, terms: Mapping[str, Tensor], parameters: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Norm of the gradient that each weighted term sends to the student.

    Takes one backward a term through the kept graph, so call it every so many steps, before the loss's own backward.
    Gradients already stored in the parameters are left alone.

    Args:
        objective: What gave the terms.
        terms: Its result, with the graph.
        parameters: The student's parameters (or any tensors on the way, such as its final states).
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    norms = {}
    for name, value in weighted_terms(objective, terms).items():
        # The graph is still needed for the other terms and for the loss; a term of an inner layer reaches no later one.
        grads = torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True) if value.requires_grad else ()
        squares = [grad.detach().float().square().sum() for grad in grads if grad is not None]
        norms[name] = torch.stack(squares).sum().sqrt() if squares else value.new_zeros(())
    return norms


@torch.no_grad()
def center_cosines(objective: Objective, batch: Batch, student: StudentOutput) -> dict[str, Tensor]:
    """Mean cosine of the student's (projected) and the teacher's centres a layer pair, every span alike.

    Taken before and after training it tells whether the student came closer; empty for objectives without projectors.
    """
    if not isinstance(objective, SraObjective) or not len(objective.projectors):
        return {}
    found = {}
    for (teacher, own), projector in zip(objective.layers, objective.projectors, strict=True):
        centers, _ = pool_spans(
            student.hidden[own], student.weights[own], batch.span_range, objective.config.weighted_pooling
        )
        cosine = cosine_similarity(projector(centers), batch.teacher[teacher].centers.to(centers.dtype), dim=-1)
        found[f"center_cosine_{teacher}_{own}"] = cosine.sum() / max(1, len(cosine))
    return found


@torch.no_grad()
def span_statistics(batch: Batch, shared: int, vocabulary: int, power: float = 1.0) -> dict[str, float]:
    """Shares of what a batch offers that the objective uses.

    Args:
        batch: The batch.
        shared: Entries of the shared vocabulary.
        vocabulary: Entries of the student's.
        power: Of the teacher's mass in the loss weights; 0 weighs all spans alike.

    Returns:
        ``spans_per_text``; ``covered_tokens``, the share of supervised tokens inside spans; ``effective_spans``, the
        share of spans that the loss weights amount to (``1 / sum pi^2`` over K, mean over texts, by the last mapped
        teacher layer); ``shared_vocabulary``, the share of the student's vocabulary that the logit term compares.
    """
    counts = torch.bincount(batch.span_text, minlength=batch.texts)
    effective = 0.0
    # Objectives that compare tokens have no span centres, and a batch may hold no span.
    if batch.teacher and int(counts.max()):
        mass = batch.teacher[max(batch.teacher)].mass
        pi = span_weights(mass, power, batch.span_text, batch.texts)
        squares = torch.zeros(batch.texts, dtype=pi.dtype, device=pi.device).index_add(0, batch.span_text, pi.square())
        filled = counts > 0
        effective = float((1 / (squares[filled] * counts[filled])).mean())
    return {
        "spans_per_text": len(batch.span_text) / max(1, batch.texts),
        "covered_tokens": batch.sizes.in_spans / max(1, len(batch.targets)),
        "effective_spans": effective,
        "shared_vocabulary": shared / vocabulary,
    }
