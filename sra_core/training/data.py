"""Which examples make which step, and their tensors. B texts, N tokens of the batch, K spans of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sra_core.models.texts import join
from sra_core.objective import Batch, TeacherSpans
from sra_core.shards import PreparedRow, PreparedSet, TeacherBatch, TeacherSet

__all__ = ["DistillData", "Order", "prefetch", "uploader"]

IGNORED = -100


WINDOW = 50
"""Steps whose examples are sorted by length together: enough to save padding, few enough to stay random."""


class Order:
    """The order of examples as a pure function of seed and step: epochs are permutations laid end to end.

    With ``lengths`` the examples of a step are of similar length, so little is spent on padding: within windows of
    `WINDOW` steps examples are sorted, cut into steps, and the steps shuffled. Each example still comes once an epoch.

    Args:
        examples: Examples in the training set.
        seed: Seed of the permutations.
        micro_batch: Examples a process in one forward.
        accumulation: Forwards in one step.
        world: Processes.
        lengths: (examples,) tokens of each example; unset takes the permutation as it is.
    """

    def __init__(
        self,
        examples: int,
        seed: int,
        micro_batch: int,
        accumulation: int,
        world: int,
        lengths: NDArray[np.int64] | None = None,
    ) -> None:
        self._lengths = lengths
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
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(self.examples)
        return order if self._lengths is None else self._grouped(order, epoch, random, self._lengths)

    def _grouped(
        self, order: NDArray[np.int64], epoch: int, random: np.random.Generator, lengths: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The epoch's order with steps of similar lengths; a step shared with a neighbouring epoch stays as it is."""
        # So many examples of this epoch complete the step that the one before it began.
        begin = min(-epoch * self.examples % self.step_size, self.examples)
        end = begin + (self.examples - begin) // self.step_size * self.step_size
        parts = [order[:begin]]
        for start in range(begin, end, WINDOW * self.step_size):
            window = order[start : min(start + WINDOW * self.step_size, end)]
            steps = window[np.argsort(lengths[window], kind="stable")].reshape(-1, self.step_size)
            parts.append(random.permutation(steps).ravel())
        return np.concatenate([*parts, order[end:]])


class DistillData:
    """Training batches from prepared examples and the teacher's cache.

    Args:
        prepared: Prepared examples of the training split.
        teacher: What the teacher made of the same examples in the same order; None for objectives without a teacher.
        side: Whose tokens and spans make the batch.
        layers: Teacher layers whose spans are read; unset reads all that the cache holds.
        token_states: The number of the teacher's last layer, where its token states are read.
        one_to_one: Leave out spans of several tokens on either side.
    """

    def __init__(
        self,
        prepared: PreparedSet,
        teacher: TeacherSet | None,
        side: Literal["teacher", "student"] = "student",
        layers: Sequence[int] | None = None,
        token_states: int | None = None,
        one_to_one: bool = False,
    ) -> None:
        self.prepared = prepared
        self.teacher = teacher
        self.side = side
        self.layers = layers
        self.token_states = token_states
        self.one_to_one = one_to_one
        first = [self._first(row) for row in prepared]
        # The first token of a text is never a target, also where there is no prompt before it.
        self._supervised = prepared.tokens(side) - np.maximum(np.array(first, dtype=np.int64), 1)

    def _first(self, row: PreparedRow) -> int:
        return row.teacher_response if self.side == "teacher" else row.student_response

    def _ids(self, row: PreparedRow) -> NDArray[np.int32]:
        return row.teacher_ids if self.side == "teacher" else row.student_ids

    def _spans(self, row: PreparedRow) -> NDArray[np.int32]:
        return row.teacher_spans if self.side == "teacher" else row.student_spans

    def lengths(self) -> NDArray[np.int64]:
        """(examples,) tokens of each example."""
        return self.prepared.tokens(self.side)

    def supervised(self, indices: NDArray[np.int64]) -> int:
        """Tokens of these examples that cross-entropy counts."""
        return int(self._supervised[indices].sum())

    def batch(self, indices: Sequence[int] | NDArray[np.int64], supervised: float) -> Batch:
        """Tensors of the examples, their tokens one after another.

        Args:
            indices: Examples of one forward.
            supervised: Tokens that one forward of this step supervises on average, over all processes: dividing by it
                makes the mean over forwards the mean over the step, however the step was cut.
        """
        rows = [self.prepared[int(index)] for index in indices]
        ids, starts, labels = _joined([self._ids(row) for row in rows], [self._first(row) for row in rows])
        spans = [self._spans(row) for row in rows]
        kept = self._kept(indices)
        batch = Batch(
            ids=[row.id for row in rows],
            input_ids=ids,
            starts=starts,
            labels=labels,
            span_text=torch.from_numpy(np.repeat(np.arange(len(rows)), [len(each) for each in spans])),
            span_range=_shifted(spans, starts),
            teacher=_teacher_spans(kept),
            supervised=supervised,
            **self._teacher_tokens(rows, kept),
        )
        return batch.with_spans(_one_to_one(rows)) if self.one_to_one else batch

    def _kept(self, indices: Sequence[int] | NDArray[np.int64]) -> TeacherBatch:
        if self.teacher is None:
            return TeacherBatch()
        return self.teacher.gather([int(index) for index in indices], self.layers, self.token_states is not None)

    def _teacher_tokens(self, rows: Sequence[PreparedRow], kept: TeacherBatch) -> dict[str, Any]:
        """The batch's fields for objectives that compare tokens."""
        if kept.states is None or self.token_states is None:
            return {}
        ids, starts, labels = _joined([row.teacher_ids for row in rows], [row.teacher_response for row in rows])
        states = _floats(kept.states)
        placed = states.new_zeros(len(ids), states.shape[1])
        placed[:-1][labels[1:] != IGNORED] = states  # a state stands where it predicts, text by text
        return {
            "teacher_states": {self.token_states: placed},
            "teacher_ids": ids,
            "teacher_starts": starts,
            "teacher_labels": labels,
            "teacher_range": _shifted([row.teacher_spans for row in rows], starts),
        }


