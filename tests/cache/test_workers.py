"""Which device a helper process takes, and what is told when one does not start."""

from __future__ import annotations

from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest
import torch

from sra_core.cache import workers
from sra_core.config import RunConfig
from sra_core.shards import Manifest, StageFolder
from sra_core.watch import Watcher


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


def test_a_helper_that_does_not_start_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(SpawnProcess, "start", refuse)
    config = RunConfig.model_validate({"cache": {"workers": 3}})
    folder = StageFolder(tmp_path, "cache", {})
    made = Manifest(stage="prepare", fingerprint="f", identity={}, created="now")
    with pytest.raises(OSError, match="no more processes"), workers.helpers(config, made, folder, Watcher()):
        raise AssertionError("nothing runs beside helpers that are not there")
