"""The projector's fitted start against a plain least-squares in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sra_core.objective.fit import RIDGES, RidgeFit


def spans(count: int, seed: int, d_s: int = 6, d_t: int = 9, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Student's centres and a linear map of them, of many lengths."""
    random = np.random.default_rng(seed)
    own = random.normal(size=(count, d_s)) * random.uniform(0.1, 10, (count, 1))
    carried = own @ np.random.default_rng(99).normal(size=(d_s, d_t))
    return own, carried * random.uniform(0.5, 2, (count, 1)) + noise * random.normal(size=(count, d_t))


def fitted(train: tuple[np.ndarray, np.ndarray], held: tuple[np.ndarray, np.ndarray], pieces: int = 3) -> RidgeFit:
    fit = RidgeFit()
    for own, other in zip(np.array_split(train[0], pieces), np.array_split(train[1], pieces), strict=True):
        fit.add(torch.from_numpy(own).float(), torch.from_numpy(other).float())
    fit.hold_out(*(torch.from_numpy(part).float() for part in held))
    return fit


def plain(own: np.ndarray, other: np.ndarray, ridge: float) -> np.ndarray:
    """(d_T, d_S) by least squares on the rows with the ridge's own rows below them."""
    own, other = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (own, other))
    weight = ridge * np.mean(np.sum(own**2, axis=0))
    below = np.sqrt(weight) * np.eye(own.shape[1])
    stacked = np.concatenate([own, below]), np.concatenate([other, np.zeros((len(below), other.shape[1]))])
    return np.linalg.lstsq(*stacked, rcond=None)[0].T


def test_the_map_is_the_ridge_least_squares_solution() -> None:
    train, held = spans(200, 1, noise=0.5), spans(50, 2, noise=0.5)
    found = fitted(train, held).solve()
    own, other = (part.astype(np.float32).astype(np.float64) for part in train)
    np.testing.assert_allclose(found.weight, plain(own, other, found.ridge), atol=1e-5)
    assert found.identity is None


def test_the_ridge_is_the_one_that_carries_held_out_spans_best() -> None:
    train, held = spans(12, 3, noise=3.0), spans(400, 4)
    found = fitted(train, held).solve()
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in held]
    cosines = {}
    for ridge in RIDGES:
        mapped = unit[0] @ plain(*train, ridge).T
        cosines[ridge] = float(np.mean(np.sum(mapped * unit[1], 1) / np.linalg.norm(mapped, axis=1)))
    assert found.ridge == max(cosines, key=lambda ridge: cosines[ridge])
    assert found.cosine == pytest.approx(max(cosines.values()), abs=1e-4)


def test_the_pieces_that_spans_come_in_do_not_matter() -> None:
    train, held = spans(90, 5), spans(20, 6)
    one, many = fitted(train, held, 1).solve(), fitted(train, held, 9).solve()
    torch.testing.assert_close(one.weight, many.weight, rtol=1e-6, atol=1e-6)


def test_what_is_linear_is_found_and_the_identity_is_judged_where_widths_are_equal() -> None:
    own, _ = spans(300, 7)
    found = fitted((own[:250], own[:250]), (own[250:], own[250:])).solve()
    assert found.cosine == pytest.approx(1, abs=1e-5)
    assert found.identity == pytest.approx(1, abs=1e-6)
    turned = own[:, ::-1].copy()
    found = fitted((own[:250], turned[:250]), (own[250:], turned[250:])).solve()
    assert found.cosine > 0.99
    assert found.identity is not None
    assert found.identity < 0.5


def test_lengths_count_where_they_are_not_taken_away() -> None:
    own, other = (part.astype(np.float32).astype(np.float64) for part in spans(200, 8, noise=0.5))
    fit = RidgeFit(unit=False)
    fit.add(torch.from_numpy(own), torch.from_numpy(other))
    fit.hold_out(torch.from_numpy(own), torch.from_numpy(other))
    found = fit.solve()
    weight = found.ridge * np.mean(np.sum(own**2, axis=0))
    expected = np.linalg.solve(own.T @ own + weight * np.eye(own.shape[1]), own.T @ other).T
    np.testing.assert_allclose(found.weight, expected, atol=1e-4)


def test_nothing_to_fit_to_is_refused() -> None:
    with pytest.raises(ValueError, match="held out"):
        RidgeFit().solve()
