from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sra_core.objective import span_cosine_loss, span_geometry_loss, span_trajectory_loss, span_weights, terms
from tests.objective import plain
from tests.objective.make import NARROW, WIDE, assert_same

COUNTS = [(5,), (1,), (3, 0, 4), (0, 2), (1, 1, 7), (2, 0)]


def case(counts: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Student centres, teacher centres, mass, map and text of texts with these numbers of spans."""
    rng = torch.Generator().manual_seed(seed)
    spans = sum(counts)
    student = torch.randn(spans, NARROW, generator=rng, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(spans, WIDE, generator=rng, dtype=torch.float64)
    mass = torch.rand(spans, generator=rng, dtype=torch.float64) + 0.01
    linear = torch.randn(WIDE, NARROW, generator=rng, dtype=torch.float64, requires_grad=True)
    text = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return student, teacher, mass, linear, text


def texts(text: Tensor, counts: tuple[int, ...]) -> list[Tensor]:
    """Indices of the spans of each text that has any."""
    return [(text == row).nonzero()[:, 0] for row in range(len(counts)) if counts[row]]


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("counts", COUNTS)
def test_cosine_loss_equals_a_loop(counts: tuple[int, ...], p: float) -> None:
    student, teacher, mass, linear, text = case(counts)
    fast = span_cosine_loss(student, teacher, mass, lambda c: c @ linear.T, p, text, len(counts))
    slow = sum(
        plain.cosine_loss(student[i], teacher[i], mass[i], lambda c: c @ linear.T, p) for i in texts(text, counts)
    )
    assert_same(fast, slow / len(counts), {"student": student, "map": linear})


@pytest.mark.parametrize("at_once", [1, 7, 1 << 22])
@pytest.mark.parametrize("p", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("counts", COUNTS)
def test_geometry_loss_equals_a_loop_over_pairs(
    counts: tuple[int, ...], p: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, "PAIRS_AT_ONCE", at_once)
    student, teacher, mass, _, text = case(counts)
    fast = span_geometry_loss(student, teacher, mass, p, text, len(counts))
    slow = sum(plain.geometry_loss(student[i], teacher[i], mass[i], p) for i in texts(text, counts))
    assert_same(fast, slow / len(counts), {"student": student})


@pytest.mark.parametrize("counts", COUNTS)
def test_trajectory_loss_equals_a_loop(counts: tuple[int, ...]) -> None:
    layers = [case(counts, seed) for seed in range(3)]
    students, teachers, masses = ([layer[k] for layer in layers] for k in range(3))
    maps = [lambda c, m=layer[3]: c @ m.T for layer in layers]
    text = layers[0][4]
    fast = span_trajectory_loss(students, teachers, masses, maps, 1.0, text, len(counts))
    slow = sum(
        plain.trajectory_loss([s[i] for s in students], [t[i] for t in teachers], [m[i] for m in masses], maps, 1.0)
        for i in texts(text, counts)
    )
    leaves = {f"student {k}": layer[0] for k, layer in enumerate(layers)}
    leaves |= {f"map {k}": layer[3] for k, layer in enumerate(layers)}
    assert_same(fast, slow / len(counts), leaves)


def test_one_text_needs_no_index() -> None:
    student, teacher, mass, linear, text = case((4,))
    projector = lambda c: c @ linear.T  # noqa: E731
    for alone, indexed in [
        (
            span_cosine_loss(student, teacher, mass, projector),
            span_cosine_loss(student, teacher, mass, projector, 1.0, text, 1),
        ),
        (span_geometry_loss(student, teacher, mass), span_geometry_loss(student, teacher, mass, 1.0, text, 1)),
    ]:
        assert alone == indexed
        assert alone > 0


def test_golden_numbers() -> None:
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    mass = torch.tensor([0.2, 0.2, 0.4])
    cosine = 0.25 * 0 + 0.25 * 1 + 0.5 * (1 - 0.5**0.5)
    assert span_cosine_loss(student, teacher, mass, torch.nn.Identity()).item() == pytest.approx(cosine)
    # pi = 1/4, 1/4, 1/2; pairs (12) 1/16, (13) 1/8, (23) 1/8, each twice: total 5/8
    gaps = {(0, 1): (0 - 1) ** 2, (0, 2): 0.5, (1, 2): 0.5}
    geometry = 2 * (gaps[0, 1] / 16 + gaps[0, 2] / 8 + gaps[1, 2] / 8) / (5 / 8)
    assert span_geometry_loss(student, teacher, mass).item() == pytest.approx(geometry)


def test_a_text_without_spans_counts_and_contributes_nothing() -> None:
    student, teacher, mass, linear, text = case((3,))
    projector = lambda c: c @ linear.T  # noqa: E731
    for loss in (
        lambda n: span_cosine_loss(student, teacher, mass, projector, 1.0, text, n),
        lambda n: span_geometry_loss(student, teacher, mass, 1.0, text, n),
    ):
        torch.testing.assert_close(loss(4), loss(1) / 4)


def test_no_spans_at_all_is_zero_with_zero_gradient() -> None:
    student, teacher, mass, linear, text = case((0, 0))
    for value in (
        span_cosine_loss(student, teacher, mass, lambda c: c @ linear.T, 1.0, text, 2),
        span_geometry_loss(student, teacher, mass, 1.0, text, 2),
    ):
        assert value == 0
    span_cosine_loss(student, teacher, mass, lambda c: c @ linear.T, 1.0, text, 2).backward()
    assert linear.grad is not None
    assert linear.grad.abs().sum() == 0


def test_weights_survive_tiny_masses_and_high_powers() -> None:
    mass = torch.tensor([1e-20, 3e-20, 0.0, 0.0])
    text = torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(span_weights(mass, 3.0, text, 2), torch.tensor([1 / 28, 27 / 28, 0.0, 0.0]))
    torch.testing.assert_close(span_weights(mass, 0.0, text, 2), torch.full((4,), 0.5))


def test_one_heavy_span_does_not_cancel_the_pair_weights() -> None:
    student, teacher, _, _, _ = case((3,))
    student, teacher = student.detach().float(), teacher.float()
    mass = torch.tensor([1.0, 1e-6, 2e-6])
    expected = plain.geometry_loss(student.double(), teacher.double(), mass.double(), 1.0)
    torch.testing.assert_close(span_geometry_loss(student, teacher, mass).double(), expected, rtol=1e-4, atol=0)


def test_half_precision_centres_lose_no_accuracy_beyond_their_rounding() -> None:
    student, teacher, mass, _, _ = case((40,))
    rounded = student.detach().to(torch.bfloat16)
    value = span_geometry_loss(rounded, teacher.to(torch.bfloat16), mass.float())
    exact = span_geometry_loss(rounded.double(), teacher.to(torch.bfloat16).double(), mass.float().double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)


def test_a_perfect_student_has_no_loss() -> None:
    student, _, mass, _, text = case((3, 4))
    for scale in (1.0, 7.0):
        assert span_cosine_loss(student, scale * student, mass, torch.nn.Identity(), 1.0, text, 2).abs() < 1e-12
        assert span_geometry_loss(student, scale * student, mass, 1.0, text, 2).abs() < 1e-24


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 99), st.floats(0, 3))
def test_a_batch_is_the_mean_of_its_texts_and_ignores_scale(counts: list[int], seed: int, p: float) -> None:
    student, teacher, mass, linear, text = case(tuple(counts), seed)
    parts = texts(text, tuple(counts))
    projector = lambda c: c @ linear.T  # noqa: E731
    batch = span_geometry_loss(student, teacher, mass, p, text, len(counts))
    alone = sum(
        (span_geometry_loss(student[i], teacher[i], mass[i], p) for i in parts), torch.zeros((), dtype=torch.float64)
    )
    torch.testing.assert_close(batch, alone / len(counts))
    batch = span_cosine_loss(student, teacher, mass, projector, p, text, len(counts))
    scaled = span_cosine_loss(3 * student, 0.2 * teacher, 7 * mass, projector, p, text, len(counts))
    torch.testing.assert_close(batch, scaled)
    assert 0 <= batch <= 2
