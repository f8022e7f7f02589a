"""From the config to an objective, and what it needs of teacher and student."""

from __future__ import annotations

from torch import nn

from sra_core.config import ObjectiveConfig
from sra_core.objective.batch import ObjectiveContext, TeacherNeeds
from sra_core.objective.sra import SftObjective, SraObjective

__all__ = ["build_objective", "student_layers", "teacher_needs"]


def build_objective(config: ObjectiveConfig, context: ObjectiveContext) -> nn.Module:
    """The objective that the config names; its parameters are what is trained besides the student.

    Called with a batch and the student's output it gives a dict: ``loss``, every term by name, and ``spans``.
    """
    if config.name == "sra":
        return SraObjective(config, context)
    return SftObjective()


def teacher_needs(config: ObjectiveConfig) -> TeacherNeeds:
    """What the cache must hold for this objective."""
    if config.name == "sra":
        layers = tuple(dict.fromkeys(teacher for teacher, _ in config.layers))
        return TeacherNeeds(span_layers=layers, weighted_pooling=config.weighted_pooling)
    return TeacherNeeds()


def student_layers(config: ObjectiveConfig) -> tuple[int, ...]:
    """Student layers whose states and attention rows this objective reads, as configured (-1 is the last)."""
    return tuple(dict.fromkeys(student for _, student in config.layers)) if config.name == "sra" else ()
