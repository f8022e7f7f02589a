"""The student, its projectors and the objective as one module, so that DeepSpeed owns every parameter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sra_core.models import lm_head, mapped_states
from sra_core.models.structure import unwrap
from sra_core.objective import Batch, Objective, StudentOutput, diagnose

__all__ = ["DistillModule"]


class DistillModule(nn.Module):
    """Runs the student on a batch and hands what it made to the objective.

    Args:
        student: A causal language model, possibly wrapped by adapters.
        objective: An objective built by `sra_core.objective.build_objective`.
        layers: Student layers whose states and attention the objective reads, counted from 1.
        shared: Entries of the shared vocabulary; 0 for objectives without a teacher.
        attention: Whether the objective weighs tokens by the student's attention.

    Attributes:
        diagnosing: Whether a forward also fills ``findings``.
        findings: What `sra_core.objective.diagnose` measured in the last forward that was asked to.
    """

    def __init__(
        self, student: Any, objective: Objective, layers: list[int], shared: int = 0, attention: bool = True
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.layers = layers
        self.shared = shared
        self.attention = attention
        self.diagnosing = False
        self.findings: dict[str, float] = {}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The objective's terms; ``loss`` is the one to minimise."""
        output = self.read(batch)
        terms: dict[str, Tensor] = self.objective(batch, output)
        if self.diagnosing:
            # The student's alone: what a term sends to its own projector says nothing of what the student is told.
            parameters = [parameter for _, parameter in self.trainable()]
            self.findings = diagnose(self.objective, batch, output, terms, parameters, self.shared)
        return terms

    def read(self, batch: Batch) -> StudentOutput:
        """What the objective is given of the student's forward pass."""
        states = mapped_states(
            self.student, batch.input_ids, batch.starts, self.layers, batch.sizes.longest, self.attention
        )
        embedding = unwrap(self.student).get_input_embeddings().weight
        return StudentOutput(states.hidden, states.weights, states.final, lm_head(self.student), embedding)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of the student that training changes."""
        # Names without the module's own prefix: `export_model` finds them in the student that it loads afresh.
        return ((name, p) for name, p in self.student.named_parameters() if p.requires_grad)


def parameter_groups(
    module: DistillModule, learning_rate: float, projector_rate: float, decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups: the student's matrices decay, its norms and biases don't; projectors have a rate of their own.

    Each group carries ``peak``, the learning rate that the schedule scales.
    """
    student = [p for _, p in module.trainable()]
    projectors = [p for p in module.objective.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in student if _decays(p)], "peak": learning_rate, "weight_decay": decay},
        {"params": [p for p in student if not _decays(p)], "peak": learning_rate, "weight_decay": 0.0},
        {"params": projectors, "peak": projector_rate, "weight_decay": decay},
    ]
    return [{**group, "lr": group["peak"]} for group in groups if group["params"]]


def _decays(parameter: torch.Tensor) -> bool:
    shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO 3 hides the real shape
    return len(shape) > 1
