"""The SRA objective and plain supervised fine-tuning (paper section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sra_core.config import ObjectiveConfig
from sra_core.errors import ConfigError
from sra_core.objective.base import Objective
from sra_core.objective.batch import Batch, ObjectiveContext, StudentOutput
from sra_core.objective.fit import ToFit
from sra_core.objective.head import Head
from sra_core.objective.logit import next_token_loss, span_logit_kl
from sra_core.objective.pooling import pool_spans
from sra_core.objective.projector import Projector
from sra_core.objective.terms import span_cosine_loss, span_geometry_loss, span_trajectory_loss

__all__ = ["SftObjective", "SraObjective", "pair_weights"]


class SftObjective(Objective):
    """Cross-entropy alone: terms ``loss`` and ``ce``."""

    def weights(self) -> dict[str, float]:
        """What each term weighs in the loss now."""
        return {"ce": 1.0}

    def forward(self, batch: Batch, student: StudentOutput) -> dict[str, Tensor]:
        """The terms of one batch."""
        ce = next_token_loss(student.final, batch, student.head)
        return {"loss": ce, "ce": ce, "spans": _count(batch)}


class SraObjective(Objective):
    """``(1 - share) CE + share (sum_l lambda_l L_cos(l) + gamma L_geo + L_kd + trajectory L_der)``.

    The share of the teacher is ``1 - alpha``, less while it is annealed.

    Terms, each raw, the mean over the texts of the batch: ``ce``; ``cosine_<teacher layer>_<student layer>`` a layer
    pair, and ``cosine``, their sum weighted by lambda; ``geometry`` and ``logit`` on the last pair; ``trajectory``;
    ``spans``, the number of spans.  A term whose weight is 0 is neither computed nor listed.
    """

    def __init__(self, config: ObjectiveConfig, context: ObjectiveContext) -> None:
        super().__init__(config)
        self.layers = list(context.layers)
        # m ^ 0 is 1: without WSL all spans of a text weigh alike.
        self.power = config.mass_power if config.weighted_loss else 0.0
        self.lambdas = pair_weights(config)
        # Geometry and logit compare centres that are not projected: without the other two terms there is no W.
        mapped = any(self.lambdas) or config.trajectory > 0
        self.projectors = nn.ModuleList(
            Projector(context.student_width, context.teacher_width, context.seed + place, config.projector_start)
            for place in range(len(self.layers) if mapped else 0)
        )
        self.teacher_head = _constant(context.teacher_head) if config.logit else None
        self.shared = context.shared_student_ids

    def forward(self, batch: Batch, student: StudentOutput) -> dict[str, Tensor]:
        """The terms of one batch."""
        terms = {"ce": next_token_loss(student.final, batch, student.head)}
        centers = self._centers(batch, student)
        terms |= self._cosine(batch, centers)
        terms |= self._last_pair(batch, centers[-1], student.head)
        terms |= self._trajectory(batch, centers)
        return {"loss": self.total(terms), **terms, "spans": _count(batch)}

    def to_fit(self, batch: Batch, student: StudentOutput) -> list[ToFit]:
        """What the projectors can be fitted to: the centres of each layer pair."""
        if not len(self.projectors):
            return []
        return [
            ToFit(f"projectors.{place}.weight", f"{pair[0]}_{pair[1]}", own, batch.teacher[pair[0]].centers, unit=True)
            for place, (pair, own) in enumerate(zip(self.layers, self._centers(batch, student), strict=True))
        ]

    def weights(self) -> dict[str, float]:
        """What each term weighs in the loss now."""
        config, share = self.config, self.teacher_share
        return {
            "ce": 1 - share,
            "cosine": share,
            "geometry": share * config.geometry,
            "logit": share * config.logit,
            "trajectory": share * config.trajectory,
        }

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The loss from the terms."""
        return torch.stack([weight * terms[name] for name, weight in self.weights().items() if name in terms]).sum()

    def _centers(self, batch: Batch, student: StudentOutput) -> list[Tensor]:
        """(K, d_S) the student's centres of each layer pair."""
        return [
            pool_spans(
                student.hidden[layer],
                student.weights[layer],
                batch.span_range,
                self.config.weighted_pooling,
                batch.sizes.in_spans,
            )[0]
            for _, layer in self.layers
        ]

    def _cosine(self, batch: Batch, centers: Sequence[Tensor]) -> dict[str, Tensor]:
        if not any(self.lambdas):
            return {}
        values = {}
        for (teacher, student), projector, own in zip(self.layers, self.projectors, centers, strict=True):
            spans = batch.teacher[teacher]
            values[f"cosine_{teacher}_{student}"] = span_cosine_loss(
                own, spans.centers, spans.mass, projector, self.power, batch.span_text, batch.texts
            )
        total = torch.stack([factor * value for factor, value in zip(self.lambdas, values.values(), strict=True)]).sum()
        return {"cosine": total, **values}

    def _last_pair(self, batch: Batch, own: Tensor, head: Head) -> dict[str, Tensor]:
        # The pair that `objective.layers` lists last, whatever its depth. Both heads take it for last layers: on
        # `quality-coarse` the teacher's layer 20 of 30 there cost 0.028 bits a byte.
        config, spans, terms = self.config, batch.teacher[self.layers[-1][0]], {}
        if config.geometry:
            terms["geometry"] = span_geometry_loss(
                own, spans.centers, spans.mass, self.power, batch.span_text, batch.texts, batch.sizes.most_spans
            )
        if self.teacher_head is not None:
            terms["logit"] = span_logit_kl(
                own,
                spans.centers,
                head.rows(self.shared.to(own.device)),
                self._head_on(self.teacher_head, own.device),
                config.temperature,
                config.logit_reduction,
                config.logit_chunk,
                batch.span_text,
                batch.texts,
            )
        return terms

    def _trajectory(self, batch: Batch, centers: Sequence[Tensor]) -> dict[str, Tensor]:
        if not self.config.trajectory:
            return {}
        spans = [batch.teacher[teacher] for teacher, _ in self.layers]
        value = span_trajectory_loss(
            centers,
            [each.centers for each in spans],
            [each.mass for each in spans],
            list(self.projectors),
            self.power,
            batch.span_text,
            batch.texts,
        )
        return {"trajectory": value}

    def _head_on(self, head: Head, device: torch.device) -> Head:
        """The teacher's rows where the centres are: moved once, and no part of the student's checkpoints."""
        if head.weight.device != device:
            self.teacher_head = head = head.to(device)
        return head


def pair_weights(config: ObjectiveConfig) -> list[float]:
    """lambda of each layer pair."""
    return list(config.cosine) if isinstance(config.cosine, list) else [config.cosine] * len(config.layers)


def _constant(head: Head | None) -> Head:
    if head is None:
        raise ConfigError(
            "the logit term needs the teacher's LM head rows of the shared vocabulary, and the cache has none",
            "run the cache stage again, or set objective.logit to 0",
        )
    return head.constant()


def _count(batch: Batch) -> Tensor:
    return torch.full((), float(len(batch.span_text)), device=batch.input_ids.device)
