"""The teacher, set up for capturing: by the stage, by each task on a cluster, by each helper process."""

from __future__ import annotations

from typing import Any

from sra_core.cache.holdings import Holdings
from sra_core.config import RunConfig
from sra_core.models import TeacherCapture, choose_layout, load_model
from sra_core.models.forward import compile_layers
from sra_core.shards import StageFolder

__all__ = ["capture_of", "load_teacher", "make_capture"]


def load_teacher(config: RunConfig, device: str | None = None) -> Any:
    """The teacher as the config wants it for capturing."""
    model = load_model(config.teacher, config.cache.compute_dtype, device or config.cache.device)
    choose_layout(model, config.layout, config.alignment.max_length)
    if config.cache.compile:
        compile_layers(model)
    return model


def make_capture(config: RunConfig, folder: StageFolder, model: Any) -> TeacherCapture:
    """The capture that fills a cache folder."""
    return capture_of(config, Holdings.model_validate(folder.identity["holds"]), model)


def capture_of(config: RunConfig, holds: Holdings, model: Any) -> TeacherCapture:
    """The capture that makes what a cache is to hold."""
    return TeacherCapture(
        model,
        holds.layers,
        config.cache.tokens_per_batch,
        weighted_pooling=holds.pooling == "attention",
        token_states=holds.tokens,
        attention=holds.pooling != "unweighted",
    )
