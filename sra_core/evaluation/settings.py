"""What determines an answer beside the model and the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sra_core.config import EvaluateConfig
    from sra_core.evaluation.decisions import Sampling

__all__ = ["AnswerSettings"]


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """Sampling, seeds and limits.

    Attributes:
        temperature: 0 decodes greedily.
        top_p: Nucleus of the sampling; 1 keeps every token.
        seeds: Seeds to answer with.
        max_new_tokens: Longest answer in tokens.
        max_prompt: Longest prompt in tokens; longer ones lose their left side.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seeds: tuple[int, ...] = (10,)
    max_new_tokens: int = 128
    max_prompt: int = 256

    @classmethod
    def of(cls, config: EvaluateConfig) -> AnswerSettings:
        """The settings that a run config asks for."""
        return cls(config.temperature, config.top_p, tuple(config.seeds), config.max_new_tokens, config.max_prompt)

    @property
    def sampling(self) -> Sampling:
        """Temperature and nucleus, for `generate`."""
        from sra_core.evaluation.decisions import Sampling

        return Sampling(self.temperature, self.top_p)

    @property
    def used_seeds(self) -> tuple[int, ...]:
        """Greedy answers do not depend on the seed: one is enough."""
        return self.seeds[:1] if self.temperature == 0 else self.seeds
