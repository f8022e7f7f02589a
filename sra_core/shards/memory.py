"""Rows in memory that read like the sets on disk: for samples too small to be written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sra_core.shards.prepared import PreparedRow
from sra_core.shards.teacher import TeacherBatch, TeacherRow

__all__ = ["MemoryPrepared", "MemoryTeacher"]


class MemoryPrepared(list[PreparedRow]):
    """Prepared rows; reads like a `PreparedSet`."""

    def tokens(self, side: str) -> NDArray[np.int64]:
        """(rows,) number of ``teacher`` or ``student`` tokens of each example."""
        return np.array([len(getattr(row, f"{side}_ids")) for row in self], np.int64)


class MemoryTeacher(list[TeacherRow]):
    """Teacher rows; reads like a `TeacherSet`."""

    def gather(self, indices: Sequence[int], layers: Sequence[int] | None = None, states: bool = False) -> TeacherBatch:
        """Examples end to end, float32."""
        chosen = [self[index] for index in indices]
        wanted = chosen[0].centers if layers is None else layers
        batch = TeacherBatch(centers={}, mass={})
        for layer in wanted:
            batch.centers[layer] = np.concatenate([row.centers[layer] for row in chosen])
            batch.mass[layer] = np.concatenate([row.mass[layer] for row in chosen])
        if states:
            batch.states = np.concatenate([row.states for row in chosen if row.states is not None])
        return batch
