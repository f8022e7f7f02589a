from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sra_core.config import ObjectiveConfig
from sra_core.errors import AlignmentError, ConfigError
from sra_core.objective import TeacherNeeds, build_objective, student_layers, teacher_needs
from sra_core.objective.alm import binary_kl
from sra_core.objective.divergences import DIVERGENCES, sorted_distance
from sra_core.objective.fit import RidgeFit
from sra_core.objective.mined import align_tokens, edit_distances
from sra_core.objective.multilevel_ot import sinkhorn_distance
from sra_core.objective.needs import ON_ONE_VOCABULARY
from sra_core.objective.tokens import student_side, teacher_side
from tests.objective import plain, plain_baselines
from tests.objective.make import NARROW, WIDE, World, assert_same, make

ACROSS = ["uld", "mined", "dskd", "multilevel_ot", "alm"]
EQUAL = ["fkl", "rkl", "js", "skl"]
WORLDS: list[dict[str, Any]] = [
    {},
    {"seed": 2, "bias": True, "softcap": 3.0},
    {"seed": 4, "tied": False, "most_spans": (1, 0, 6)},
]


def terms_of(world: World, name: str, **settings: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], torch.nn.Module]:
    objective = build_objective(ObjectiveConfig(name=name, alpha=0.3, **settings), world.context).double()
    return objective(world.batch, world.student), world.leaves | dict(objective.named_parameters()), objective


def check(world: World, terms: dict[str, Tensor], expected: dict[str, Tensor], leaves: dict[str, Tensor]) -> None:
    """Terms and loss equal the plain ones, with their gradients."""
    head = world.student.head
    if head.softcap is None:
        ce = plain.cross_entropy(world.student.final, world.batch.labels, world.batch.starts, head.weight, head.bias)
        assert_same(terms["ce"], ce, leaves)
    assert set(terms) == {"loss", "ce", "spans", *expected}
    for name, value in expected.items():
        assert value.abs() > 1e-6, f"{name} tests nothing"
        assert_same(terms[name], value, leaves)
    assert_same(terms["loss"], 0.3 * terms["ce"] + 0.7 * sum(expected.values()), leaves)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("settings", WORLDS, ids=str)
class TestAgainstPlain:
    def test_uld(self, settings: dict[str, Any]) -> None:
        world = make(**settings)
        terms, leaves, _ = terms_of(world, "uld")
        check(world, terms, {"uld": plain_baselines.uld(world)}, leaves)

    def test_mined(self, settings: dict[str, Any]) -> None:
        world = make(**settings)
        terms, leaves, objective = terms_of(world, "mined", temperature=1.5)
        check(world, terms, {"mined": plain_baselines.mined(world, 1.5)}, leaves)
        assert any((found >= 0).any() for found in objective.known.values()), "no token is aligned"
        assert any((found < 0).any() for found in objective.known.values()), "every token is aligned"

    def test_dskd(self, settings: dict[str, Any]) -> None:
        world = make(**settings)
        best_tokens_right_sometimes(world)
        terms, leaves, objective = terms_of(world, "dskd", temperature=1.5)
        check(world, terms, plain_baselines.dskd(world, objective, 1.5), leaves)

    def test_multilevel_ot(self, settings: dict[str, Any]) -> None:
        world = make(**settings)
        terms, leaves, _ = terms_of(world, "multilevel_ot")
        check(world, terms, plain_baselines.multilevel_ot(world), leaves)

    def test_alm(self, settings: dict[str, Any]) -> None:
        world = make(**settings)
        terms, leaves, _ = terms_of(world, "alm")
        check(world, terms, {"alm": plain_baselines.alm(world)}, leaves)

    @pytest.mark.parametrize("name", EQUAL)
    def test_divergences(self, name: str, settings: dict[str, Any]) -> None:
        world = make(same=True, **settings)
        terms, leaves, _ = terms_of(world, name, temperature=1.5, skew=0.2)
        check(world, terms, {name: plain_baselines.divergence(world, name, 1.5, 0.2)}, leaves)


