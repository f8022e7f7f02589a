"""How far what is stored lies from what the teacher computes. K spans, d teacher width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_core.config import CacheConfig, RunConfig
from sra_core.errors import ShardError
from sra_core.models import TeacherCapture
from sra_core.shards import Manifest, PreparedRow, PreparedSet, ShardEntry, StageFolder, TeacherRow, TeacherSet

__all__ = ["check_stored", "row_errors", "sample_rows", "state_errors", "within_bounds"]

Errors = dict[str, NDArray[np.float64]]


def check_stored(
    config: RunConfig, capture: TeacherCapture, prepared: Manifest, folder: StageFolder, shards: Sequence[ShardEntry]
) -> dict[str, float]:
    """Recompute some examples, each alone, and compare them with what a new cache holds of them.

    Returns:
        ``cache/center_error_max`` and so on.

    Raises:
        ShardError: An error is past its bound in the config.
    """
    if not config.cache.check:
        return {}
    if not any((folder.path / shard.name).exists() for shard in shards):
        folder.fetch(shards[:1])  # all of them were made on other machines
    # Seeded by the fingerprint: other caches check other examples, and a second look at this one the same ones.
    rows, stored = sample_rows(prepared, folder.path, shards, config.cache.check, int(folder.fingerprint, 16))
    # One by one, so that what batching did to the stored states would show.
    errors = state_errors([capture([row])[0] for row in rows], stored)
    within_bounds(config.cache, errors)
    return {f"cache/{name}": value for name, value in errors.items()}


def sample_rows(
    prepared: Manifest, folder: Any, shards: Sequence[ShardEntry], count: int, seed: int
) -> tuple[list[PreparedRow], list[TeacherRow]]:
    """Random examples of the shards that lie on this machine: as prepared, and as stored."""
    here = {shard.name: shard for shard in shards if (folder / shard.name).exists()}
    # Both lists in the order of the prepared shards: row i of one belongs to row i of the other.
    sources = [shard for shard in prepared.shards if shard.name in here]
    prepared_rows = PreparedSet(prepared.model_copy(update={"shards": sources}), "train")
    made = [here[shard.name] for shard in sources]
    stored = TeacherSet(prepared.model_copy(update={"shards": made, "folder": str(folder)}), "train")
    total = len(prepared_rows)
    chosen = sorted(np.random.default_rng(seed).choice(total, min(count, total), replace=False).tolist())
    return [prepared_rows[index] for index in chosen], [stored[index] for index in chosen]


def state_errors(live: Sequence[TeacherRow], stored: Sequence[TeacherRow]) -> dict[str, float]:
    """Largest and mean errors over all spans (and token states) of several examples.

    Of centres and states the norm of the difference over the norm of the live vector; of masses the difference.
    """
    rows = [row_errors(*pair) for pair in zip(live, stored, strict=True)]
    summary = {}
    for name in rows[0] if rows else ():
        values = np.concatenate([row[name] for row in rows])
        if len(values):
            summary[f"{name}_error_max"] = float(values.max())
            summary[f"{name}_error_mean"] = float(values.mean())
    return summary


def row_errors(live: TeacherRow, stored: TeacherRow) -> Errors:
    """Errors of one example: ``center`` and ``mass`` a span and layer, ``state`` a token.

    Raises:
        ShardError: The two are not the same example, or not of the same spans.
    """
    shapes = {k: centers.shape for k, centers in live.centers.items()}
    if live.id != stored.id or shapes != {k: centers.shape for k, centers in stored.centers.items()}:
        raise ShardError(
            f"the cache holds {stored.id!r} with other spans where {live.id!r} belongs", "run the cache stage again"
        )
    empty = np.empty(0)
    errors = {
        "center": np.concatenate([_relative(live.centers[k], stored.centers[k]) for k in live.centers] or [empty]),
        "mass": np.concatenate(
            [np.abs(live.mass[k] - stored.mass[k]).astype(np.float64) for k in live.mass] or [empty]
        ),
        "state": empty,
    }
    if live.states is not None and stored.states is not None:
        errors["state"] = _relative(live.states, stored.states)
    return errors


def within_bounds(config: CacheConfig, errors: Mapping[str, float]) -> None:
    """Refuse errors past the bounds of the config.

    Raises:
        ShardError: Names the error, its size and its bound.
    """
    bounds = {
        "center_error_max": config.max_center_error,
        "state_error_max": config.max_center_error,
        "mass_error_max": config.max_mass_error,
    }
    for name, bound in bounds.items():
        # A comparison with NaN is false: it would pass for an error within its bound.
        if errors.get(name, 0.0) > bound or not np.isfinite(errors.get(name, 0.0)):
            field = "max_mass_error" if name.startswith("mass") else "max_center_error"
            raise ShardError(
                f"what the cache stores differs from the live teacher: {name} is {errors[name]:.3g}, past {bound:.3g}",
                f"store more precisely (cache.dtype bfloat16 or float32) or raise cache.{field}",
            )


def _relative(live: NDArray[np.float32], stored: NDArray[np.float32]) -> NDArray[np.float64]:
    gap = np.linalg.norm((live - stored).astype(np.float64), axis=1)
    size = np.linalg.norm(live.astype(np.float64), axis=1)
    return gap / np.maximum(size, 1e-12)
