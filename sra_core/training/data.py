"""Which examples make which step, and their tensors. B texts, T tokens, N spans of the batch, K spans of a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sra_core.objective import Batch, TeacherSpans
from sra_core.shards import PreparedRow, PreparedSet, TeacherRow, TeacherSet

__all__ = ["DistillData", "Order", "prefetch"]

IGNORED = -100


class Order:
    """The order of examples as a pure function of seed and step: epochs are permutations laid end to end.

    Args:
        examples: Examples in the training set.
        seed: Seed of the permutations.
        micro_batch: Examples a process in one forward.
        accumulation: Forwards in one step.
        world: Processes.
    """

    def __init__(self, examples: int, seed: int, micro_batch: int, accumulation: int, world: int) -> None:
        self.examples = examples
        self.seed = seed
        self.micro_batch = micro_batch
        self.accumulation = accumulation
        self.world = world
        self.step_size = micro_batch * accumulation * world
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def step(self, step: int) -> NDArray[np.int64]:
        """All examples of a step (counted from 0), over all processes: (step_size,)."""
        places = np.arange(step * self.step_size, (step + 1) * self.step_size)
        epochs = places // self.examples
        return np.array([self._epoch(int(e))[p % self.examples] for e, p in zip(epochs, places, strict=True)])

    def forwards(self, step: int, rank: int) -> NDArray[np.int64]:
        """(accumulation, micro_batch) examples of one process in a step."""
        return self.step(step).reshape(self.accumulation, self.world, self.micro_batch)[:, rank]

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(self.examples)


class DistillData:
    """Training batches from prepared examples and the teacher's cache.

    Args:
        prepared: Prepared examples of the training split.
        teacher: The teacher's centres of the same examples in the same order; None for objectives without a teacher.
        pad_id: Token that fills up short texts.
    """

    def __init__(self, prepared: PreparedSet, teacher: TeacherSet | None, pad_id: int) -> None:
        self.prepared = prepared
        self.teacher = teacher
        self.pad_id = pad_id
        first = [row.student_response for row in prepared]
        self._supervised = prepared.tokens("student") - np.maximum(np.array(first, dtype=np.int64), 1)

    def supervised(self, indices: NDArray[np.int64]) -> int:
        """Tokens of these examples that cross-entropy counts."""
        return int(self._supervised[indices].sum())

    def batch(self, indices: Sequence[int] | NDArray[np.int64], supervised: float) -> Batch:
        """Tensors of the examples, padded on the right.

        Args:
            indices: Examples of one forward.
            supervised: Tokens that one forward of this step supervises on average, over all processes: dividing by it
                makes the mean over forwards the mean over the step, however the step was cut.
        """
        rows = [self.prepared[int(index)] for index in indices]
        ids, mask, labels = self._tokens(rows)
        counts = [len(row.student_spans) for row in rows]
        return Batch(
            ids=[row.id for row in rows],
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            labels=torch.from_numpy(labels),
            span_text=torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts)),
            span_range=torch.from_numpy(np.concatenate([row.student_spans for row in rows]).astype(np.int64)),
            teacher=self._teacher_spans(rows, indices),
            supervised=supervised,
        )

    def _tokens(self, rows: Sequence[PreparedRow]) -> tuple[NDArray[np.int64], ...]:
        shape = (len(rows), max(len(row.student_ids) for row in rows))
        ids = np.full(shape, self.pad_id, np.int64)
        mask = np.zeros(shape, np.int64)
        labels = np.full(shape, IGNORED, np.int64)
        for place, row in enumerate(rows):
            length, first = len(row.student_ids), row.student_response
            ids[place, :length] = row.student_ids
            mask[place, :length] = 1
            labels[place, first:length] = row.student_ids[first:]
        labels[:, 0] = IGNORED  # nothing before it predicts it
        return ids, mask, labels

    def _teacher_spans(self, rows: Sequence[PreparedRow], indices: Iterable[Any]) -> dict[int, TeacherSpans]:
        if self.teacher is None:
            return {}
        kept: list[TeacherRow] = [self.teacher[int(index)] for index in indices]
        return {
            layer: TeacherSpans(
                centers=torch.from_numpy(np.concatenate([row.centers[layer] for row in kept])),
                mass=torch.from_numpy(np.concatenate([row.mass[layer] for row in kept])),
            )
            for layer in self.teacher.layers
        }


def prefetch(make: Any, keys: Iterable[Any]) -> Iterator[Any]:
    """Yield ``make(key)`` for every key, in order, making the next one while the last is used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = None
        for key in keys:
            following = pool.submit(make, key)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