def best_tokens_right_sometimes(world: World) -> None:
    """Point the labels of one text at what an untrained projector predicts, so that the masked KL is not empty."""
    objective = build_objective(ObjectiveConfig(name="dskd"), world.context).double()
    torch.manual_seed(0)
    for _ in range(30):
        if objective(world.batch, world.student)["teacher_to_student"] > 1e-4:
            return
        labels = world.batch.labels
        places = (labels != -100).nonzero()[:, 0]
        pick = places[torch.randint(len(places), (len(places) // 2,))]
        labels[pick] = torch.randint(len(world.student.head.weight), (len(pick),))
    raise AssertionError("no label was ever the best token")


@pytest.mark.parametrize("name", [*ACROSS, *EQUAL])
def test_nothing_to_learn_is_zero_without_nan(name: str) -> None:
    world = make(same=name in EQUAL)
    world.batch.labels.fill_(-100)
    world.batch.teacher_labels.fill_(-100)
    world.recount()
    terms, leaves, _ = terms_of(world, name)
    assert terms["loss"] == 0
    grads = torch.autograd.grad(terms["loss"], list(leaves.values()), allow_unused=True)
    assert all(not grad.any() for grad in grads if grad is not None)


@pytest.mark.parametrize("name", [*ACROSS, *EQUAL])
def test_one_text_without_a_response_is_passed_over(name: str) -> None:
    world = make(same=name in EQUAL)
    world.batch.labels[world.text(1)] = -100
    world.batch.teacher_labels[world.teacher_text(1)] = -100
    world.recount()
    terms, leaves, _ = terms_of(world, name)
    grads = torch.autograd.grad(terms["loss"], list(leaves.values()), allow_unused=True)
    assert torch.isfinite(terms["loss"])
    assert all(torch.isfinite(grad).all() for grad in grads if grad is not None)


@pytest.mark.parametrize("name", ["uld", "alm", *EQUAL])
def test_a_teacher_equal_to_the_student_is_a_minimum(name: str) -> None:
    """With the teacher's states, head and tokens the student's own, the divergence is 0."""
    world = make(same=True)
    world.context.teacher_width = NARROW
    world.context.teacher_full_head = world.context.teacher_head = world.student.head
    world.batch.teacher_states = {7: world.student.final}
    world.batch.teacher_range = world.batch.span_range
    terms, _, _ = terms_of(world, name)
    assert terms[name].abs() < 1e-9


def test_temperature_and_skew_change_their_terms() -> None:
    world = make(same=True)
    skl = {skew: terms_of(world, "skl", skew=skew)[0]["skl"].item() for skew in (0.0, 0.1, 0.5)}
    assert skl[0.0] > skl[0.1] > skl[0.5] > 0
    assert skl[0.0] == pytest.approx(terms_of(world, "fkl")[0]["fkl"].item())
    for name in [*EQUAL, "mined", "dskd"]:
        hot, cold = (
            sum(v for k, v in terms_of(world, name, temperature=t)[0].items() if k != "spans") for t in (4.0, 1.0)
        )
        assert not torch.isclose(hot, cold)


def test_divergences_refuse_other_tokenizers_at_build_time_and_other_tokens_at_run_time() -> None:
    with pytest.raises(ConfigError, match="needs the same tokenizer"):
        build_objective(ObjectiveConfig(name="fkl"), make().context)
    world = make(same=True)
    world.batch.teacher_labels = world.batch.teacher_labels.clone()
    world.batch.teacher_labels[world.batch.teacher_labels >= 0] = 0
    with pytest.raises(AlignmentError, match="tokens differ"):
        terms_of(world, "fkl")


@pytest.mark.parametrize("name", [*ACROSS, *EQUAL])
def test_what_the_cache_lacks_is_refused_with_a_remedy(name: str) -> None:
    config = ObjectiveConfig(name=name)
    assert teacher_needs(config).token_states
    world = make(same=name in EQUAL)
    world.batch.teacher_states = None
    with pytest.raises(ConfigError, match="holds span centres only"):
        terms_of(world, name)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("uld", "teacher_full_head"),
        ("dskd", "teacher_full_head"),
        ("dskd", "teacher_embedding"),
        ("alm", "teacher_full_head"),
        ("multilevel_ot", "teacher_full_head"),
        ("mined", "teacher_head"),
        ("mined", "teacher_tokens"),
        ("fkl", "teacher_head"),
    ],
)
def test_a_context_without_what_the_baseline_reads_is_refused(name: str, missing: str) -> None:
    world = make(same=name in EQUAL)
    setattr(world.context, missing, None)
    with pytest.raises(ConfigError):
        terms_of(world, name)


def test_the_objectives_on_one_vocabulary_are_known_without_torch() -> None:
    assert set(ON_ONE_VOCABULARY) == set(DIVERGENCES)


def test_needs_of_sra_and_sft() -> None:
    layers = [(6, 3), (6, 2), (7, 4)]
    needs = teacher_needs(ObjectiveConfig(layers=layers, weighted_pooling=False))
    assert needs == TeacherNeeds((6, 7), weighted_pooling=False, shared_head=True)
    assert student_layers(ObjectiveConfig(layers=layers)) == (3, 2, 4)
    assert teacher_needs(ObjectiveConfig(name="sft")) == TeacherNeeds()
    assert student_layers(ObjectiveConfig(name="uld")) == ()
    assert not teacher_needs(ObjectiveConfig(logit=0)).shared_head


def test_sinkhorn_transport_has_uniform_marginals_and_ignores_padding() -> None:
    rng = torch.Generator().manual_seed(0)
    left, right = torch.rand(1, 3, 4, generator=rng), torch.rand(1, 5, 4, generator=rng)
    ones = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 5, dtype=torch.bool)
    alone = sinkhorn_distance(left, ones[0], right, ones[1])
    padded = torch.cat([left, 9 * torch.ones(1, 2, 4)], 1)
    mask = torch.tensor([[True, True, True, False, False]])
    torch.testing.assert_close(sinkhorn_distance(padded, mask, right, ones[1]), alone)
    assert sinkhorn_distance(left, torch.zeros(1, 3, dtype=torch.bool), right, ones[1]) == 0
    point = torch.ones(1, 2, 4)
    two = torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(sinkhorn_distance(point, two, 3 * point, two), torch.tensor([8.0]))


