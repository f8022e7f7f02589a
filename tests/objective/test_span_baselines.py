from __future__ import annotations

from typing import Any

import pytest
import torch

from sra_core.config import ObjectiveConfig
from sra_core.errors import ConfigError
from sra_core.objective import TeacherNeeds, build_objective, teacher_needs
from tests.objective import plain_span_baselines as plain
from tests.objective.make import NARROW, World, assert_same, make

NAMES = ["strict_kl", "gold", "xtoken"]
WORLDS: list[dict[str, Any]] = [{}, {"seed": 9, "bias": True, "softcap": 3.0}, {"seed": 6, "most_spans": (1, 0, 6)}]


def terms_of(world: World, name: str, **settings: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    objective = build_objective(ObjectiveConfig(name=name, alpha=0.3, **settings), world.context).double()
    return objective(world.batch, world.student), world.leaves


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("settings", WORLDS, ids=str)
class TestAgainstPlain:
    @pytest.mark.parametrize("direction", ["forward", "reverse"])
    @pytest.mark.parametrize("top_k", [None, 4])
    def test_strict_kl(self, settings: dict[str, Any], direction: str, top_k: int | None) -> None:
        world = make(**settings)
        terms, leaves = terms_of(world, "strict_kl", temperature=1.5, direction=direction, top_k=top_k)
        assert_same(terms["strict_kl"], plain.strict_kl(world, 1.5, direction == "reverse", top_k), leaves)

    @pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
    def test_gold(self, settings: dict[str, Any], beta: float) -> None:
        world = make(**settings)
        terms, leaves = terms_of(world, "gold", beta=beta)
        assert_same(terms["gold"], plain.gold(world, beta), leaves)

    def test_gold_counts_a_token_that_stands_for_several_once(self, settings: dict[str, Any]) -> None:
        world = make(**settings)
        wanted = plain.gold(world, 0.5)
        own, theirs = world.context.shared_student_ids, world.context.shared_teacher_ids
        spare = next(each for each in range(len(world.student.head.weight)) if each not in own.tolist())
        world.context.shared_student_ids = torch.cat([own, own.new_tensor([spare])])
        world.context.shared_teacher_ids = torch.cat([theirs, theirs[2:3]])
        terms, leaves = terms_of(world, "gold", beta=0.5)
        assert_same(terms["gold"], wanted, leaves)

    @pytest.mark.parametrize("top_k", [None, 9])
    def test_xtoken(self, settings: dict[str, Any], top_k: int | None) -> None:
        world = make(**settings)
        terms, leaves = terms_of(world, "xtoken", temperature=1.5, top_k=top_k)
        assert_same(terms["xtoken"], plain.xtoken(world, 1.5, top_k), leaves)


def test_the_worlds_hold_spans_of_one_and_of_several_tokens() -> None:
    sizes = [(len(own), len(theirs)) for settings in WORLDS for own, theirs in plain.spans(make(**settings))]
    assert (1, 1) in sizes
    assert any(min(size) > 1 for size in sizes)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_learn_is_zero_without_nan(name: str) -> None:
    world = make()
    world.batch.labels.fill_(-100)
    world.batch.teacher_labels.fill_(-100)
    world.recount()
    terms, leaves = terms_of(world, name)
    assert terms["loss"] == 0
    grads = torch.autograd.grad(terms["loss"], list(leaves.values()), allow_unused=True)
    assert all(not grad.any() for grad in grads if grad is not None)


@pytest.mark.parametrize(("name", "settings"), [("strict_kl", {}), ("gold", {}), ("xtoken", {"temperature": 1.0})])
def test_a_teacher_equal_to_the_student_is_a_minimum(name: str, settings: dict[str, Any]) -> None:
    world = make(same=True)
    world.context.teacher_width = NARROW
    world.context.teacher_full_head = world.context.teacher_head = world.student.head
    world.context.student_in_teacher = torch.eye(len(world.student.head.weight), dtype=torch.float64).to_sparse()
    world.batch.teacher_states = {7: world.student.final}
    world.batch.teacher_range = world.batch.span_range
    single = (world.batch.span_range.diff() == 1)[:, 0]
    world.batch = world.batch.with_spans(single)
    assert single.any()
    terms, _ = terms_of(world, name, **settings)
    assert terms[name].abs() < 1e-9


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("strict_kl", "teacher_head"),
        ("gold", "teacher_full_head"),
        ("xtoken", "teacher_full_head"),
        ("xtoken", "student_in_teacher"),
    ],
)
def test_a_context_without_what_is_read_is_refused(name: str, missing: str) -> None:
    world = make()
    setattr(world.context, missing, None)
    with pytest.raises(ConfigError):
        terms_of(world, name)


@pytest.mark.parametrize("name", NAMES)
def test_ranges_and_states_that_the_batch_lacks_are_refused(name: str) -> None:
    world = make()
    world.batch.teacher_range = None
    with pytest.raises(ConfigError, match="token ranges of the spans"):
        terms_of(world, name)
    world.batch.teacher_states = None
    with pytest.raises(ConfigError, match="holds span centres only"):
        terms_of(world, name)


def test_what_the_cache_must_hold() -> None:
    assert teacher_needs(ObjectiveConfig(name="strict_kl")) == TeacherNeeds(token_states=True, shared_head=True)
    for name in ("gold", "xtoken"):
        assert teacher_needs(ObjectiveConfig(name=name)) == TeacherNeeds(token_states=True, full_head=True)


def test_spans_left_out_are_gone_from_every_term() -> None:
    """The terms of a batch without its spans of several tokens are those of a batch that never had them."""
    world = make(seed=9)
    single = (world.batch.span_range.diff() == 1)[:, 0] & (world.batch.teacher_range.diff() == 1)[:, 0]
    assert 0 < single.sum() < len(single)
    objective = build_objective(
        ObjectiveConfig(layers=world.context.layers, weighted_loss=True), world.context
    ).double()
    whole = objective(world.batch, world.student)
    some = objective(world.batch.with_spans(single), world.student)
    assert some["spans"] == single.sum()
    assert some["ce"] == whole["ce"]
    assert not torch.isclose(some["cosine"], whole["cosine"])
    mass = world.batch.teacher[7].mass * single
    world.batch.teacher[7].mass = world.batch.teacher[6].mass = mass
    assert torch.isclose(objective(world.batch, world.student)["geometry"], some["geometry"])
