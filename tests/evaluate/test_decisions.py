from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_core.errors import EvaluationError
from sra_core.evaluate import Sampling
from sra_core.evaluate.decisions import choose, text_generator


def uniform(shape, seed=0):
    return torch.empty(shape).uniform_(generator=torch.Generator().manual_seed(seed))


def plain_nucleus(logits, temperature: float, top_p: float) -> set[int]:
    """Tokens whose strictly likelier tokens hold less than top_p: written with Python numbers."""
    weights = np.exp(np.array(logits, dtype=np.float64) / temperature)
    shares = weights / weights.sum()
    return {i for i, share in enumerate(shares) if shares[shares > share].sum() < top_p}


def test_greedy_takes_the_largest_and_flags_close_calls():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.9995, 0.0], [1.0, 1.0, 0.0]])
    tokens, safe = choose(logits, None, Sampling(), torch.full((3,), 1e-3))
    assert tokens.tolist() == [1, 0, 0]
    assert safe.tolist() == [True, False, False]
    assert choose(logits, None, Sampling())[1].tolist() == [True, True, True]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8), (1.3, 0.6)])
def test_sampling_draws_from_the_distribution(temperature, top_p):
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])
    draws = 40_000
    tokens, _ = choose(logits.expand(draws, 5), uniform((draws, 5)), Sampling(temperature, top_p))
    observed = torch.bincount(tokens, minlength=5) / draws
    kept = plain_nucleus(logits.tolist(), temperature, top_p)
    wanted = torch.tensor(
        [np.exp(value / temperature) if i in kept else 0.0 for i, value in enumerate(logits.tolist())]
    )
    torch.testing.assert_close(observed.double(), wanted.double() / wanted.sum(), atol=0.012, rtol=0)


@given(
    st.lists(st.integers(-6, 6), min_size=2, max_size=12), st.floats(0.3, 2), st.floats(0.05, 0.999), st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_nucleus_equals_the_plain_one(values, temperature, top_p, seed):
    logits = torch.tensor([values], dtype=torch.float32) / 3
    noise = uniform(logits.shape, seed)
    token, _ = choose(logits, noise, Sampling(temperature, top_p))
    kept = plain_nucleus(logits[0].tolist(), temperature, top_p)
    perturbed = (logits / temperature - (-noise.log()).log())[0]
    assert int(token) == max(kept, key=lambda i: float(perturbed[i]))


@given(st.integers(0, 10_000), st.sampled_from([(0.0, 1.0), (1.0, 1.0), (0.5, 0.9), (1.0, 0.5)]))
@settings(max_examples=150, deadline=None)
def test_a_safe_choice_survives_every_change_within_the_margin(seed, how):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(16, 8, generator=generator) * 2).round(decimals=1)  # rounded: many near ties
    noise = uniform(logits.shape, seed)
    sampling, margin = Sampling(*how), 0.05
    tokens, safe = choose(logits, noise, sampling, torch.full((16,), margin))
    for _ in range(20):
        changed = logits + (torch.rand(logits.shape, generator=generator) - 0.5) * margin
        again, _ = choose(changed, noise, sampling)
        assert torch.equal(again[safe], tokens[safe])


def test_most_choices_are_safe_at_the_working_margin():
    logits = torch.randn(400, 500, generator=torch.Generator().manual_seed(1)) * 3
    for sampling in (Sampling(), Sampling(1.0), Sampling(1.0, 0.9)):
        _, safe = choose(logits, uniform(logits.shape), sampling, torch.full((400,), 1e-2))
        assert safe.float().mean() > 0.95


def test_nan_is_an_error():
    with pytest.raises(EvaluationError, match="NaN"):
        choose(torch.tensor([[0.0, float("nan")]]), None, Sampling())


def test_generators_differ_by_seed_and_example():
    draws = {
        (seed, name): torch.rand(4, generator=text_generator(seed, name)).tolist()
        for seed in (1, 2, 11)
        for name in "ab"
    }
    assert len({tuple(draw) for draw in draws.values()}) == 6
    assert torch.rand(4, generator=text_generator(1, "a")).tolist() == draws[1, "a"]
