from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor, nn

import sra_core.objective as package
from sra_core.objective import Head
from tests.objective import plain
from tests.objective.make import make


def test_moving_a_batch_moves_every_tensor_and_nothing_else() -> None:
    batch = make().batch
    batch.supervised = 12.0
    moved = batch.to("meta")
    seen = 0
    for field in fields(moved):
        value = getattr(moved, field.name)
        values = list(value.values()) if isinstance(value, dict) else [value]
        for item in values:
            tensors = [item] if isinstance(item, Tensor) else [item.centers, item.mass] if hasattr(item, "mass") else []
            assert all(tensor.device.type == "meta" for tensor in tensors)
            seen += len(tensors)
    assert seen == 6 + 2 * 2 + 6
    assert moved.ids == batch.ids
    assert moved.supervised == 12.0
    assert moved.texts == batch.texts == 4
    assert batch.input_ids.device.type == "cpu"


def test_a_head_from_a_linear_layer_gives_its_logits() -> None:
    linear = nn.Linear(4, 7)
    rows = torch.randn(3, 4)
    torch.testing.assert_close(Head.of(linear).logits(rows), linear(rows))
    head = Head(linear.weight, linear.bias, 0.5)
    torch.testing.assert_close(head.logits(rows), 0.5 * torch.tanh(linear(rows) / 0.5))
    assert Head.of(head) is head


def test_rows_of_a_head_are_its_entries_in_the_asked_order() -> None:
    head = Head(torch.randn(6, 4, requires_grad=True), torch.randn(6), 2.0)
    rows, ids = torch.randn(3, 4), torch.tensor([5, 0, 2])
    torch.testing.assert_close(head.rows(ids).logits(rows), plain.logits(rows, head.weight, head.bias, 2.0)[:, ids])
    head.rows(ids).logits(rows).sum().backward()
    assert head.weight.grad.abs().sum(1).nonzero()[:, 0].tolist() == [0, 2, 5]
    assert not head.constant().weight.requires_grad


def test_everything_exported_exists() -> None:
    assert all(hasattr(package, name) for name in package.__all__)
    assert len(set(package.__all__)) == len(package.__all__)
