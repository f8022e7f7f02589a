"""Intervals, paired comparisons and detectable differences, over examples and seeds.

Every score here is a ratio of sums: a mean divides by the number of examples, bits per byte divides by their bytes.
One set of functions serves both; ``weights`` says what an example adds to the denominator. Over several data sets the
score is the mean of their scores, however many examples each has; ``strata`` says which set an example belongs to.

Shapes: E examples, S seeds, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_core.errors import EvaluationError

__all__ = ["Comparison", "Interval", "compare_all", "detectable_difference", "interval", "paired"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
RESAMPLES = 2000
_CELLS = 2**22
"""Most numbers in one block of resamples."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A score and its percentile bootstrap interval.

    Attributes:
        estimate: The score on the examples themselves.
        low, high: Ends of the interval.
        examples, seeds: What it rests on.
    """

    estimate: float
    low: float
    high: float
    examples: int
    seeds: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two students on the same examples.

    Attributes:
        difference: Score of the first minus score of the second, with its interval.
        p_value: Share of swaps of the two, example by example, that give a difference as large (two-sided).
        adjusted: The same after Holm's correction for the number of comparisons made together.
        wins, ties, losses: Examples where the first scores higher, the same or lower, seeds averaged.
        detectable: Smallest true difference that these examples would show in four of five such tests.
    """

    difference: Interval
    p_value: float
    adjusted: float
    wins: int
    ties: int
    losses: int
    detectable: float