def test_binary_kl_is_stable_near_its_limits() -> None:
    log_p = torch.tensor([0.0, -1e-9, -1e-3, -5.0, -80.0])
    assert torch.isfinite(binary_kl(log_p, log_p.flip(0))).all()
    assert binary_kl(log_p, log_p).abs().max() == 0
    half = torch.tensor(0.5).log()
    expected = 0.5 * torch.log(torch.tensor(0.5 / 0.9)) + 0.5 * torch.log(torch.tensor(0.5 / 0.1))
    torch.testing.assert_close(binary_kl(half, torch.tensor(0.9).log()), expected, rtol=1e-4, atol=0)


WORDS = st.text(alphabet="ab ĠéX", max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6), st.lists(WORDS, min_size=1, max_size=6))
def test_token_alignment_equals_plain_recursion(student: list[str], teacher: list[str]) -> None:
    found = edit_distances(student, teacher)
    for i, a in enumerate(student):
        for j, b in enumerate(teacher):
            assert found[i, j] == plain_baselines.levenshtein(a, b)
    path = [None if place < 0 else int(place) for place in align_tokens(student, teacher)]
    assert path == plain_baselines.align(student, teacher)


def test_token_alignment_of_split_words() -> None:
    student, teacher = ["the", " distill", "ation", " works"], ["the", " dist", "illation", " works"]
    path = align_tokens(student, teacher)
    assert path[0] == 0
    assert path[-1] == 3
    assert align_tokens([], ["a"]).tolist() == []
    assert align_tokens(["a"], []).tolist() == [-1]