def _joined(texts: Sequence[NDArray[np.int32]], first: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (N,), starts (B + 1,) and labels: the token itself from ``first`` of its text on where one precedes it."""
    ids, starts = join(texts)
    labels = ids.clone()
    for start, response in zip(starts.tolist(), first, strict=False):
        # The first token too: in a batch of texts end to end, what precedes it is another text.
        labels[start : start + max(response, 1)] = IGNORED
    return ids, starts, labels


def _shifted(spans: Sequence[NDArray[np.int32]], starts: Tensor) -> Tensor:
    """(K, 2) ranges within each text to ranges within the batch."""
    return torch.from_numpy(np.concatenate([each + start for each, start in zip(spans, starts.numpy(), strict=False)]))


def _one_to_one(rows: Sequence[PreparedRow]) -> Tensor:
    """(K,) whether a span has one token on both sides."""
    lengths = [np.diff(row.teacher_spans) + np.diff(row.student_spans) for row in rows]
    # No span is empty: two tokens on both sides together are one and one.
    return torch.from_numpy(np.concatenate(lengths)[:, 0] == 2)


def _teacher_spans(kept: TeacherBatch) -> dict[int, TeacherSpans]:
    return {
        layer: TeacherSpans(_floats(centers), torch.from_numpy(kept.mass[layer]))
        for layer, centers in kept.centers.items()
    }


def _floats(stored: NDArray[Any]) -> Tensor:
    """Vectors as they are stored, without a copy: float32, or bfloat16 from its bits."""
    tensor = torch.from_numpy(stored)
    return tensor.view(torch.bfloat16) if stored.dtype == np.uint16 else tensor


def uploader(device: torch.device) -> Callable[[Batch], Batch]:
    """A function that puts batches on a device.

    For a GPU it copies from pinned memory on a stream of its own: called by the thread that prepares the next batch, it
    overlaps with what the GPU computes, and only that thread waits for it.
    """
    if device.type != "cuda":
        return lambda batch: batch.to(device)
    stream = torch.cuda.Stream(device)

    def upload(batch: Batch) -> Batch:
        # `Batch.keep` tells the allocator that the training stream reads this memory too.
        with torch.cuda.stream(stream):
            moved = batch.pinned().to(device)
        stream.synchronize()
        return moved

    return upload


# One batch ahead is enough: a small Llama of six layers waits for data 0.2 % of its time (benchmarks/RESULTS.md).
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
