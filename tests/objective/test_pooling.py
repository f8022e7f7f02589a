from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_core.objective import pool_spans
from tests.objective import plain
from tests.objective.make import assert_same, make


@pytest.mark.parametrize("weighted", [True, False])
def test_pooling_a_batch_equals_a_loop_over_texts_and_tokens(weighted: bool) -> None:
    world = make()
    batch, hidden, weights = world.batch, world.leaves["final"], world.student.weights[4]
    centers, mass = pool_spans(hidden, weights, batch.span_range, weighted)
    counted, _ = pool_spans(hidden, weights, batch.span_range, weighted, batch.sizes.in_spans)
    assert torch.equal(counted, centers)
    expected = []
    for row in range(batch.texts):
        text = world.text(row)
        expected.append(plain.pool(hidden[text], weights[text], world.ranges(row), weighted))
    torch.testing.assert_close(mass, torch.cat([each for _, each in expected]))
    plain_centers = torch.cat([each for each, _ in expected])
    direction = torch.linspace(-1, 1, plain_centers.numel(), dtype=torch.float64).reshape(plain_centers.shape)
    assert_same((centers * direction).sum(), (plain_centers * direction).sum(), {"final": hidden})


def test_one_text_gives_the_golden_centres() -> None:
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [4.0, 0.0]])
    weights = torch.tensor([0.1, 0.3, 0.2, 0.4])
    centers, mass = pool_spans(hidden, weights, torch.tensor([[0, 2], [2, 3]]))
    torch.testing.assert_close(mass, torch.tensor([0.4, 0.2]))
    torch.testing.assert_close(centers, torch.tensor([[0.25, 0.75], [2.0, 2.0]]))


def test_a_span_that_attention_ignores_is_divided_by_the_floor() -> None:
    centers, mass = pool_spans(torch.ones(2, 3), torch.tensor([1e-7, 1.0]), torch.tensor([[0, 1], [1, 2]]))
    torch.testing.assert_close(mass, torch.tensor([1e-7, 1.0]))
    torch.testing.assert_close(centers[0], torch.full((3,), 1e-2))


def test_attention_carries_no_gradient() -> None:
    weights = torch.rand(4, requires_grad=True)
    centers, mass = pool_spans(torch.rand(4, 2, requires_grad=True), weights, torch.tensor([[0, 2], [2, 4]]))
    assert not mass.requires_grad
    centers.sum().backward()
    assert weights.grad is None


def test_no_span_and_empty_ranges() -> None:
    centers, mass = pool_spans(torch.rand(4, 2), torch.rand(4), torch.zeros(0, 2, dtype=torch.long))
    assert centers.shape == (0, 2)
    assert mass.shape == (0,)
    centers, mass = pool_spans(torch.rand(4, 2), torch.rand(4), torch.tensor([[2, 2], [1, 3]]))
    assert centers[0].tolist() == [0, 0]
    assert mass[0] == 0
    assert mass[1] > 0


def test_half_precision_states_are_summed_in_float32() -> None:
    rng = torch.Generator().manual_seed(3)
    hidden = torch.randn(4096, 8, generator=rng).to(torch.bfloat16)
    weights = torch.rand(4096, generator=rng)
    weights = weights / weights.sum()
    ranges = torch.tensor([[0, 4096]])
    centers, mass = pool_spans(hidden, weights, ranges)
    assert centers.dtype == mass.dtype == torch.float32
    exact, _ = pool_spans(hidden.double(), weights.double(), ranges)
    torch.testing.assert_close(centers.double(), exact, rtol=1e-4, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_centres_of_a_partition_weigh_back_to_the_whole(data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, 30))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, tokens - 1)), max_size=8)) | {0, tokens})
    ranges = torch.tensor(list(pairwise(cuts)))
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    hidden = torch.randn(tokens, 3, generator=rng, dtype=torch.float64)
    weights = (torch.rand(tokens, generator=rng, dtype=torch.float64) + 0.1) / tokens
    centers, mass = pool_spans(hidden, weights, ranges)
    torch.testing.assert_close((centers * mass[:, None]).sum(0), (hidden * weights[:, None]).sum(0))
    order = torch.randperm(len(ranges), generator=rng)
    shuffled, _ = pool_spans(hidden, weights, ranges[order])
    torch.testing.assert_close(shuffled, centers[order])
