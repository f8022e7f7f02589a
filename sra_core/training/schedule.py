"""Steps and learning rates as pure functions of the config."""

from __future__ import annotations

import math

from sra_core.config import TrainingConfig

__all__ = ["learning_rate", "total_steps"]


def total_steps(config: TrainingConfig, examples: int, step_size: int) -> int:
    """Optimizer steps of the whole run: all epochs, or ``max_steps`` if that is fewer."""
    steps = max(1, math.ceil(examples * config.epochs / step_size))
    return min(steps, config.max_steps or steps)


def learning_rate(config: TrainingConfig, peak: float, step: int, total: int) -> float:
    """Linear warm-up to ``peak``, then a cosine down to ``min_learning_rate``.

    Args:
        config: Warm-up share and floor.
        peak: Highest rate; a floor above it is lowered to it.
        step: Step about to be taken, from 0.
        total: Steps of the whole run.
    """
    warmup = round(config.warmup * total)
    if step < warmup:
        # The first step moves already, and the peak comes right after the warm-up, not in its last step.
        return peak * (step + 1) / (warmup + 1)
    floor = min(config.min_learning_rate, peak)
    share = (step - warmup) / max(1, total - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
