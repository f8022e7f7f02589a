"""What there is to learn: is the teacher better than the student as it starts, on the same held-out texts?"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sra_core.compare.intervals import Interval, paired
from sra_core.shards import Manifest

__all__ = ["Lead", "few_texts", "kept_nats", "teacher_lead"]

_NOTE = "validation_nats"
_FEWEST = 6
"""Of fewer texts not even all could show the teacher ahead: five that agree do so by chance with p = 0.06."""
_KEEP = f"keep at least {_FEWEST} (corpus.validation_share, corpus.max_validation)"


@dataclass(frozen=True, slots=True)
class Lead:
    """Teacher and student before training, in bits per byte.

    Attributes:
        teacher, student: All bits over all bytes of the texts.
        ahead: How much fewer bits a byte the teacher takes, with the 95 % interval over texts, text by text.
    """

    teacher: float
    student: float
    ahead: Interval

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out that the teacher knows no more than the student; never on few texts."""
        return self.ahead.low > 0 and self.ahead.examples >= _FEWEST

    def told(self, adapted: bool) -> str:
        """One line for a person; a warning with its remedy where the teacher is not clearly better."""
        figures = (
            f"on {self.ahead.examples} validation texts the teacher takes {self.teacher:.3f} bits per byte, "
            f"the student as it starts {self.student:.3f}"
        )
        if self.clear:
            return f"there is something to learn: {figures}"
        if self.ahead.examples < _FEWEST:
            return f"{figures}: too few texts to tell whether there is something to learn -> {_KEEP}"
        remedy = (
            "adapt it longer (adapt.max_steps, adapt.epochs), or take a stronger teacher"
            if adapted
            else "fine-tune it on the corpus first (adapt.enabled), or take a stronger teacher"
        )
        return (
            f"WARNING: the teacher is not clearly better: {figures} (ahead by {self.ahead.estimate:.3f}, "
            f"95 % interval {self.ahead.low:.3f} to {self.ahead.high:.3f}); learning from it may do worse than plain "
            f"fine-tuning -> {remedy}"
        )

    def metrics(self) -> dict[str, float]:
        """The figures by name."""
        return {
            "teacher_bits_per_byte": self.teacher,
            "initial_bits_per_byte": self.student,
            "teacher_ahead": self.ahead.estimate,
            "teacher_ahead_low": self.ahead.low,
            "teacher_ahead_high": self.ahead.high,
        }


def few_texts(count: int) -> str | None:
    """What speaks against so few validation texts, with the remedy; None where they are enough, or none are kept."""
    if not 0 < count < _FEWEST:
        return None
    texts = "1 validation text is" if count == 1 else f"{count} validation texts are"
    return (
        f"{texts} too few to choose the best step by, and to tell whether the teacher knows more than the student "
        f"-> {_KEEP}"
    )


def kept_nats(nats: NDArray[np.float64]) -> dict[str, str]:
    """The teacher's code lengths, text by text, as a note of the cache's manifest."""
    return {_NOTE: json.dumps([round(float(value), 4) for value in nats])}


def teacher_lead(cache: Manifest, student: NDArray[np.float64], sizes: NDArray[np.int64]) -> Lead | None:
    """Compare code lengths of the same texts.

    Args:
        cache: Result of the cache stage, which keeps those of the teacher.
        student: (E,) nats of each text under the student before training.
        sizes: (E,) bytes of each text.

    Returns:
        None where the cache keeps none of these texts.
    """
    teacher = np.array(json.loads(cache.notes.get(_NOTE, "[]")), np.float64)
    if not len(sizes) or len(teacher) != len(sizes):
        return None
    bits, others = teacher / math.log(2), student / math.log(2)
    gap = paired(others, bits, sizes.astype(np.float64)).difference
    return Lead(float(bits.sum() / sizes.sum()), float(others.sum() / sizes.sum()), gap)
