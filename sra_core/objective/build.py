"""From the config to an objective."""

from __future__ import annotations

from collections.abc import Mapping

from sra_core.config import ObjectiveConfig
from sra_core.objective.alm import AlmObjective
from sra_core.objective.base import Objective
from sra_core.objective.batch import ObjectiveContext
from sra_core.objective.divergences import DIVERGENCES, DivergenceObjective
from sra_core.objective.dskd import DskdObjective
from sra_core.objective.gold import GoldObjective
from sra_core.objective.mined import MinedObjective
from sra_core.objective.multilevel_ot import MultiLevelOtObjective
from sra_core.objective.sra import SftObjective, SraObjective
from sra_core.objective.strict_kl import StrictKlObjective
from sra_core.objective.tokens import TokenObjective
from sra_core.objective.uld import UldObjective
from sra_core.objective.xtoken import XTokenObjective

__all__ = ["build_objective"]

BASELINES: Mapping[str, type[TokenObjective]] = {
    "uld": UldObjective,
    "mined": MinedObjective,
    "dskd": DskdObjective,
    "multilevel_ot": MultiLevelOtObjective,
    "alm": AlmObjective,
    "strict_kl": StrictKlObjective,
    "gold": GoldObjective,
    "xtoken": XTokenObjective,
    **dict.fromkeys(DIVERGENCES, DivergenceObjective),
}


def build_objective(config: ObjectiveConfig, context: ObjectiveContext) -> Objective:
    """The objective that the config names; its parameters are what is trained besides the student.

    Called with a batch and the student's output it gives a dict: ``loss``, every term by name, and ``spans``.

    Raises:
        ConfigError: The context lacks what the objective reads, or the tokenizers differ where they must not.
    """
    if config.name == "sra":
        return SraObjective(config, context)
    return SftObjective(config) if config.name == "sft" else BASELINES[config.name](config, context)
