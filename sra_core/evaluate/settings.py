"""What determines an answer beside the model and the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from sra_core.errors import ConfigError

if TYPE_CHECKING:
    from sra_core.config import EvaluateConfig
    from sra_core.evaluate.decisions import Sampling

__all__ = ["AnswerSettings", "Backend", "pick_backend", "require_lm_eval"]

Backend = Literal["transformers", "vllm"]


def pick_backend(name: Literal["auto", "transformers", "vllm"], device: str) -> Backend:
    """What generates answers on a device: ``auto`` takes vLLM where it is installed and the device is CUDA.

    Raises:
        ConfigError: vLLM is asked for and cannot be had.
    """
    if name == "transformers":
        return "transformers"
    installed, on_gpu = find_spec("vllm") is not None, device.startswith("cuda")
    if name == "vllm" and not installed:
        raise ConfigError(
            "evaluate.backend is `vllm`, which is not installed", "run `pip install 'sra[vllm]'`, or set it to `auto`"
        )
    if name == "vllm" and not on_gpu:
        raise ConfigError(
            f"evaluate.backend is `vllm`, which needs CUDA, and evaluate.device is {device}", "set it to `auto`"
        )
    return "vllm" if installed and on_gpu else "transformers"


def require_lm_eval(tasks: Sequence[str]) -> None:
    """Refuse tasks of lm-eval where it is not installed.

    Raises:
        ConfigError: Says how to install it.
    """
    if tasks and find_spec("lm_eval") is None:
        raise ConfigError(
            "evaluate.lm_eval names tasks, and lm-eval is not installed",
            "run `pip install 'sra[lm-eval]'`, or remove evaluate.lm_eval",
        )


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
        from sra_core.evaluate.decisions import Sampling

        return Sampling(self.temperature, self.top_p)

    @property
    def used_seeds(self) -> tuple[int, ...]:
        """Greedy answers do not depend on the seed: one is enough."""
        return self.seeds[:1] if self.temperature == 0 else self.seeds
