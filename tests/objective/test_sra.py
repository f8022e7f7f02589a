from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sra_core.config import ObjectiveConfig
from sra_core.errors import ConfigError
from sra_core.objective import Batch, Head, TeacherSpans, build_objective
from tests.objective import plain
from tests.objective.make import NARROW, WIDE, World, assert_same, make

LAYERS = [(6, 3), (7, 4)]
ALL: dict[str, Any] = {
    "layers": LAYERS,
    "trajectory": 0.7,
    "cosine": [0.3, 1.2],
    "geometry": 5.0,
    "logit": 0.9,
    "alpha": 0.4,
}


def build(world: World, **settings: Any) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """The objective in float64 and the leaves of student and projectors; projectors moved off their start."""
    objective = build_objective(ObjectiveConfig(**settings), world.context).double()
    rng = torch.Generator().manual_seed(9)
    for parameter in objective.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    return objective, world.leaves | dict(objective.named_parameters())


def plain_terms(world: World, objective: torch.nn.Module, config: ObjectiveConfig) -> dict[str, Tensor]:
    """Every term by loops over texts."""
    batch, student, context = world.batch, world.student, world.context
    p = config.mass_power if config.weighted_loss else 0.0
    maps = [lambda c, m=each.weight: c @ m.T for each in objective.projectors]
    shared, theirs = student.head.weight[context.shared_student_ids], context.teacher_head
    bias = None if student.head.bias is None else student.head.bias[context.shared_student_ids]
    cosine = [student.final.sum() * 0 for _ in LAYERS]
    geometry, logit, trajectory = cosine[0], cosine[0], cosine[0]
    for row in range(batch.texts):
        inside = (batch.span_text == row).nonzero()[:, 0]
        if not len(inside):
            continue
        ranges, text = world.ranges(row), world.text(row)
        own = [
            plain.pool(student.hidden[s][text], student.weights[s][text], ranges, config.weighted_pooling)[0]
            for _, s in LAYERS
        ]
        teachers = [batch.teacher[t].centers[inside] for t, _ in LAYERS]
        masses = [batch.teacher[t].mass[inside] for t, _ in LAYERS]
        for k in range(len(LAYERS)):
            cosine[k] = cosine[k] + plain.cosine_loss(own[k], teachers[k], masses[k], maps[k], p)
        geometry = geometry + plain.geometry_loss(own[-1], teachers[-1], masses[-1], p)
        values = plain.kl(
            plain.logits(teachers[-1], theirs.weight, theirs.bias, theirs.softcap),
            plain.logits(own[-1], shared, bias, student.head.softcap),
            config.temperature,
        )
        logit = logit + (values.sum() if config.logit_reduction == "sum" else values.mean())
        trajectory = trajectory + plain.trajectory_loss(own, teachers, masses, maps, p)
    ce = plain.cross_entropy(student.final, batch.labels, batch.starts, student.head.weight, student.head.bias)
    texts = batch.texts
    return {
        "ce": ce,
        "cosine_6_3": cosine[0] / texts,
        "cosine_7_4": cosine[1] / texts,
        "geometry": geometry / texts,
        "logit": logit / texts,
        "trajectory": trajectory / texts,
    }


