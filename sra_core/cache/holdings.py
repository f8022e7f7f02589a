"""What a cache holds, and which cache of a store serves a config: capture once, train many students."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from sra_core.config import RunConfig
from sra_core.models import layer_count_of, model_identity, resolve_layer
from sra_core.objective import teacher_needs
from sra_core.runs import Run
from sra_core.shards import SCHEMA_VERSION, StageFolder

__all__ = ["Holdings", "find_cache", "identity"]


class Holdings(BaseModel, frozen=True):
    """What a cache holds of every training example, beside the teacher's head rows of the shared vocabulary."""

    layers: tuple[int, ...]
    """Layers whose span centres and masses are kept, counted from 1."""
    pooling: Literal["attention", "mean", "unweighted", "none"]
    """How centres weigh the tokens of a span; ``none`` where there are none. ``unweighted`` are means whose masses are
    no attention: none was asked for."""
    tokens: bool
    """Whether the last layer's token states, the whole LM head and the input embeddings are kept."""

    @classmethod
    def of(cls, config: RunConfig) -> Holdings:
        """What the cache of a config holds: what its objective reads, and what ``cache`` asks for besides.

        An objective without a teacher keeps what `sra` would read with the same layers.
        """
        needs = teacher_needs(config.objective)
        # Objectives that compare tokens read no centres, so that they share one cache whatever `layers` says.
        mapped = () if needs.token_states else tuple(teacher for teacher, _ in config.objective.layers)
        wanted = (*mapped, *config.cache.layers)
        count = layer_count_of(config.teacher) if wanted else 0
        layers = tuple(sorted({resolve_layer(count, layer) for layer in wanted}))
        pooling: Literal["attention", "mean", "unweighted", "none"] = "none"
        if layers:
            unweighted: Literal["mean", "unweighted"] = "mean" if config.objective.weighted_loss else "unweighted"
            pooling = "attention" if config.objective.weighted_pooling else unweighted
        return cls(layers=layers, pooling=pooling, tokens=needs.token_states or config.cache.token_states)

    def covers(self, other: Holdings) -> bool:
        """Whether this holds all that ``other`` would."""
        # the centres of both are plain means: those with masses serve who reads none
        serves = self.pooling == other.pooling or (self.pooling, other.pooling) == ("mean", "unweighted")
        pooled = not other.layers or serves
        return set(other.layers) <= set(self.layers) and self.tokens >= other.tokens and pooled


def identity(run: Run) -> dict[str, Any]:
    """All that determines the bytes of a teacher cache."""
    config = run.config
    # Batches, devices, helpers and checks are left out: they do not change a byte of what is stored.
    stored = {name: getattr(config.cache, name) for name in ("dtype", "compression", "compute_dtype")}
    return {
        "schema": SCHEMA_VERSION,
        # Whole, so that `StageFolder.missing` can name the fields in which the nearest cache differs.
        "prepared": run.identity("prepare"),
        "teacher": model_identity(run.adapted.teacher),
        "cache": stored,
        "holds": Holdings.of(config).model_dump(mode="json"),
    }


def find_cache(folder: StageFolder) -> StageFolder:
    """``folder`` or, while it holds no result, another cache of its store that differs only in holding more."""
    if folder.manifest() is not None:
        return folder
    wanted = Holdings.model_validate(folder.identity["holds"])
    for other in folder.siblings():
        # Of the same bytes but for what is held: also the teacher, its type, and how vectors are stored.
        same = {**other.identity, "holds": None} == {**folder.identity, "holds": None}
        if same and Holdings.model_validate(other.identity["holds"]).covers(wanted):
            found = folder.sibling(other)
            if found.manifest() is not None:
                return found
    return folder
