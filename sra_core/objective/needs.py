"""What an objective reads of teacher and student; nothing here loads torch, as a result's identity follows from it."""

from __future__ import annotations

from dataclasses import dataclass

from sra_core.config import ObjectiveConfig

__all__ = ["TeacherNeeds", "student_layers", "teacher_needs"]

# The names in `divergences.DIVERGENCES` once more, as that file loads torch; a test holds them together.
ON_ONE_VOCABULARY = ("fkl", "rkl", "js", "skl")
"""Objectives that compare distributions entry by entry: both sides must have the same tokenizer."""


@dataclass(frozen=True, slots=True)
class TeacherNeeds:
    """What the cache must hold for an objective.

    Args:
        span_layers: Teacher layers whose span centres and masses are read, as configured (-1 is the last).
        token_states: Whether last-layer token states of the teacher are read.
        weighted_pooling: Whether centres weigh tokens by attention; else they are plain means.
        shared_head: Whether the teacher's LM head rows of the shared vocabulary are read.
        full_head: Whether the teacher's whole LM head is read.
        embedding: Whether the teacher's input embeddings are read.
        same_tokenizer: Whether teacher and student must share their tokenizer.
    """

    span_layers: tuple[int, ...] = ()
    token_states: bool = False
    weighted_pooling: bool = True
    shared_head: bool = False
    full_head: bool = False
    embedding: bool = False
    same_tokenizer: bool = False


def teacher_needs(config: ObjectiveConfig) -> TeacherNeeds:
    """What the cache must hold for this objective."""
    if config.name == "sra":
        # Each once: several layers of the student may learn from one of the teacher's.
        layers = tuple(dict.fromkeys(teacher for teacher, _ in config.layers))
        return TeacherNeeds(layers, weighted_pooling=config.weighted_pooling, shared_head=config.logit > 0)
    if config.name == "sft":
        return TeacherNeeds()
    # These compare shared tokens alone: the teacher's rows of them are all of its head that the cache need hold.
    narrow = config.name in ("mined", "strict_kl", *ON_ONE_VOCABULARY)
    return TeacherNeeds(
        token_states=True,
        shared_head=narrow,
        full_head=not narrow,
        embedding=config.name == "dskd",
        same_tokenizer=config.name in ON_ONE_VOCABULARY,
    )


def student_layers(config: ObjectiveConfig) -> tuple[int, ...]:
    """Student layers whose states and attention rows this objective reads, as configured (-1 is the last)."""
    return tuple(dict.fromkeys(student for _, student in config.layers)) if config.name == "sra" else ()
