"""The run config: the one source of the CLI's flags, the YAML recipes and the form in the Prefect UI.

Every field says what it is for. A field marked ``runtime`` changes how a stage runs but never what it writes, so it
stays out of the stage's fingerprint. Values that contradict each other are refused when the config is built.
"""

from sra_core.config.cache import CacheConfig
from sra_core.config.comparing import BenchConfig, TrackingConfig, Variant
from sra_core.config.data import PAPER_PROMPT, AlignmentConfig, AuditThresholds, CorpusConfig
from sra_core.config.evaluation import DatasetConfig, EvaluateConfig
from sra_core.config.mappings import merged, nested
from sra_core.config.models import ModelRef, StudentConfig, TeacherConfig
from sra_core.config.objective import ObjectiveConfig, hashed_objective
from sra_core.config.part import hashed
from sra_core.config.run import MAIN_FIELDS, RunConfig
from sra_core.config.training import AdaptConfig, DistillConfig, LoraConfig, TrainingConfig, hashed_steps

__all__ = [
    "MAIN_FIELDS",
    "PAPER_PROMPT",
    "AdaptConfig",
    "AlignmentConfig",
    "AuditThresholds",
    "BenchConfig",
    "CacheConfig",
    "CorpusConfig",
    "DatasetConfig",
    "DistillConfig",
    "EvaluateConfig",
    "LoraConfig",
    "ModelRef",
    "ObjectiveConfig",
    "RunConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainingConfig",
    "Variant",
    "hashed",
    "hashed_objective",
    "hashed_steps",
    "merged",
    "nested",
]
