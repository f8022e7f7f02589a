from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from sra_core.config import ObjectiveConfig
from sra_core.objective import (
    build_objective,
    center_cosines,
    diagnose,
    gradient_norms,
    span_statistics,
    weighted_terms,
)
from tests.objective import plain
from tests.objective.make import make

NAMES = get_args(ObjectiveConfig.model_fields["name"].annotation)
LAYERS = [(6, 3), (7, 4)]


@pytest.mark.parametrize("name", NAMES)
def test_weighted_terms_add_up_to_the_loss_for_every_objective(name: str) -> None:
    world = make(same=name in ("fkl", "rkl", "js", "skl"))
    objective = build_objective(
        ObjectiveConfig(name=name, layers=LAYERS, trajectory=0.5, alpha=0.3), world.context
    ).double()
    for progress in (0.0, 0.4):
        objective.progress = progress
        terms = objective(world.batch, world.student)
        weighted = weighted_terms(objective, terms)
        torch.testing.assert_close(sum(weighted.values()), terms["loss"])
        assert "spans" not in weighted


@pytest.mark.parametrize("name", [name for name in NAMES if name != "sft"])
@pytest.mark.parametrize(("annealing", "share"), [(1.0, 0.7 * 0.25), (0.4, 0.7 * 0.7), (0.0, 0.7)])
def test_the_teacher_fades_out_for_every_objective(name: str, annealing: float, share: float) -> None:
    """At three quarters of the training, from 0.7; cross-entropy gets what the teacher loses."""
    world = make(same=name in ("fkl", "rkl", "js", "skl"))
    objective = build_objective(
        ObjectiveConfig(name=name, layers=LAYERS, alpha=0.3, annealing=annealing), world.context
    )
    objective = objective.double()
    before = objective(world.batch, world.student)
    taught = (before["loss"] - 0.3 * before["ce"]) / 0.7
    objective.progress = 0.75
    after = objective(world.batch, world.student)
    torch.testing.assert_close(after["loss"], (1 - share) * before["ce"] + share * taught)


def test_gradient_norms_are_those_of_each_term_and_leave_the_backward_alone() -> None:
    world = make()
    objective = build_objective(ObjectiveConfig(layers=LAYERS), world.context).double()
    leaves = list(world.leaves.values())
    terms = objective(world.batch, world.student)
    expected = torch.autograd.grad(terms["loss"], leaves, retain_graph=True)
    norms = gradient_norms(objective, terms, leaves)
    assert set(norms) == {"ce", "cosine", "geometry", "logit"}
    for name, norm in norms.items():
        weight = objective.weights()[name]
        grads = torch.autograd.grad(weight * terms[name], leaves, retain_graph=True, allow_unused=True)
        total = sum(grad.square().sum() for grad in grads if grad is not None)
        assert norm.item() == pytest.approx(total.sqrt().item(), rel=1e-5)
    terms["loss"].backward()
    for leaf, grad in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, grad)


def test_center_cosines_are_means_over_spans_of_the_projected_centres() -> None:
    world = make()
    objective = build_objective(ObjectiveConfig(layers=LAYERS), world.context).double()
    found = center_cosines(objective, world.batch, world.student)
    assert set(found) == {"center_cosine_6_3", "center_cosine_7_4"}
    batch, student, values = world.batch, world.student, []
    for row in range(batch.texts):
        inside, text = (batch.span_text == row).nonzero()[:, 0], world.text(row)
        own, _ = plain.pool(student.hidden[4][text], student.weights[4][text], world.ranges(row))
        projected = own @ objective.projectors[1].weight.T
        values += [plain.cosine(x, y) for x, y in zip(projected, batch.teacher[7].centers[inside], strict=True)]
    torch.testing.assert_close(found["center_cosine_7_4"], torch.stack(values).mean().detach())
    assert center_cosines(build_objective(ObjectiveConfig(name="sft"), world.context), batch, student) == {}


def test_training_the_cosine_term_raises_the_cosine() -> None:
    world = make()
    config = ObjectiveConfig(layers=LAYERS, alpha=0.0, geometry=0.0, logit=0.0)
    objective = build_objective(config, world.context).double()
    before = center_cosines(objective, world.batch, world.student)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        objective(world.batch, world.student)["loss"].backward()
        optimizer.step()
    after = center_cosines(objective, world.batch, world.student)
    assert all(after[name] > before[name] + 0.1 for name in before)


def test_span_statistics() -> None:
    world = make(most_spans=(3, 0, 1))
    batch = world.batch
    batch.teacher[7].mass = torch.ones(len(batch.span_text), dtype=torch.float64)
    found = span_statistics(batch, 13, 26)
    covered = sum(end - begin for begin, end in batch.span_range.tolist())
    assert found["spans_per_text"] == pytest.approx(len(batch.span_text) / 3)
    assert found["covered_tokens"] == pytest.approx(covered / int((batch.labels != -100).sum()))
    assert found["effective_spans"] == pytest.approx(1.0)
    assert found["shared_vocabulary"] == pytest.approx(0.5)
    batch.teacher[7].mass[0] = 1e6
    assert span_statistics(batch, 13, 26)["effective_spans"] < 1
    empty = make(most_spans=(0,))
    assert span_statistics(empty.batch, 13, 26)["effective_spans"] == 0


@pytest.mark.parametrize(
    ("fields", "power"),
    [
        ({}, 0.0),
        ({"weighted_loss": True}, 1.0),
        ({"weighted_loss": True, "mass_power": 0.5}, 0.5),
        ({"name": "uld"}, 0.0),
    ],
)
def test_effective_spans_are_those_of_the_loss_weights(fields: dict[str, Any], power: float) -> None:
    world = make()
    objective = build_objective(ObjectiveConfig(**{"layers": LAYERS, **fields}), world.context).double()
    terms = objective(world.batch, world.student)
    found = diagnose(objective, world.batch, world.student, terms, [world.student.hidden[4]], 13)
    expected = span_statistics(world.batch, 13, 26, power)["effective_spans"]
    assert found["effective_spans"] == pytest.approx(expected)
    assert (found["effective_spans"] == pytest.approx(1.0)) is (power == 0)


@pytest.mark.parametrize("name", ["sra", "uld", "sft"])
def test_a_diagnosis_has_the_same_names_whatever_the_batch_holds(name: str) -> None:
    found = []
    for spans in ((3, 0, 1), (0,)):
        world = make(most_spans=spans)
        objective = build_objective(ObjectiveConfig(name=name, layers=LAYERS), world.context).double()
        terms = objective(world.batch, world.student)
        leaves = list(world.leaves.values())
        found.append(diagnose(objective, world.batch, world.student, terms, leaves, 13))
    whole, empty = found
    assert whole.keys() == empty.keys()
    assert whole["gradient_norm/ce"] > 0
    assert whole["shared_vocabulary"] == pytest.approx(13 / len(world.student.head.weight))
    assert ("center_cosine_7_4" in whole) == (name == "sra")
    if name == "sra":
        assert (whole["gradient_norm/logit"] > 0, empty["gradient_norm/logit"]) == (True, 0)


def test_a_diagnosis_draws_no_random_number_and_leaves_the_graph() -> None:
    world = make()
    objective = build_objective(ObjectiveConfig(layers=LAYERS), world.context).double()
    terms, state = objective(world.batch, world.student), torch.get_rng_state()
    diagnose(objective, world.batch, world.student, terms, world.leaves.values(), 13)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(leaf.grad is None for leaf in world.leaves.values())
    assert all(parameter.grad is None for parameter in objective.parameters())
    terms["loss"].backward()