def test_dskd_projectors_have_the_papers_shapes() -> None:
    objective = build_objective(ObjectiveConfig(name="dskd"), make().context)
    shapes = {name: tuple(value.shape) for name, value in objective.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "query.weight": (2 * WIDE, 2 * NARROW),
        "to_student.weight": (NARROW, WIDE),
        "to_teacher.weight": (WIDE, NARROW),
    }


def test_dskd_is_fitted_to_spans_of_one_token_on_both_sides() -> None:
    world = make(seed=3, most_spans=(9, 0, 8, 9))
    for ranges in (world.batch.span_range, world.batch.teacher_range):
        assert ranges is not None
        ranges[::2, 1] = ranges[::2, 0] + 1
    objective = build_objective(ObjectiveConfig(name="dskd"), world.context).double()
    found = {each.title: each for each in objective.to_fit(world.batch, world.student)}
    pairs = plain_baselines.dskd_pairs(world)
    assert found.keys() == pairs.keys()
    for name, (inputs, targets) in pairs.items():
        assert len(inputs) > 2
        torch.testing.assert_close(found[name].inputs, torch.stack(inputs))
        torch.testing.assert_close(found[name].targets, torch.stack(targets))
        assert found[name].weight in dict(objective.named_parameters())


def test_fitted_dskd_attends_to_the_token_of_the_same_text() -> None:
    """Where the student's embeddings are a linear image of the teacher's, the fitted query finds the token itself."""
    world = make(seed=3, most_spans=(9, 1, 8, 9), same=True)
    places = (world.batch.labels != -100).nonzero()[:, 0]
    ranges = torch.stack([places, places + 1], 1)
    text = torch.searchsorted(world.batch.starts, places, right=True) - 1
    world.batch = replace(world.batch, span_text=text, span_range=ranges, teacher_range=ranges)
    turned = torch.randn(WIDE, NARROW, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    world.student.embedding = world.context.teacher_embedding @ turned
    objective = build_objective(ObjectiveConfig(name="dskd"), world.context).double()

    @torch.no_grad()
    def own_share() -> float:
        own, teacher = student_side(world.batch, world.student), teacher_side(world.batch)
        scores, mask = objective._scores(world.student, own, teacher)
        weights = torch.softmax(scores.masked_fill(~mask, -1e5), -1)
        return float(weights[own.text, own.rank, own.rank].mean())

    before = own_share()
    for each in objective.to_fit(world.batch, world.student):
        fit = RidgeFit(each.unit)
        fit.add(each.inputs, each.targets)
        fit.hold_out(each.inputs, each.targets)
        objective.get_parameter(each.weight).data.copy_(fit.solve().weight)
    assert own_share() > 2 * before


@pytest.mark.parametrize(("theirs", "own"), [(9, 4), (4, 9), (6, 6)])
def test_the_distance_of_sorted_lists_is_that_of_lists_sorted_whole_and_padded(theirs: int, own: int) -> None:
    torch.manual_seed(theirs)
    p, q = (torch.randn(5, width, dtype=torch.float64).softmax(-1).requires_grad_() for width in (theirs, own))

    def whole(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values.sort(-1, descending=True).values, (0, 9 - values.shape[-1]))

    expected = (whole(p) - whole(q)).abs().sum(-1)
    found = sorted_distance(p, q)
    torch.testing.assert_close(found, expected)
    for ours, plainly in zip(*(torch.autograd.grad(each.sum(), (p, q)) for each in (found, expected)), strict=True):
        torch.testing.assert_close(ours, plainly)