VARIANTS: list[dict[str, Any]] = [
    {},
    {"weighted_pooling": False},
    {"weighted_loss": True},
    {"weighted_loss": True, "weighted_pooling": False},
    {"weighted_loss": True, "mass_power": 2.5},
    {"logit_reduction": "sum", "temperature": 3.0},
    {"logit_chunk": 2},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_every_term_and_gradient_equals_plain_loops(bias: bool, variant: dict[str, Any]) -> None:
    world = make(bias=bias)
    config = ObjectiveConfig(**(ALL | variant))
    objective, leaves = build(world, **(ALL | variant))
    terms, expected = objective(world.batch, world.student), plain_terms(world, objective, config)
    assert set(terms) == {*expected, "loss", "cosine", "spans"}
    assert terms["spans"] == len(world.batch.span_text) > 5
    for name, value in expected.items():
        assert_same(terms[name], value, leaves)
    cosine = 0.3 * expected["cosine_6_3"] + 1.2 * expected["cosine_7_4"]
    torch.testing.assert_close(terms["cosine"], cosine)
    span_terms = cosine + 5 * expected["geometry"] + 0.9 * expected["logit"] + 0.7 * expected["trajectory"]
    assert_same(terms["loss"], 0.4 * expected["ce"] + 0.6 * span_terms, leaves)


@pytest.mark.parametrize("spans", [(0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 0, 0)])
def test_batches_with_hardly_a_span_train(spans: tuple[int, ...]) -> None:
    world = make(most_spans=spans)
    objective, leaves = build(world, **ALL)
    terms = objective(world.batch, world.student)
    assert all(torch.isfinite(value) for value in terms.values())
    assert terms["geometry"] == 0
    grads = torch.autograd.grad(terms["loss"], list(leaves.values()), allow_unused=True)
    assert all(torch.isfinite(grad).all() for grad in grads if grad is not None)
    if not sum(spans):
        torch.testing.assert_close(terms["loss"], 0.4 * terms["ce"])


def test_everything_masked_gives_zero_and_no_gradient() -> None:
    world = make(most_spans=(0, 0))
    world.batch.labels.fill_(-100)
    world.recount()
    objective, leaves = build(world, **ALL)
    loss = objective(world.batch, world.student)["loss"]
    assert loss == 0
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    assert all(not grad.any() for grad in grads if grad is not None)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_texts_does_not_matter(seed: int) -> None:
    world = make(seed)
    objective, _ = build(world, **ALL)
    before = objective(world.batch, world.student)["loss"]
    batch, student, order = world.batch, world.student, [2, 0, 3, 1]
    tokens = torch.cat([torch.arange(len(batch.input_ids))[world.text(row)] for row in order])
    spans = torch.cat([(batch.span_text == row).nonzero()[:, 0] for row in order])
    lengths = batch.starts.diff()[order]
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    moved = torch.tensor([starts[order.index(row)] - batch.starts[row] for row in range(batch.texts)])
    changed = Batch(
        batch.ids,
        batch.input_ids[tokens],
        starts,
        batch.labels[tokens],
        torch.tensor([order.index(int(row)) for row in batch.span_text[spans]]),
        batch.span_range[spans] + moved[batch.span_text[spans]][:, None],
        {layer: TeacherSpans(each.centers[spans], each.mass[spans]) for layer, each in batch.teacher.items()},
    )
    student.hidden = {layer: value[tokens] for layer, value in student.hidden.items()}
    student.weights = {layer: value[tokens] for layer, value in student.weights.items()}
    student.final = student.final[tokens]
    torch.testing.assert_close(objective(changed, student)["loss"], before)


def test_terms_without_weight_are_neither_computed_nor_listed() -> None:
    world = make()
    objective, _ = build(world, layers=LAYERS, cosine=0.0, geometry=0.0, logit=0.0)
    assert set(objective(world.batch, world.student)) == {"loss", "ce", "spans"}
    assert not list(objective.parameters())


def test_sft_is_cross_entropy_alone() -> None:
    world = make()
    terms = build_objective(ObjectiveConfig(name="sft"), world.context)(world.batch, world.student)
    expected = plain.cross_entropy(
        world.student.final, world.batch.labels, world.batch.starts, world.student.head.weight
    )
    assert_same(terms["loss"], expected, world.leaves)
    assert terms["ce"] == terms["loss"]


def test_alpha_one_leaves_cross_entropy() -> None:
    world = make()
    objective, _ = build(world, **(ALL | {"alpha": 1.0}))
    terms = objective(world.batch, world.student)
    torch.testing.assert_close(terms["loss"], terms["ce"])


def test_projectors_start_the_same_whatever_the_global_random_state() -> None:
    world = make()
    torch.manual_seed(1)
    one = build_objective(ObjectiveConfig(layers=LAYERS), world.context)
    torch.manual_seed(2)
    two = build_objective(ObjectiveConfig(layers=LAYERS), world.context)
    assert torch.equal(one.projectors[0].weight, two.projectors[0].weight)
    assert not torch.equal(one.projectors[0].weight, one.projectors[1].weight)
    weight = one.projectors[0].weight
    assert weight.shape == (WIDE, NARROW)
    torch.testing.assert_close(weight @ weight.T, torch.eye(WIDE), atol=1e-5, rtol=0)


def test_equal_widths_start_from_the_identity() -> None:
    world = make()
    world.context.teacher_width = NARROW
    objective = build_objective(ObjectiveConfig(layers=LAYERS, logit=0), world.context)
    assert torch.equal(objective.projectors[1].weight, torch.eye(NARROW))


def test_the_teachers_head_is_no_part_of_the_state() -> None:
    objective = build_objective(ObjectiveConfig(layers=LAYERS), make().context)
    assert set(objective.state_dict()) == {"projectors.0.weight", "projectors.1.weight"}


def test_a_missing_teacher_head_names_the_remedy() -> None:
    world = make()
    world.context.teacher_head = None
    with pytest.raises(ConfigError, match=r"run the cache stage again, or set objective\.logit to 0"):
        build_objective(ObjectiveConfig(layers=LAYERS), world.context)


def test_bfloat16_students_and_projectors_give_float32_losses_close_to_exact() -> None:
    world = make(most_spans=(5, 5, 5))
    config = ObjectiveConfig(layers=LAYERS, geometry=1.0)
    exact = build_objective(config, world.context).double()(world.batch, world.student)
    half = torch.bfloat16
    student, batch = world.student, world.batch
    student.hidden = {layer: value.to(half) for layer, value in student.hidden.items()}
    student.weights = {layer: value.float() for layer, value in student.weights.items()}
    student.final = student.final.to(half)
    student.head = Head(student.head.weight.to(half))
    for spans in batch.teacher.values():
        spans.centers, spans.mass = spans.centers.to(half), spans.mass.float()
    world.context.teacher_head = world.context.teacher_head.to(half)
    terms = build_objective(config, world.context).to(half)(batch, student)
    for name in ("ce", "cosine", "geometry", "logit", "loss"):
        assert terms[name].dtype == torch.float32
        torch.testing.assert_close(terms[name].double(), exact[name], rtol=0.03, atol=0.01)
    terms["loss"].backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in world.leaves.values())


class Waits(TorchDispatchMode):
    """Names the operations inside that read a number from the device or take a shape from what is on it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = func.overloadpacket.__name__, kwargs or {}
        counted = name == "repeat_interleave" and options.get("output_size") is None
        if counted or name in ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "is_nonzero"):
            self.seen.add(name)
        return func(*args, **options)


@pytest.mark.parametrize("name", ["sra", "sft"])
def test_a_step_does_not_wait_for_the_device(name: str) -> None:
    world = make()
    objective, leaves = build(world, **(ALL if name == "sra" else {"name": "sft"}))
    with Waits() as waits:
        loss = objective(world.batch, world.student)["loss"]
        torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    assert waits.seen == set()
    with Waits() as waits:
        int(world.batch.starts.max())
    assert waits.seen
