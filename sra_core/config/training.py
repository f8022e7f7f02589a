"""Training: of the student, and of the teacher on the corpus."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sra_core.config.part import AUTO, DType, Part, hashed, runtime, where_set

__all__ = ["AdaptConfig", "DistillConfig", "LoraConfig", "TrainingConfig", "hashed_steps"]


class LoraConfig(Part):
    """Low-rank adapters in place of full fine-tuning."""

    rank: int = Field(16, ge=1, description="Rank of the adapters.")
    alpha: int = Field(64, ge=1, description="Scale of the adapters.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout on the adapters' input.")
    targets: list[str] | None = Field(
        None,
        description="Module names to adapt; unset takes the attention projections that the paper adapts for the architecture.",
    )


class TrainingConfig(Part):
    """Training of one model with DeepSpeed."""

    epochs: float = Field(10.0, gt=0, description="Passes over the training examples.")
    max_steps: int | None = Field(
        None, ge=1, description="At most this many optimizer steps; the epochs may end earlier. Unset runs all epochs."
    )
    batch_size: int = Field(16, ge=1, description="Examples per process and batch.")
    group_by_length: bool = Field(
        False,
        description="Put examples of similar length into the same step. Saves padding where the model is run padded (`layout`); steps teach less: on the quickstart 0.08 bits per byte worse after as many of them.",
    )
    accumulation: int = Field(1, ge=1, description="Batches in one optimizer step.")
    micro_batch: int | Literal["auto"] | None = runtime(
        None,
        "Unset takes the whole batch. A divisor of `batch_size` takes it in parts, `auto` halves it until memory suffices; the examples of a step stay the same.",
        title="Examples in one forward",
    )
    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate of the model.")
    min_learning_rate: float = Field(5e-6, ge=0, description="Floor of the cosine schedule.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps that warm up.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay; norms and biases are exempt.")
    clip: float = Field(1.0, ge=0, description="Largest gradient norm; 0 turns clipping off.")
    precision: DType = Field(
        "auto",
        title="Precision",
        description=f"Type of weights and activations while training; master weights are float32. {AUTO}",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0,
        title="ZeRO stage",
        description="What DeepSpeed partitions over the processes: 0 nothing, 1 optimizer, 2 gradients, 3 parameters. In bfloat16 and float16, 0 is run as 1: DeepSpeed's ZeRO 0 would take a step without gradients first.",
    )
    offload: bool = Field(
        False,
        description="Keep the optimizer (under ZeRO 3 the parameters too) in the memory of the CPU; needs ZeRO 1 to 3.",
    )
    processes: int = Field(
        1,
        ge=1,
        description="Training processes, on all machines together; one per GPU. A step takes `batch_size` x `accumulation` x `processes` examples: where that stays the same, another number of processes goes on with the same training.",
    )
    lora: LoraConfig | None = Field(None, description="Train adapters instead of all weights.")
    deepspeed: dict[str, Any] = Field({}, description="DeepSpeed settings merged over the ones made from this config.")
    validate_every: int = Field(50, ge=1, description="Steps between measurements of held-out bits per byte.")
    patience: int | None = Field(
        None, ge=1, description="Stop after this many measurements without a better one; unset never stops early."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    non_finite: Literal["stop", "skip"] = Field(
        "stop",
        title="Non-finite loss or gradient",
        description="`stop` ends the run with the examples at fault; `skip` leaves the weights as they are and counts the step.",
    )
    max_skipped: int = Field(20, ge=0, description="Skipped steps after which the run stops all the same.")
    keep_best: bool = Field(
        True, description="Export the weights with the best held-out bits per byte instead of the last ones."
    )
    checkpoint_every: int = Field(50, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = runtime(2, "Checkpoints kept on disk.", ge=1)
    log_every: int = runtime(5, "Steps between logged metrics.", ge=1)
    diagnose_every: int = runtime(
        0,
        "Steps between looks at why training goes as it does: gradient norm of each term, cosine of centres, share of spans and vocabulary in use. One costs a backward pass per term; 0 turns it off.",
        ge=0,
    )
    spike: float = runtime(6.0, "Report a loss this many deviations above the usual one.", gt=0)
    device: str = runtime("auto", "`auto`, `cpu` or `cuda`.")
    compile: bool = runtime(
        False, "Compile the model's layers with torch.compile; the first steps then take minutes.", title="Compile"
    )

    @property
    def step_examples(self) -> int:
        """Examples of one optimizer step, over all processes."""
        return self.batch_size * self.accumulation * self.processes

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> TrainingConfig:
        micro = self.micro_batch
        if isinstance(micro, int) and (micro < 1 or self.batch_size % micro):
            raise ValueError(f"micro_batch: {micro} does not divide batch_size {self.batch_size}; choose one that does")
        return self

    @model_validator(mode="after")
    def _diagnosis_needs_whole_parameters(self) -> TrainingConfig:
        if self.diagnose_every and self.zero_stage == 3:
            raise ValueError(
                "diagnose_every: under ZeRO 3 no process has whole gradients; set it to 0, or zero_stage to 2"
            )
        return self

    @model_validator(mode="after")
    def _offload_needs_partitions(self) -> TrainingConfig:
        if self.offload and self.zero_stage == 0:
            raise ValueError("offload: there is nothing to offload under ZeRO 0; set zero_stage to 1, 2 or 3")
        return self


class DistillConfig(TrainingConfig):
    """Training of the student with DeepSpeed."""

    projector_learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate of the projectors.")
    keep_last: bool = Field(
        False, description="Export the weights of the last step too, beside the student, as folder `last`."
    )
    keep_adapter: bool = Field(False, description="Keep the adapter too, beside the student that it was merged into.")

    @model_validator(mode="after")
    def _only_adapters_are_kept(self) -> DistillConfig:
        if self.keep_adapter and self.lora is None:
            raise ValueError(
                "keep_adapter: all weights are trained and there is none; set distill.lora or leave it out"
            )
        return self


class AdaptConfig(TrainingConfig):
    """Fine-tuning of the teacher on the corpus before its states are captured, as the paper does."""

    enabled: bool = Field(False, description="Adapt the teacher first (`sra adapt`); off takes it as it is.")
    seed: int = where_set(
        0,
        "Seed of the adaptation. Not the run's own: students of several seeds learn from one teacher, adapted and captured once.",
        ge=0,
    )
    epochs: float = Field(3.0, gt=0, description="Passes over the training examples.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate of the teacher.")
    min_learning_rate: float = Field(1e-6, ge=0, description="Floor of the cosine schedule.")
    lora: LoraConfig | None = Field(LoraConfig(), description="Train adapters; unset trains all weights.")
    merge: bool = Field(
        True, description="Keep the adapted teacher whole; off keeps its adapter alone, and merges when it is used."
    )

    @model_validator(mode="after")
    def _only_adapters_stand_alone(self) -> AdaptConfig:
        if not self.merge and self.lora is None:
            raise ValueError("merge: off keeps the adapter alone, and there is none; set adapt.lora or merge")
        return self


def hashed_steps(training: TrainingConfig, *, per_forward: bool) -> dict[str, Any]:
    """`hashed`, with a step as one process would take it: who shares its examples is no part of a result's name.

    Args:
        training: How to train.
        per_forward: Whether terms are means over a forward: then its examples belong together, and their number is
            part of the name.
    """
    together = training.step_examples
    if per_forward:
        together = training.micro_batch if isinstance(training.micro_batch, int) else training.batch_size
    # `micro_batch` and `processes` stay in it as they are by default: trainings by one process keep the names they had.
    step = {"batch_size": together, "accumulation": training.step_examples // together}
    return {**hashed(training), **step, "micro_batch": None, "processes": 1}
