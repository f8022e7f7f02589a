from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from sra_core.compare import compare_all, detectable_difference, interval, paired
from sra_core.errors import EvaluationError


def plain_bootstrap(values, weights, resamples, seed):
    """Draw examples and seeds one by one."""
    random = np.random.default_rng(seed)
    examples, seeds = values.shape
    scores = []
    for _ in range(resamples):
        rows, columns = random.integers(0, examples, examples), random.integers(0, seeds, seeds)
        scores.append(np.mean([values[rows, c].sum() / weights[rows].sum() for c in columns]))
    return np.quantile(scores, [0.025, 0.975])


@pytest.mark.parametrize("seeds", [1, 4])
def test_equals_a_plain_bootstrap(seeds):
    random = np.random.default_rng(0)
    values = random.normal(3, 1, (30, 1)) + random.normal(0, 1, (30, seeds))
    weights = random.uniform(1, 5, 30)
    found = interval(values, weights, resamples=6000)
    low, high = plain_bootstrap(values, weights, 6000, 1)
    assert found.estimate == pytest.approx(values.mean(1).sum() / weights.sum())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)
    assert (found.examples, found.seeds) == (30, seeds)


def test_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        found = interval(random.exponential(2.0, 60), resamples=400, seed=trial)
        covered += found.low <= 2.0 <= found.high
    assert 0.88 <= covered / 300 <= 0.98


def test_more_examples_are_more_certain_and_level_counts():
    values = np.random.default_rng(2).normal(size=400)
    wide, narrow = interval(values[:40]), interval(values)
    assert narrow.high - narrow.low < (wide.high - wide.low) / 2
    inner = interval(values, level=0.5)
    assert narrow.low < inner.low < inner.high < narrow.high


def test_the_seed_decides():
    values = np.random.default_rng(3).normal(size=50)
    assert interval(values, seed=4) == interval(values, seed=4)
    assert interval(values, seed=4) != interval(values, seed=5)


def test_blocks_change_nothing_but_memory(monkeypatch):
    values = np.random.default_rng(3).normal(size=50)
    whole = interval(values, resamples=3000)
    monkeypatch.setattr("sra_core.compare.intervals._CELLS", 50 * 7)
    pieces = interval(values, resamples=3000)
    assert (pieces.low, pieces.high) == pytest.approx((whole.low, whole.high), abs=0.03)


def test_p_value_equals_all_sign_changes():
    """Ten examples have 1,024 sign patterns: all of them against the random ones."""
    gaps = np.array([0.3, -0.1, 0.5, 0.2, 0.4, -0.2, 0.6, 0.1, 0.35, 0.15])
    exact = np.mean([abs(np.dot(signs, gaps)) >= gaps.sum() - 1e-12 for signs in product((-1, 1), repeat=10)])
    assert paired(gaps, np.zeros(10), resamples=40_000).p_value == pytest.approx(exact, abs=1e-12)
    assert paired(gaps, np.zeros(10), resamples=1000).p_value == pytest.approx(exact, abs=0.03), "a sample of them"


def test_p_of_few_examples_is_no_smaller_than_their_swaps_allow():
    for count in (1, 2, 6):
        assert paired(np.arange(1.0, count + 1), np.zeros(count)).p_value == 2 ** (1 - count)


def test_paired_counts_and_direction():
    first, second = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.0, 1.0, 5.0])
    found = paired(first, second)
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.difference.estimate == pytest.approx(0.5)
    assert paired(second, first).difference.estimate == pytest.approx(-0.5)


def test_pairing_removes_what_examples_have_in_common():
    random = np.random.default_rng(5)
    easy = random.normal(0, 10, 100)
    first, second = easy + 0.5 + random.normal(0, 0.5, 100), easy + random.normal(0, 0.5, 100)
    found = paired(first, second)
    assert found.difference.low > 0
    assert found.p_value < 0.01
    alone = interval(first)
    assert alone.low < interval(second).estimate < alone.high