def interval(
    values: Floats,
    weights: Floats | None = None,
    *,
    strata: Integers | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Score and bootstrap interval.

    Examples are drawn with replacement, each data set's among themselves; so are seeds, independently, when there are
    several.

    Args:
        values: (E,) or (E, S), what each example adds to the numerator, for each seed.
        weights: (E,), what it adds to the denominator; unset counts examples.
        strata: (E,), number of the data set that it belongs to; unset takes all as one.
        level: Coverage of the interval.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        EvaluationError: There is no example, or a value is not a number.
    """
    table, denominators = _table(values, weights, strata)
    scores = _resample(table, denominators, strata, resamples, seed)
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Interval(_score(table, denominators), float(low), float(high), *table.shape)


def paired(
    first: Floats,
    second: Floats,
    weights: Floats | None = None,
    *,
    strata: Integers | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two students on the same examples, row by row; arguments as for `interval`.

    Seeds are paired by position when both have as many, and averaged first when they do not.

    Raises:
        EvaluationError: The examples are not the same number, or a value is not a number.
    """
    left, denominators = _table(first, weights, strata)
    right, _ = _table(second, weights, strata)
    if len(left) != len(right):
        raise EvaluationError(
            f"{len(left)} examples cannot be paired with {len(right)}", "compare scores of the same examples"
        )
    if left.shape != right.shape:
        left, right = left.mean(1, keepdims=True), right.mean(1, keepdims=True)
    gaps = left - right
    by_example = gaps.mean(1)
    # Both have the same denominators: the sum of the gaps is the difference of the two ratios but for a factor.
    p_value = _swap_test(by_example, resamples, seed)
    return Comparison(
        difference=interval(gaps, denominators, strata=strata, level=level, resamples=resamples, seed=seed),
        p_value=p_value,
        adjusted=p_value,
        wins=int((by_example > 0).sum()),
        ties=int((by_example == 0).sum()),
        losses=int((by_example < 0).sum()),
        detectable=detectable_difference(gaps, denominators, strata),
    )


def compare_all(
    scores: Mapping[str, Floats],
    weights: Floats | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
    **options: Any,
) -> dict[tuple[str, str], Comparison]:
    """Compare pairs of students, p-values corrected together (Holm).

    Args:
        scores: Values by student, rows in one order.
        weights: As for `interval`.
        pairs: Which to compare; unset takes every pair.
        options: As for `paired`.
    """
    pairs = list(combinations(scores, 2)) if pairs is None else pairs
    results = {pair: paired(scores[pair[0]], scores[pair[1]], weights, **options) for pair in pairs}
    floor = 0.0
    for rank, pair in enumerate(sorted(pairs, key=lambda pair: results[pair].p_value)):
        # Step by step from the clearest difference on: no later p is below an earlier one.
        floor = max(floor, min(1.0, results[pair].p_value * (len(pairs) - rank)))
        results[pair] = replace(results[pair], adjusted=floor)
    return results


def detectable_difference(gaps: Floats, weights: Floats | None = None, strata: Integers | None = None) -> float:
    """Smallest true difference found in 80 % of two-sided 5 % tests on this many examples with this spread."""
    table, denominators = _table(gaps, weights, strata)
    variances = [_variance(table[part], denominators[part]) for part in _parts(len(table), strata)]
    # Quantiles of the normal distribution: 97.5 % for the test, 80 % for its power.
    return float((1.959964 + 0.841621) * np.sqrt(np.sum(variances)) / len(variances))


def _variance(table: Floats, denominators: Floats) -> float:
    """Of the ratio of sums, from the spread of its examples; infinite where one example shows none."""
    if len(table) < 2:
        return float("inf")
    # By the delta method: how far each example moves the ratio, to first order.
    residuals = (table.mean(1) - _score(table, denominators) * denominators) / denominators.mean()
    return float(residuals.var(ddof=1) / len(table))


def _table(values: Floats, weights: Floats | None, strata: Integers | None = None) -> tuple[Floats, Floats]:
    """Numerators (E, S) and denominators (E,); those of each stratum sum to 1, so that data sets weigh alike."""
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if not table.size:
        raise EvaluationError("there are no scores to average", "evaluate at least one example with one seed")
    if not np.isfinite(table).all():
        raise EvaluationError("a score is not a number", "check the model that gave it")
    denominators = np.ones(len(table)) if weights is None else np.asarray(weights, dtype=np.float64)
    if strata is None:
        return table, denominators
    totals = np.bincount(strata, denominators)[strata]
    return table / totals[:, None], denominators / totals


def _parts(examples: int, strata: Integers | None) -> Iterator[Any]:
    """Index of the examples of each stratum."""
    if strata is None:
        yield slice(0, examples)
    else:
        for number in np.unique(strata):
            yield np.flatnonzero(strata == number)


def _score(table: Floats, denominators: Floats) -> float:
    return float(table.mean(1).sum() / denominators.sum())


def _resample(table: Floats, denominators: Floats, strata: Integers | None, resamples: int, seed: int) -> Floats:
    """(R,) scores of resampled tables: counts of examples and of seeds stand for the draws."""
    generator = np.random.default_rng(seed)
    examples, seeds = table.shape
    parts = list(_parts(examples, strata))
    block = max(1, _CELLS // examples)
    scores = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        draws = [_draws(table[part], denominators[part], size, generator) for part in parts]
        shares = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size) / seeds
        scores.append((sum(draws) / len(parts) * shares).sum(1))
    return np.concatenate(scores)


def _draws(table: Floats, denominators: Floats, size: int, generator: np.random.Generator) -> Floats:
    """(R, S) scores of one stratum, its examples drawn with replacement."""
    examples = len(table)
    counts = generator.multinomial(examples, np.full(examples, 1 / examples), size).astype(np.float64)
    return (counts @ table) / (counts @ denominators)[:, None]


def _swap_test(gaps: Floats, resamples: int, seed: int) -> float:
    """Two-sided p-value: signs of the differences are as likely to be either when the two are alike.

    All swaps are looked at where there are fewer of them than resamples.
    """
    # A swap that changes nothing sums in another order: rounding must not make it less extreme than what was seen.
    observed = abs(gaps.sum()) * (1 - 1e-12)
    if 2 ** len(gaps) <= resamples:
        # The bits of each number are one choice of who is swapped.
        every = np.arange(2 ** len(gaps))[:, None] >> np.arange(len(gaps)) & 1
        return float((np.abs((every * 2.0 - 1.0) @ gaps) >= observed).mean())
    generator = np.random.default_rng(seed)
    block = max(1, _CELLS // len(gaps))
    extreme = 0
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        signs = generator.integers(0, 2, (size, len(gaps)), dtype=np.int8) * 2.0 - 1.0
        extreme += int((np.abs(signs @ gaps) >= observed).sum())
    return (extreme + 1) / (resamples + 1)  # what was seen is one of the swaps, so p is never 0
