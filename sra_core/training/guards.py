"""What ends a run, or is reported, before it spoils a week of training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sra_core.config import TrainingConfig
from sra_core.errors import SraError, StorageError, TrainingError, first_line, is_full

__all__ = ["SpikeWatch", "explained", "is_out_of_memory", "non_finite_error", "out_of_memory_error"]

# On a CPU torch raises a plain RuntimeError: its message is all that tells.
_MEMORY_WORDS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
_SHARE = 0.05  # of the newest loss in the running mean and variance
_SETTLED = 20  # losses before a deviation means something


@dataclass(slots=True)
class SpikeWatch:
    """Tells a loss that is far above the usual one, by running mean and variance.

    Args:
        deviations: How many standard deviations are far.
        mean: Running mean of the losses so far.
        variance: Running variance.
        seen: Losses so far.
    """

    deviations: float
    mean: float = 0.0
    variance: float = 0.0
    seen: int = 0

    def add(self, loss: float) -> bool:
        """Take in one loss; true when it is a spike, which moves mean and variance only a little."""
        deviation = math.sqrt(self.variance)
        # The floor of a thousandth: where losses hardly vary, every ripple would be many deviations.
        spike = self.seen >= _SETTLED and loss - self.mean > self.deviations * max(deviation, 1e-3 * abs(self.mean))
        bounded = min(loss, self.mean + self.deviations * deviation) if spike else loss
        # A plain mean at first, so that the first loss does not weigh on all that follow.
        share = max(_SHARE, 1 / (self.seen + 1))
        difference = bounded - self.mean
        self.mean += share * difference
        self.variance = (1 - share) * (self.variance + share * difference * difference)
        self.seen += 1
        return spike


def non_finite_error(what: str, step: int, ids: list[str], section: str) -> TrainingError:
    """The error of a step whose loss or gradient is not finite.

    Args:
        what: ``loss`` or ``gradient``.
        step: The step, counted from 1.
        ids: Examples at fault.
        section: Section of the run config that trains.
    """
    return TrainingError(
        f"the {what} is not finite at step {step}; examples: {', '.join(ids)}",
        f"lower {section}.learning_rate or {section}.clip, use bfloat16 or float32, look at these examples, or set "
        f"{section}.non_finite to skip; running again resumes from the last checkpoint, which is good",
    )


def held_out_error(value: float, step: int, section: str) -> TrainingError:
    """The error of held-out bits per byte that are no number: so are the model's, and no weights would be the best."""
    remedy = "use bfloat16 or float32, or look for weights that are no numbers in the model's files"
    if step:
        remedy = (
            f"lower {section}.learning_rate or {section}.clip, or use bfloat16 or float32; running again resumes from "
            "the last checkpoint"
        )
    return TrainingError(f"the held-out bits per byte are {value} at step {step}", remedy)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is about memory, of the GPU or of the machine."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _MEMORY_WORDS)


def out_of_memory_error(error: BaseException, training: TrainingConfig, micro: int, section: str) -> TrainingError:
    """The error of a forward, backward or step that did not fit in memory: says what to change, cheapest first."""
    ways = []
    if micro > 1 and training.micro_batch != "auto":
        ways.append(f"set {section}.micro_batch to auto or below {micro} (the examples of a step stay the same)")
    if not training.gradient_checkpointing:
        ways.append(f"set {section}.gradient_checkpointing")
    if training.precision == "float32":
        ways.append(f"set {section}.precision to bfloat16")
    if training.processes > 1 and training.zero_stage < 3:
        ways.append(f"raise {section}.zero_stage")
    if not training.offload:
        ways.append(f"set {section}.offload under ZeRO 1 to 3")
    ways.append("lower alignment.max_length")
    return TrainingError(f"out of memory with {micro} examples in one forward: {first_line(error)}", "; or ".join(ways))


def explained(error: Exception, training: TrainingConfig, micro: int, section: str) -> Exception:
    """The error that the user should see for what training raised: one with a remedy, where there is one."""
    if isinstance(error, SraError):
        return error
    # Before the disk: lack of memory may be an OSError too.
    if is_out_of_memory(error):
        return out_of_memory_error(error, training, micro, section)
    if is_full(error):
        return StorageError(
            f"no space left while training: {error}", "free space and run again: training resumes from its checkpoint"
        )
    if "loss scale already at minimum" in str(error):  # DeepSpeed raises a plain Exception
        return TrainingError(
            "the gradients do not fit float16 even at the smallest loss scale",
            f"use bfloat16 or float32, or lower {section}.learning_rate; running again resumes",
        )
    return error
