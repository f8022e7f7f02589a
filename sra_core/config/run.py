"""The run config: all parts together."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sra_core.config.cache import CacheConfig
from sra_core.config.comparing import BenchConfig, TrackingConfig
from sra_core.config.data import AlignmentConfig, CorpusConfig
from sra_core.config.evaluation import EvaluateConfig
from sra_core.config.models import ModelRef, StudentConfig, TeacherConfig
from sra_core.config.objective import ObjectiveConfig
from sra_core.config.part import Part, Seed, runtime
from sra_core.config.secrets import refuse_secrets
from sra_core.config.training import AdaptConfig, DistillConfig

__all__ = ["MAIN_FIELDS", "RunConfig"]

MAIN_FIELDS = (
    "name",
    "teacher.source",
    "student.source",
    "corpus.source",
    "objective.name",
    "seed",
    "distill.epochs",
    "distill.max_steps",
    "distill.batch_size",
    "distill.learning_rate",
    "distill.precision",
    "distill.processes",
)
"""What people change, and compare runs by, most often: shown by themselves in the form and in MLflow."""


class RunConfig(Part):
    """All that determines a run: data, models, alignment, cache, objective, training, evaluation."""

    name: str = Field(
        "run",
        description="Own name of the run; Prefect and MLflow show it after recipe, objective and seed.",
        json_schema_extra={"fingerprint": False},
    )
    recipe: str | None = Field(
        None,
        description="Recipe that the run started from, which names it; filled in when the recipe is read.",
        json_schema_extra={"fingerprint": False},
    )
    store: str = runtime("sra-store", "Folder that keeps the results of every stage.")
    dask: str | None = runtime(
        None,
        "Address of a Dask scheduler, such as tcp://node1:8786, whose workers make the shards of prepare and cache.",
    )
    # Takes no part in fingerprints: results differ by rounding alone, unless dropout draws other masks.
    layout: Literal["auto", "flat", "padded"] = runtime(
        "auto",
        "How models read a batch: `flat` lays its texts end to end, `padded` pads them to one length; `auto` runs a model flat where a probe shows that this changes nothing but rounding.",
        title="Layout of batches",
    )
    seed: Seed = Field(0, description="Seed of initialisation, data order, dropout and sampling.")
    teacher: TeacherConfig = Field(TeacherConfig(), description="The model that is imitated.")
    student: StudentConfig = Field(StudentConfig(), description="The model that learns.")
    corpus: CorpusConfig = Field(CorpusConfig(), description="Where examples come from.")
    alignment: AlignmentConfig = Field(
        AlignmentConfig(), description="Tokenization, span map and thresholds of the audit."
    )
    adapt: AdaptConfig = Field(
        AdaptConfig(), description="Fine-tuning of the teacher before the capture; off by default."
    )
    cache: CacheConfig = Field(CacheConfig(), description="Capture of the teacher's span centres.")
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="What the student minimises.")
    distill: DistillConfig = Field(DistillConfig(), description="Training of the student.")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="Scores on held-out examples.")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow.", json_schema_extra={"fingerprint": False})
    bench: BenchConfig = Field(
        BenchConfig(),
        description="What `sra bench` compares around this run; other commands have no use for it.",
        json_schema_extra={"fingerprint": False},
    )

    @model_validator(mode="before")
    @classmethod
    def _holds_no_secret(cls, values: Any) -> Any:
        # A ConfigError passes through pydantic as it is; a ValueError's message would show the value.
        refuse_secrets(values)
        return values

    @property
    def student_origin(self) -> ModelRef:
        """The model that the student starts from: the teacher, or one of its own."""
        return self.teacher if self.student.source == "teacher" else self.student

    @property
    def student_tokenizer_origin(self) -> ModelRef | None:
        """Where the student's tokenizer comes from; None when it is trained on the corpus."""
        if self.student.tokenizer == "train":
            return None
        if self.student.tokenizer != "source":
            return ModelRef(source=self.student.tokenizer, trust_remote_code=self.student.trust_remote_code)
        return self.student_origin

    def trusts_tokenizer(self, side: Literal["teacher", "student"]) -> bool:
        """Whether code that a side's tokenizer ships may run, also where a result keeps a copy of it."""
        origin = self.teacher if side == "teacher" else self.student_tokenizer_origin
        return origin is not None and origin.trust_remote_code

    @property
    def title(self) -> str:
        """What Prefect and MLflow call the run: recipe, objective, seed and its own name, where it has one."""
        return self._titled(self.objective.name, f"seed {self.seed}")

    @property
    def grid_title(self) -> str:
        """What they call a benchmark around the run: recipe, variants, seeds and its own name."""
        seeds = ", ".join(map(str, self.bench.seeds))
        return self._titled(f"{len(self.bench.variants)} variants", f"seeds {seeds}")

    def _titled(self, *parts: str) -> str:
        # Shipped recipes name their runs after themselves.
        own = "" if self.recipe and self.name in self.recipe else self.name
        return " · ".join(part for part in (self.recipe or "", *parts, own) if part)
