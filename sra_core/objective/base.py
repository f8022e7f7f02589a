"""What every objective has: how much the teacher weighs, which may fall while the student learns."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from sra_core.config import ObjectiveConfig

__all__ = ["Objective"]


class Objective(nn.Module, ABC):
    """An objective; called with a batch and the student's output it gives its terms, ``loss`` among them.

    Attributes:
        progress: Share of the training's steps that are done; training sets it before each step.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        # No buffer, and so in no checkpoint: training sets it from the step number.
        self.progress = 0.0

    @property
    def teacher_share(self) -> float:
        """Weight of the teacher's terms; cross-entropy has the rest.

        ``1 - alpha`` at the start, less by ``annealing`` times as much at the end: with 1 the teacher fades out
        (teacher annealing, arXiv 1907.04829, which mixes the teacher's targets with the gold ones in the same way).
        """
        return (1 - self.config.alpha) * (1 - self.config.annealing * self.progress)

    @abstractmethod
    def weights(self) -> dict[str, float]:
        """What each term weighs in the loss now."""
