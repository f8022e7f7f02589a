"""The losses on a GPU, against float64 on the CPU; with TEST_DEVICE=cpu the same checks run without one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sra_core.config import ObjectiveConfig
from sra_core.objective import Head, StudentOutput, build_objective, pool_spans, span_logit_kl
from tests.objective import plain
from tests.objective.make import World, make

pytestmark = pytest.mark.gpu


def test_chunked_kl_in_bfloat16_is_close_to_float64(device: str) -> None:
    rng = torch.Generator().manual_seed(0)
    own, theirs, student, teacher = (
        torch.randn(*shape, generator=rng).to(torch.bfloat16) for shape in ((300, 32), (300, 24), (50, 32), (50, 24))
    )
    leaf = student.to(device).requires_grad_()
    value = span_logit_kl(leaf, teacher.to(device), own.to(device), theirs.to(device), chunk=16)
    (slope,) = torch.autograd.grad(value, leaf)
    wide = student.double().requires_grad_()
    p, q = plain.logits(teacher.double(), theirs.double()), plain.logits(wide, own.double())
    expected = plain.kl(p, q, 2.0).sum()
    (wanted,) = torch.autograd.grad(expected, wide)
    torch.testing.assert_close(value.double().cpu(), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(slope.double().cpu(), wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))


def test_pooled_centres_are_those_of_the_cpu(device: str) -> None:
    rng = torch.Generator().manual_seed(0)
    hidden, weights = torch.randn(40, 8, generator=rng), torch.rand(40, generator=rng)
    ranges = torch.tensor([[0, 1], [1, 4], [4, 4], [7, 20], [20, 40]])
    expected = pool_spans(hidden, weights, ranges)
    found = pool_spans(hidden.to(device), weights.to(device), ranges.to(device))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs)


def moved(world: World, device: str) -> World:
    """The same world in float32 on a device."""

    def there(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(device, torch.float32 if tensor.is_floating_point() else tensor.dtype)

    student = world.student
    output = StudentOutput(
        {layer: there(value) for layer, value in student.hidden.items()},
        {layer: there(value) for layer, value in student.weights.items()},
        there(student.final),
        Head(there(student.head.weight)),
        None if student.embedding is None else there(student.embedding),
    )
    kept = world.context
    context = replace(
        kept,
        teacher_head=kept.teacher_head.to(torch.float32),
        teacher_full_head=kept.teacher_full_head.to(torch.float32),
        teacher_embedding=kept.teacher_embedding.float(),
    )
    return replace(world, batch=world.batch._each(there), student=output, context=context)


@pytest.mark.parametrize(
    "name", ["sra", "sft", "uld", "mined", "dskd", "multilevel_ot", "alm", "strict_kl", "gold", "xtoken"]
)
def test_every_objective_gives_the_numbers_of_the_cpu(device: str, name: str) -> None:
    world = make(seed=9)
    config = ObjectiveConfig(name=name, layers=world.context.layers)
    torch.manual_seed(0)
    objective = build_objective(config, world.context).double()
    expected = objective(world.batch, world.student)
    there = moved(world, device)
    again = build_objective(config, there.context)
    again.load_state_dict(objective.state_dict())
    found = again.float().to(device)(there.batch, there.student)
    for term, value in expected.items():
        torch.testing.assert_close(found[term].double().cpu(), value.detach().double(), rtol=2e-4, atol=1e-5)
