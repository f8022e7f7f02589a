"""Which example is seen when, and at which learning rate."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sra_core.config import DistillConfig
from sra_core.shards import PreparedSet, read_manifest
from sra_core.training import DistillData, Order, learning_rate, total_steps
from sra_core.training.data import prefetch
from tests.training.make import make_config, make_job

sizes = st.tuples(
    st.integers(1, 40), st.integers(0, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)
)  # examples, seed, micro-batch, accumulation, world


def make_order(sizes: tuple[int, ...], grouped: bool) -> Order:
    lengths = np.random.default_rng(sizes[0]).integers(1, 100, sizes[0]) if grouped else None
    return Order(*sizes, lengths=lengths)


@given(sizes, st.booleans(), st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_a_step_does_not_depend_on_what_was_asked_before(
    sizes: tuple[int, ...], grouped: bool, steps: list[int]
) -> None:
    fresh = [make_order(sizes, grouped).step(step).tolist() for step in steps]
    used = make_order(sizes, grouped)
    assert [used.step(step).tolist() for step in steps] == fresh


@given(sizes, st.booleans())
def test_every_epoch_sees_every_example_once(sizes: tuple[int, ...], grouped: bool) -> None:
    examples = sizes[0]
    order = make_order(sizes, grouped)
    steps = math.ceil(3 * examples / order.step_size)
    seen = np.concatenate([order.step(step) for step in range(steps)])[: 3 * examples].reshape(3, examples)
    assert all(sorted(epoch) == list(range(examples)) for epoch in seen.tolist())


def test_grouped_steps_waste_little_on_padding_and_stay_shuffled() -> None:
    lengths = np.random.default_rng(0).integers(10, 300, 1003)
    plain, grouped = Order(1003, 0, 8, 1, 1), Order(1003, 0, 8, 1, 1, lengths)

    def padded(order: Order) -> int:
        return sum(8 * int(lengths[order.step(step)].max()) for step in range(375))

    real = sum(int(lengths[grouped.step(step)].sum()) for step in range(375))
    assert padded(grouped) < 1.05 * real
    assert padded(plain) > 1.5 * real
    longest = [int(lengths[grouped.step(step)].max()) for step in range(50)]
    assert longest != sorted(longest)
    assert abs(np.corrcoef(np.arange(50), longest)[0, 1]) < 0.5


def test_epochs_and_seeds_differ() -> None:
    first = Order(50, 0, 50, 1, 1)
    assert first.step(0).tolist() != first.step(1).tolist()
    assert first.step(0).tolist() != Order(50, 1, 50, 1, 1).step(0).tolist()


@given(sizes, st.booleans(), st.integers(0, 20))
def test_processes_share_a_step_without_overlap(sizes: tuple[int, ...], grouped: bool, step: int) -> None:
    order = make_order(sizes, grouped)
    parts = [order.forwards(step, rank) for rank in range(order.world)]
    assert all(part.shape == (order.accumulation, order.micro_batch) for part in parts)
    assert sorted(np.concatenate(parts).ravel()) == sorted(order.step(step))


@given(st.integers(1, 30), st.booleans(), st.integers(0, 10), st.integers(1, 3))
def test_a_step_is_the_same_however_it_is_cut(examples: int, grouped: bool, step: int, factor: int) -> None:
    whole = make_order((examples, 5, 6 * factor, 2, 1), grouped).step(step)
    assert whole.tolist() == make_order((examples, 5, 3 * factor, 2, 2), grouped).step(step).tolist()
    assert whole.tolist() == make_order((examples, 5, 2 * factor, 6, 1), grouped).step(step).tolist()


def test_steps_of_a_run() -> None:
    assert total_steps(DistillConfig(epochs=3), 10, 4) == 8
    assert total_steps(DistillConfig(epochs=0.01), 10, 4) == 1
    assert total_steps(DistillConfig(epochs=3, max_steps=5), 10, 4) == 5
    assert total_steps(DistillConfig(epochs=1, max_steps=50), 10, 4) == 3


def test_learning_rate_warms_up_and_falls_to_its_floor() -> None:
    config = DistillConfig(warmup=0.1, min_learning_rate=1e-5)
    rates = [learning_rate(config, 1e-3, step, 100) for step in range(101)]
    assert rates[:3] == pytest.approx([1e-3 / 11, 2e-3 / 11, 3e-3 / 11])
    assert max(rates) == rates[10] == 1e-3
    assert rates[55] == pytest.approx(1e-5 + (1e-3 - 1e-5) / 2)
    assert rates[100] == pytest.approx(1e-5)
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_a_floor_above_the_peak_is_lowered_to_it() -> None:
    config = DistillConfig(warmup=0.0, min_learning_rate=1e-2)
    assert {learning_rate(config, 1e-3, step, 10) for step in range(11)} == {1e-3}


def test_batches_hold_the_examples_end_to_end_and_labelled(tmp_path: Path) -> None:
    job = make_job(tmp_path, make_config())
    prepared = PreparedSet(read_manifest(job.prepared), "train")
    data = DistillData(prepared, None)
    batch = data.batch([3, 0], supervised=11.0)
    rows = [prepared[3], prepared[0]]
    assert batch.ids == ["train-3", "train-0"]
    assert batch.supervised == 11.0
    ranges = []
    for row, (begin, end) in zip(rows, pairwise(batch.starts.tolist()), strict=True):
        first = row.student_response
        assert batch.input_ids[begin:end].tolist() == row.student_ids.tolist()
        assert batch.labels[begin + first : end].tolist() == row.student_ids[first:].tolist()
        assert set(batch.labels[begin : begin + first].tolist()) == {-100}
        ranges += [[begin + low, begin + high] for low, high in row.student_spans.tolist()]
    assert batch.span_range.tolist() == ranges
    assert batch.sizes.longest == max(len(row.student_ids) for row in rows)
    assert batch.span_text.tolist() == [0] * len(rows[0].student_spans) + [1] * len(rows[1].student_spans)
    supervised = len(batch.targets)
    assert supervised == sum(len(row.student_ids) - max(row.student_response, 1) for row in rows)
    assert data.supervised(np.array([3, 0])) == supervised


def test_the_teacher_side_reads_the_teachers_tokens(tmp_path: Path) -> None:
    job = make_job(tmp_path, make_config())
    prepared = PreparedSet(read_manifest(job.prepared), "train")
    batch = DistillData(prepared, None, "teacher").batch([1], 1.0)
    assert batch.input_ids.tolist() == prepared[1].teacher_ids.tolist()
    assert batch.span_range.tolist() == prepared[1].teacher_spans.tolist()


def test_prefetch_keeps_the_order_and_raises_what_failed() -> None:
    assert list(prefetch(lambda key: key * 2, range(5))) == [0, 2, 4, 6, 8]

    def fail(key: int) -> int:
        if key == 2:
            raise ValueError("no such example")
        return key

    made = prefetch(fail, range(5))
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(ValueError, match="no such example"):
        next(made)
