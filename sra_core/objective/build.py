"""From the config to an objective, and what it needs of teacher and student."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from sra_core.config import ObjectiveConfig
from sra_core.errors import ConfigError
from sra_core.objective.alm import AlmObjective
from sra_core.objective.batch import ObjectiveContext, TeacherNeeds
from sra_core.objective.divergences import DIVERGENCES, DivergenceObjective
from sra_core.objective.dskd import DskdObjective
from sra_core.objective.mined import MinedObjective
from sra_core.objective.multilevel_ot import MultiLevelOtObjective
from sra_core.objective.sra import SftObjective, SraObjective
from sra_core.objective.tokens import TokenObjective
from sra_core.objective.uld import UldObjective

__all__ = ["build_objective", "require", "student_layers", "teacher_needs"]

RIVALS: Mapping[str, type[TokenObjective]] = {
    "uld": UldObjective,
    "mined": MinedObjective,
    "dskd": DskdObjective,
    "multilevel_ot": MultiLevelOtObjective,
    "alm": AlmObjective,
    **dict.fromkeys(DIVERGENCES, DivergenceObjective),
}


def build_objective(config: ObjectiveConfig, context: ObjectiveContext) -> nn.Module:
    """The objective that the config names; its parameters are what is trained besides the student.

    Called with a batch and the student's output it gives a dict: ``loss``, every term by name, and ``spans``.

    Raises:
        ConfigError: The context lacks what the objective reads, or the tokenizers differ where they must not.
    """
    if config.name == "sra":
        return SraObjective(config, context)
    return SftObjective() if config.name == "sft" else RIVALS[config.name](config, context)


def teacher_needs(config: ObjectiveConfig) -> TeacherNeeds:
    """What the cache must hold for this objective."""
    if config.name == "sra":
        layers = tuple(dict.fromkeys(teacher for teacher, _ in config.layers))
        return TeacherNeeds(layers, weighted_pooling=config.weighted_pooling, shared_head=config.logit > 0)
    if config.name == "sft":
        return TeacherNeeds()
    narrow = config.name in ("mined", *DIVERGENCES)
    return TeacherNeeds(
        token_states=True,
        shared_head=narrow,
        full_head=not narrow,
        embedding=config.name == "dskd",
        same_tokenizer=config.name in DIVERGENCES,
    )


def require(config: ObjectiveConfig, stored: TeacherNeeds, same_tokenizer: bool) -> None:
    """Refuse an objective that a cache cannot serve.

    Args:
        config: The objective.
        stored: What the cache holds, in the words of the needs.
        same_tokenizer: Whether teacher and student share their tokenizer.

    Raises:
        ConfigError: Names what is missing and what to run.
    """
    needs = teacher_needs(config)
    if needs.same_tokenizer and not same_tokenizer:
        raise ConfigError(
            f"objective {config.name} needs the same tokenizer on both sides",
            "choose sra, uld, mined, dskd, multilevel_ot or alm, or a student with the teacher's tokenizer",
        )
    lacking = [
        name
        for name in ("token_states", "shared_head", "full_head", "embedding")
        if getattr(needs, name) and not getattr(stored, name)
    ]
    lacking += [f"spans of layer {layer}" for layer in needs.span_layers if layer not in stored.span_layers]
    if needs.span_layers and needs.weighted_pooling != stored.weighted_pooling:
        lacking.append("weighted pooling" if needs.weighted_pooling else "plain pooling")
    if lacking:
        raise ConfigError(
            f"objective {config.name} reads what the cache does not hold: {', '.join(lacking).replace('_', ' ')}",
            "run `sra cache` with this objective, which stores it",
        )


def student_layers(config: ObjectiveConfig) -> tuple[int, ...]:
    """Student layers whose states and attention rows this objective reads, as configured (-1 is the last)."""
    return tuple(dict.fromkeys(student for _, student in config.layers)) if config.name == "sra" else ()
