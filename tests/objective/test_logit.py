from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sra_core.objective import Head, next_token_loss, span_logit_kl
from sra_core.objective.chunks import head_loss, head_map, slope_by_autograd
from tests.objective import plain
from tests.objective.make import NARROW, WIDE, assert_same, make

V = 11


def heads(bias: bool, softcap: float | None, seed: int = 0) -> tuple[Head, Head]:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    student = Head(normal(V, NARROW).requires_grad_(), normal(V).requires_grad_() if bias else None, softcap)
    return student, Head(normal(V, WIDE), normal(V) if bias else None, softcap)


def centers(spans: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    student = torch.randn(spans, NARROW, generator=rng, dtype=torch.float64, requires_grad=True)
    return student, torch.randn(spans, WIDE, generator=rng, dtype=torch.float64)


def plain_kl(student: Tensor, teacher: Tensor, own: Head, theirs: Head, tau: float) -> Tensor:
    return plain.kl(
        plain.logits(teacher, theirs.weight, theirs.bias, theirs.softcap),
        plain.logits(student, own.weight, own.bias, own.softcap),
        tau,
    )


@pytest.mark.parametrize("chunk", [1, 3, 4, 100, None])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_chunked_kl_equals_whole_logits(reduction: str, bias: bool, softcap: float | None, chunk: int | None) -> None:
    own, theirs = heads(bias, softcap)
    student, teacher = centers(7)
    text = torch.tensor([0, 0, 0, 2, 2, 3, 3])
    fast = span_logit_kl(student, teacher, own, theirs, 2.0, reduction, chunk, text, 5)
    values = plain_kl(student, teacher, own, theirs, 2.0)
    per_text = [getattr(values[text == row], reduction)() for row in (0, 2, 3)]
    leaves = {"student": student, "weight": own.weight} | ({"bias": own.bias} if own.bias is not None else {})
    assert_same(fast, sum(per_text) / 5, leaves)


def test_one_text_sums_by_default_and_a_weight_will_do_for_a_head() -> None:
    own, theirs = heads(False, None)
    student, teacher = centers(4)
    expected = plain_kl(student, teacher, own, theirs, 2.0)
    assert_same(span_logit_kl(student, teacher, own.weight, theirs.weight), expected.sum(), {"student": student})
    assert_same(span_logit_kl(student, teacher, own, theirs, reduction="mean"), expected.mean(), {"student": student})
    assert_same(span_logit_kl(student[:1], teacher[:1], own, theirs), expected[0], {"student": student})


def test_golden_number() -> None:
    value = span_logit_kl(
        torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [0.0]])
    )
    p = torch.sigmoid(torch.tensor(1.0)).item()  # teacher logits 2, 0 at temperature 2; student even
    expected = p * torch.tensor(2 * p).log().item() + (1 - p) * torch.tensor(2 * (1 - p)).log().item()
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_no_spans_is_zero_with_zero_gradients() -> None:
    own, theirs = heads(True, None)
    student, teacher = centers(0)
    for reduction in ("sum", "mean"):
        value = span_logit_kl(
            student, teacher, own, theirs, reduction=reduction, text=torch.zeros(0, dtype=torch.long), texts=2
        )
        assert value == 0
        (grad,) = torch.autograd.grad(value, own.weight)
        assert grad.abs().sum() == 0


def test_a_tied_embedding_collects_both_gradients() -> None:
    own, theirs = heads(False, None)
    ids = torch.tensor([4, 0, 9])
    table = own.weight
    student = table[torch.tensor([1, 4])] * 0.5
    _, teacher = centers(2)
    shared = Head(theirs.weight[:3])
    fast = span_logit_kl(student, teacher, Head(table).rows(ids), shared)
    slow = plain_kl(student, teacher, Head(table[ids]), shared, 2.0).sum()
    assert_same(fast, slow, {"table": table})


