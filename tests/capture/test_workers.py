"""Which device a helper process takes, and that it ends when its parent is gone."""

from __future__ import annotations

import pytest
import torch

from sra_core.capture import workers


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


def test_a_helper_without_a_parent_stops_at_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "parent_process", lambda: None)
    with pytest.raises(SystemExit):
        workers._ParentWatcher().progress(1, 2, "examples")
