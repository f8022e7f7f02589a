"""The teacher cache: what is kept, how exactly, and how it is captured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sra_core.config.part import AUTO, DType, Part, runtime

__all__ = ["CacheConfig"]


class CacheConfig(Part):
    """Capture of the teacher's span centres."""

    dtype: Literal["bfloat16", "float32", "int8", "fp8"] = Field(
        "bfloat16",
        title="Stored type",
        description="How centres are stored; int8 and fp8 (e4m3) take one byte per number and one float16 scale per span.",
    )
    compression: Literal["none", "zstd"] = Field(
        "none", title="Compression", description="zstd is smaller; none can be memory-mapped without a copy."
    )
    compute_dtype: DType = Field(
        "auto",
        title="Teacher precision",
        description=f"Type of the teacher's weights and activations while capturing. {AUTO}",
    )
    layers: list[int] = Field(
        [],
        description="Teacher layers to keep besides those of `objective.layers`, so that one cache serves students mapped otherwise.",
    )
    token_states: bool = Field(
        False,
        description="Keep the last layer's token states, the whole LM head and the embeddings whatever the objective, so that one cache serves the token-level objectives too.",
    )
    check: int = runtime(
        8, "Examples of a new cache that the teacher computes again, to measure what storing them changed.", ge=0
    )
    # Largest errors at layers 15, 20 and 30 of SmolLM2-135M-Instruct: fp8 0.030 to 0.032, int8 0.038 to 0.049.
    max_center_error: float = runtime(
        0.05, "Largest relative error of a stored centre or token state; past it the stage fails.", gt=0
    )
    max_mass_error: float = runtime(
        0.02, "Largest error of a stored mass (all spans of a text weigh at most 1); past it the stage fails.", gt=0
    )
    max_loss_error: float = runtime(
        0.05, "Largest relative error that the cache causes in a loss term; past it `sra cache --check` fails.", gt=0
    )
    workers: int = runtime(1, "Processes that capture; on a machine with several GPUs, each takes the next one.", ge=1)
    compile: bool = runtime(False, "Compile the teacher's layers with torch.compile before capturing.")
    device: str = runtime(
        "auto",
        "`auto`, `cpu`, `cuda`, `cuda:N`, or `spread`: the layers over all GPUs, then main memory, then disk, for a teacher larger than one device.",
    )
    tokens_per_batch: int = runtime(
        4096, "Most teacher tokens in one forward; padding counts where the teacher is run padded (`layout`).", ge=1
    )

    @model_validator(mode="after")
    def _one_process_is_spread(self) -> CacheConfig:
        if self.device == "spread" and self.workers > 1:
            raise ValueError("workers: a teacher that is spread takes every device for one process; set workers to 1")
        if self.device == "spread" and self.compile:
            raise ValueError("compile: layers that are fetched when they run can't be compiled; set compile to false")
        return self