def test_false_alarms_are_as_rare_as_promised():
    random = np.random.default_rng(6)
    alarms = sum(
        paired(random.normal(size=40), random.normal(size=40), resamples=400).p_value < 0.05 for _ in range(300)
    )
    assert alarms / 300 < 0.09


def test_weights_make_it_a_ratio():
    nats, size = np.array([10.0, 100.0]), np.array([10.0, 50.0])
    assert interval(nats, size).estimate == pytest.approx(110 / 60)
    assert paired(nats, nats - size, size).difference.estimate == pytest.approx(1.0)


def test_other_numbers_of_seeds_are_averaged_first():
    first = np.array([[1.0, 3.0], [2.0, 4.0]])
    found = paired(first, np.array([1.0, 1.0]))
    assert found.difference.estimate == pytest.approx(1.5)
    assert found.difference.seeds == 1


def test_detectable_difference_is_detected_four_times_in_five():
    random = np.random.default_rng(7)
    size = detectable_difference(random.normal(0, 2, 20_000)) * np.sqrt(20_000 / 80)  # for 80 examples of this spread
    hits = sum(paired(random.normal(size, 2, 80), np.zeros(80), resamples=400).p_value < 0.05 for _ in range(250))
    assert 0.72 <= hits / 250 <= 0.88
    assert detectable_difference(np.array([1.0])) == float("inf")


def test_holm_correction_by_hand(monkeypatch):
    p_values = iter([0.01, 0.04, 0.03])
    monkeypatch.setattr("sra_core.compare.intervals._swap_test", lambda *args: next(p_values))
    values = np.arange(5.0)
    found = compare_all({"a": values, "b": values + 1, "c": values + 2})
    assert {pair: result.adjusted for pair, result in found.items()} == {
        ("a", "b"): pytest.approx(0.03),
        ("a", "c"): pytest.approx(0.06),
        ("b", "c"): pytest.approx(0.06),
    }


def test_only_the_pairs_asked_for():
    values = {name: np.arange(5.0) for name in "abc"}
    assert list(compare_all(values, pairs=[("c", "a")])) == [("c", "a")]


@pytest.mark.parametrize("values", [np.empty(0), np.array([1.0, np.nan])])
def test_nothing_to_average_is_an_error(values):
    with pytest.raises(EvaluationError):
        interval(values)


def test_unequal_examples_cannot_be_paired():
    with pytest.raises(EvaluationError, match="3 examples cannot be paired with 2"):
        paired(np.ones(3), np.ones(2))


def test_data_sets_weigh_alike_whatever_their_size():
    values = np.array([10.0] * 90 + [20.0] * 10)
    strata = np.array([0] * 90 + [1] * 10)
    found = interval(values, strata=strata)
    assert found.estimate == pytest.approx(15.0)
    assert (found.low, found.high) == pytest.approx((15.0, 15.0)), "examples are drawn from their own set"
    weights = np.array([2.0] * 90 + [5.0] * 10)
    assert interval(values, weights, strata=strata).estimate == pytest.approx((10 / 2 + 20 / 5) / 2)


def test_the_interval_of_an_average_has_its_standard_error():
    random = np.random.default_rng(0)
    first, second = random.normal(0, 1, 400), random.normal(5, 3, 100)
    strata = np.array([0] * 400 + [1] * 100)
    found = interval(np.concatenate([first, second]), strata=strata, resamples=4000)
    error = 0.5 * np.sqrt(first.var() / 400 + second.var() / 100)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error, rel=0.06)
    detectable = detectable_difference(np.concatenate([first, second]), strata=strata)
    assert detectable == pytest.approx(2.8016 * error, rel=0.01)


def test_a_pair_on_several_data_sets_differs_by_the_mean_of_their_differences():
    first = np.array([1.0, 2.0, 3.0, 9.0])
    second = np.array([0.0, 0.0, 0.0, 4.0])
    found = paired(first, second, strata=np.array([0, 0, 0, 1]), resamples=50)
    assert found.difference.estimate == pytest.approx((2.0 + 5.0) / 2)
    assert (found.wins, found.losses) == (4, 0)