def test_backward_can_run_again_and_is_scaled_by_what_comes_down() -> None:
    own, theirs = heads(True, None)
    student, teacher = centers(5)
    value = 3 * span_logit_kl(student, teacher, own, theirs, chunk=2)
    first = torch.autograd.grad(value, (student, own.weight, own.bias), retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(value, (student, own.weight, own.bias))
    for one, two, three in zip(first, second, kept, strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)
    alone = torch.autograd.grad(span_logit_kl(student, teacher, own, theirs), student)[0]
    torch.testing.assert_close(kept[0], 3 * alone)


def test_a_frozen_head_gets_no_gradient_and_no_grad_needs_none() -> None:
    own, theirs = heads(False, None)
    student, teacher = centers(3)
    frozen = own.constant()
    value = span_logit_kl(student, teacher, frozen, theirs)
    (grad,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(grad, torch.autograd.grad(span_logit_kl(student, teacher, own, theirs), student)[0])
    with torch.no_grad():
        assert not span_logit_kl(student, teacher, own, theirs).requires_grad


def test_the_teacher_is_constant() -> None:
    own, theirs = heads(False, None)
    student, teacher = centers(3)
    weight, teacher = theirs.weight.clone().requires_grad_(), teacher.requires_grad_()
    grads = torch.autograd.grad(
        span_logit_kl(student, teacher, own, weight), (weight, teacher, student), allow_unused=True
    )
    assert grads[0] is None
    assert grads[1] is None


def test_an_unknown_reduction_is_refused() -> None:
    own, theirs = heads(False, None)
    with pytest.raises(ValueError, match="'sum' or 'mean'"):
        span_logit_kl(*centers(2), own, theirs, reduction="max")


def test_gradients_survive_float16_where_spans_weigh_a_thousandth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU multiplies halves; what a slope holds below 6e-8 is 0 there."""
    monkeypatch.setattr(
        "sra_core.objective.chunks.product", lambda left, right: left.half().float() @ right.half().float()
    )
    generator = torch.Generator().manual_seed(0)
    own, other = (0.3 * torch.randn(20_000, 16, generator=generator) for _ in range(2))
    centers, given = (torch.randn(960, 16, generator=generator) for _ in range(2))
    text = torch.arange(960) // 60
    grads = []
    for head in (own, own.double()):
        states = centers.detach().to(head.dtype).requires_grad_()
        span_logit_kl(states, given.to(head.dtype), head, other.to(head.dtype), reduction="mean", text=text).backward()
        grads.append(states.grad)
        monkeypatch.undo()
    exact = grads[1]
    assert float((grads[0].double() - exact).norm() / exact.norm()) < 0.01


def test_bfloat16_heads_stay_close_to_float64() -> None:
    rng = torch.Generator().manual_seed(0)
    own, theirs = (torch.randn(300, width, generator=rng).to(torch.bfloat16) for width in (32, 24))
    student = (torch.randn(20, 32, generator=rng) * 0.3).requires_grad_()
    teacher = torch.randn(20, 24, generator=rng).to(torch.bfloat16)
    own.requires_grad_()
    value = span_logit_kl(student, teacher, own, theirs, chunk=7)
    exact = plain_kl(student.double(), teacher.double(), Head(own.double()), Head(theirs.double()), 2.0).sum()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)
    ours = torch.autograd.grad(value, (student, own))
    theirs_grad = torch.autograd.grad(exact, (student, own))
    assert ours[1].dtype == torch.bfloat16
    torch.testing.assert_close(ours[0], theirs_grad[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours[1].float(), theirs_grad[1].float(), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [2, None])
def test_next_token_loss_equals_a_loop(bias: bool, chunk: int | None) -> None:
    world = make(bias=bias)
    batch, final, head = world.batch, world.leaves["final"], world.student.head
    slow = plain.cross_entropy(final, batch.labels, batch.starts, head.weight, head.bias)
    assert_same(next_token_loss(final, batch, head, chunk), slow, world.leaves)


def test_nothing_supervised_is_zero_with_zero_gradient() -> None:
    world = make()
    world.batch.labels.fill_(-100)
    world.recount()
    value = next_token_loss(world.leaves["final"], world.batch, world.student.head)
    assert value == 0
    (grad,) = torch.autograd.grad(value, world.leaves["head"])
    assert grad.abs().sum() == 0


def test_the_first_token_of_a_text_is_not_supervised() -> None:
    world = make(most_spans=(1, 1, 1))
    first = int(world.batch.starts[1])
    before = world.batch.targets.tolist()
    world.batch.labels[first : first + 2] = world.batch.input_ids[first : first + 2]
    world.recount()
    assert sorted(set(world.batch.targets.tolist()) - set(before)) == [first + 1]


@pytest.mark.parametrize("chunk", [1, 2, 5, None])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_any_row_function_gets_its_gradient_through_chunks(chunk: int | None, softcap: float | None) -> None:
    own, _ = heads(True, softcap)
    rows, _ = centers(5)
    target = torch.tensor([0, 3, 3, 10, 2])
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0], dtype=torch.float64)

    def values(z: Tensor, t: Tensor) -> Tensor:
        return z.softmax(-1).square().sum(-1) + z.gather(1, t[:, None])[:, 0]

    whole = plain.logits(rows, own.weight, own.bias, softcap)
    leaves = {"rows": rows, "weight": own.weight, "bias": own.bias}
    fast = head_loss(rows, own, slope_by_autograd(values), (target,), weights, chunk)
    assert_same(fast, (values(whole, target) * weights).sum(), leaves)
    mapped = head_map(rows, own, values, (target,), chunk)
    assert_same((mapped * weights).sum(), (values(whole, target) * weights).sum(), leaves)


@pytest.mark.slow
def test_it_compiles_into_one_graph() -> None:
    own, theirs = heads(False, None)
    student, teacher = centers(7)
    text = torch.tensor([0, 0, 0, 1, 1, 1, 1])

    def loss(student: Tensor, weight: Tensor) -> Tensor:
        return 0.5 * span_logit_kl(student, teacher, weight, theirs.weight, 2.0, "mean", 3, text, 2)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(compiled(student, own.weight), loss(student, own.weight), {"student": student, "weight": own.weight})
