"""Checkpoints are whole or absent, and damage is told."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sra_core.errors import StorageError
from sra_core.processes import free_port
from sra_core.training import Checkpoints, Progress
from sra_core.training.checkpoints import random_state, restore_random_state


@pytest.fixture(autouse=True, scope="module")
def _one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Engine:
    """Stands for DeepSpeed's: one number to save."""

    def __init__(self, value: float = 0.0, error: Exception | None = None) -> None:
        self.value = value
        self.error = error

    def save_checkpoint(self, folder: str, tag: str, client_state: dict[str, Any]) -> None:
        place = Path(folder) / tag
        place.mkdir()
        (place / "half.pt").write_bytes(b"half")
        if self.error:
            raise self.error
        torch.save({"value": self.value, "client": client_state}, place / "whole.pt")

    def load_checkpoint(self, folder: str, tag: str) -> tuple[str, dict[str, Any]]:
        state = torch.load(Path(folder) / tag / "whole.pt", weights_only=False)
        self.value = state["value"]
        return folder, state["client"]


def saved(folder: Path, *steps: int, keep: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep, rank=0)
    for step in steps:
        checkpoints.save(Engine(float(step)), Progress(world=1, step=step, best=0.5, stale=step))
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_is_restored_with_its_progress(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4)
    engine = Engine()
    progress, damaged = Checkpoints(tmp_path, 3, 0).load(engine)
    assert progress is not None
    assert (engine.value, progress.step, progress.best, progress.stale, damaged) == (4.0, 4, 0.5, 4, [])


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 10, keep=2)
    assert names(tmp_path) == ["step-00000003", "step-00000010"]


def test_nothing_to_restore(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", 2, 0).load(Engine()) == (None, [])


@pytest.mark.parametrize("how", ["change", "remove", "unlist"])
def test_a_damaged_one_falls_back_loudly(tmp_path: Path, how: str) -> None:
    checkpoints = saved(tmp_path, 2, 4)
    file = tmp_path / "step-00000004" / "state" / "whole.pt"
    if how == "change":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif how == "remove":
        file.unlink()
    else:
        (tmp_path / "step-00000004" / "files.json").unlink()
    engine = Engine()
    progress, damaged = checkpoints.load(engine)
    assert progress is not None
    assert (progress.step, engine.value) == (2, 2.0)
    assert len(damaged) == 1
    assert "WARNING: checkpoint step-00000004 is damaged" in damaged[0]
    assert names(tmp_path) == ["step-00000002"], "a damaged one must not count among the last that are kept"


def test_all_damaged_starts_over(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4)
    for path in tmp_path.glob("step-*/state/whole.pt"):
        path.write_bytes(b"")
    progress, damaged = Checkpoints(tmp_path, 2, 0).load(Engine())
    assert progress is None
    assert len(damaged) == 2


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed")])
def test_a_save_that_fails_leaves_the_one_before_whole(tmp_path: Path, error: Exception) -> None:
    checkpoints = saved(tmp_path, 2)
    with pytest.raises(StorageError, match="cannot save a checkpoint at step 4"):
        checkpoints.save(Engine(4.0, error), Progress(world=1, step=4))
    assert names(tmp_path) == ["step-00000002"]
    assert checkpoints.load(Engine())[0].step == 2  # type: ignore[union-attr]


def test_what_a_killed_save_left_is_never_restored(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    (tmp_path / ".step-00000004.partial" / "state").mkdir(parents=True)
    progress, damaged = Checkpoints(tmp_path, 2, 0).load(Engine())
    assert progress is not None
    assert (progress.step, damaged) == (2, [])
    assert names(tmp_path) == ["step-00000002"]


def test_random_states_come_back() -> None:
    def draw() -> tuple[Any, ...]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    state = random_state()
    first = draw()
    assert draw() != first
    restore_random_state(state)
    assert draw() == first
