"""Which device a helper process takes."""

from __future__ import annotations

import pytest
import torch

from sra_core.cache import workers


@pytest.mark.parametrize(
    ("gpus", "wanted", "devices"),
    [
        (0, "auto", ["auto", "auto", "auto"]),
        (2, "auto", ["cuda:0", "cuda:1", "cuda:0"]),
        (4, "cuda", ["cuda:0", "cuda:1", "cuda:2"]),
        (4, "cuda:3", ["cuda:3", "cuda:3", "cuda:3"]),
        (4, "cpu", ["cpu", "cpu", "cpu"]),
    ],
)
def test_helpers_take_the_gpus_in_turn(
    gpus: int, wanted: str, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert [workers._device(wanted, number) for number in range(3)] == devices
