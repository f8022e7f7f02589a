"""Training where something is wrong: numbers, disks, memory, checkpoints; and every precision and saving of memory."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sra_core.training import Job
from tests.training.make import make_config, make_job, read_history
from tests.training.warm import Run, finish


def poison(when: int = 6) -> None:
    """One forward's loss becomes NaN: the ``when``-th."""
    from sra_core.training.module import DistillModule

    forward, calls = DistillModule.forward, iter(range(1, 10**6))

    def poisoned(self: Any, batch: Any) -> Any:
        terms = forward(self, batch)
        return {**terms, "loss": terms["loss"] * float("nan")} if next(calls) == when else terms

    DistillModule.forward = poisoned  # type: ignore[method-assign]


def gradient_only() -> None:
    """The 6th forward's loss is finite and its gradient is not."""
    from sra_core.training.module import DistillModule

    forward, calls = DistillModule.forward, iter(range(1, 10**6))

    def poisoned(self: Any, batch: Any) -> Any:
        terms = forward(self, batch)
        if next(calls) == 6:
            terms["loss"].register_hook(lambda gradient: gradient * float("inf"))
        return terms

    DistillModule.forward = poisoned  # type: ignore[method-assign]


def unmeasured() -> None:
    """The student's held-out likelihood is no number from the start."""
    from sra_core.training.trainer import Trainer

    Trainer._bits_per_byte = lambda self: float("nan")  # type: ignore[method-assign]


def starved() -> None:
    """Forwards of more than one example do not fit."""
    from sra_core.training.module import DistillModule

    forward = DistillModule.forward

    def hungry(self: Any, batch: Any) -> Any:
        if len(batch.ids) > 1:
            torch.empty(1 << 52)
        return forward(self, batch)

    DistillModule.forward = hungry  # type: ignore[method-assign]


def error_of(job: Job) -> dict[str, Any]:
    (report,) = [json.loads(path.read_bytes()) for path in job.folder.glob("error-*.json")]
    return report  # type: ignore[no-any-return]


@pytest.mark.parametrize("fields", [{}, {"zero_stage": 1}, {"zero_stage": 3}, {"precision": "bfloat16"}])
@pytest.mark.integration
def test_a_loss_that_is_not_finite_stops_with_its_examples(tmp_path: Path, fields: dict[str, Any]) -> None:
    job = make_job(tmp_path, make_config("plain", **fields))
    run = Run(job, prepare=poison)
    assert run.wait() == [1]
    error = error_of(job)
    assert "the loss is not finite at step 3; examples: train-" in error["problem"]
    assert error["problem"].count("train-") == 2, "the forward at fault, not the whole step"
    assert sorted(path.name for path in job.checkpoints.iterdir()) == ["step-00000001", "step-00000002"]
    finish(job)
    assert max(read_history(job, "train/loss")) == 6


@pytest.mark.integration
@pytest.mark.parametrize("fields", [{}, {"zero_stage": 2}, {"precision": "bfloat16"}])
@pytest.mark.parametrize("fault", [poison, gradient_only])
def test_a_bad_step_is_skipped_and_counted(tmp_path: Path, fields: dict[str, Any], fault: Any) -> None:
    job = make_job(tmp_path, make_config("plain", non_finite="skip", keep_best=False, **fields))
    run = finish(job, prepare=fault)
    skipped = [text for text in run.messages() if text.startswith("skipped:")]
    assert len(skipped) == 1
    assert "at step 3" in skipped[0]
    assert read_history(job, "train/skipped_steps") == {1: 0, 2: 0, 3: 1, 4: 1, 5: 1, 6: 1}
    tensors = load_file(sorted(job.weights.glob("*"))[-1])
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert json.loads((job.folder / "result.json").read_text())["skipped"] == 1


@pytest.mark.integration
def test_a_student_that_cannot_be_measured_stops_instead_of_ending_without_weights(tmp_path: Path) -> None:
    job = make_job(tmp_path, make_config("plain"))
    assert Run(job, prepare=unmeasured).wait() == [1]
    assert error_of(job)["problem"] == "the held-out bits per byte are nan at step 0"


@pytest.mark.integration
def test_the_last_weights_are_exported_and_the_best_step_is_told_as_it_was(tmp_path: Path) -> None:
    job = make_job(tmp_path, make_config("plain", keep_best=False, learning_rate=1.0))
    finish(job)
    result = json.loads((job.folder / "result.json").read_text())
    assert (result["best_step"], result["exported_step"]) == (0, 6)
    assert [path.name for path in sorted(job.weights.glob("*"))] == ["step-00000006.safetensors"]


@pytest.mark.integration
def test_too_many_skipped_steps_stop(tmp_path: Path) -> None:
    job = make_job(tmp_path, make_config("plain", non_finite="skip", max_skipped=0))
    assert Run(job, prepare=poison).wait() == [1]
    assert "not finite at step 3" in error_of(job)["problem"]


@pytest.mark.integration
def test_lack_of_memory_is_reported_as_such(tmp_path: Path) -> None:
    job = make_job(tmp_path, make_config("plain"))
    assert Run(job, prepare=starved).wait() == [1]
    error = error_of(job)
    assert error["memory"]
    assert "out of memory with 2 examples in one forward" in error["problem"]
    assert "distill.micro_batch" in error["remedy"]


@pytest.mark.integration
def test_a_corrupted_checkpoint_falls_back_loudly_and_ends_the_same(tmp_path: Path) -> None:
    job = make_job(tmp_path, make_config("dropout", keep_best=False))
    finish(job)
    whole = sorted(job.weights.glob("*"))[-1].read_bytes()
    Path(job.folder / "result.json").unlink()
    newest = sorted(job.checkpoints.glob("step-*"))[-1]
    for file in newest.rglob("*.pt"):
        file.write_bytes(file.read_bytes()[:-100])
    run = finish(job)
    assert [text for text in run.messages() if "WARNING: checkpoint step-00000006 is damaged" in text]
    assert any("resumed at step 5" in text for text in run.messages())
    assert sorted(job.weights.glob("*"))[-1].read_bytes() == whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.integration
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, small_disk: Path) -> None:
    job = make_job(tmp_path, make_config("dropout", keep_best=False, keep_checkpoints=3))
    job.checkpoints.symlink_to(small_disk)
    Run(job).kill_at(2)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        free = os.statvfs(small_disk)
        file.write(b"0" * (free.f_bavail * free.f_bsize - 40_000))
    before = {path.name for path in small_disk.glob("step-*")}
    assert Run(job).wait() == [1]
    error = error_of(job)
    assert error["type"] == "StorageError"
    assert "cannot save a checkpoint at step" in error["problem"]
    assert {path.name for path in small_disk.glob("step-*")} == before
    assert not list(small_disk.glob(".step-*"))
    filler.unlink()
    run = finish(job)
    assert any(text.startswith("resumed at step") for text in run.messages())


@pytest.mark.integration
@pytest.mark.parametrize(
    "fields",
    [
        {"precision": "bfloat16"},
        {"precision": "bfloat16", "accumulation": 8},
        {"precision": "bfloat16", "zero_stage": 2},
        {"precision": "bfloat16", "zero_stage": 3, "offload": True},
        {"zero_stage": 1, "offload": True},
        {"zero_stage": 3, "offload": True},
    ],
)
def test_precisions_and_offload_learn_as_plain_training_does(tmp_path: Path, fields: dict[str, Any]) -> None:
    plain = make_job(tmp_path / "plain", make_config("plain", accumulation=fields.get("accumulation", 2)))
    finish(plain)
    other = make_job(tmp_path / "other", make_config("plain", **fields))
    finish(other)
    tolerance = 0.03 if fields.get("precision") == "bfloat16" else 1e-4
    expected, found = read_history(plain, "train/loss"), read_history(other, "train/loss")
    assert all(abs(expected[step] - found[step]) < tolerance for step in expected)
    assert expected[6] < expected[1] - 0.1


@pytest.mark.integration
@pytest.mark.parametrize("fields", [{"gradient_checkpointing": True}, {"micro_batch": 1}])
def test_savings_of_memory_change_no_number(tmp_path: Path, fields: dict[str, Any]) -> None:
    plain = make_job(tmp_path / "plain", make_config("plain"))
    finish(plain)
    other = make_job(tmp_path / "other", make_config("plain", **fields))
    finish(other)
    expected, found = read_history(plain, "train/loss"), read_history(other, "train/loss")
    assert all(abs(expected[step] - found[step]) < 1e-5 for step in expected)


@pytest.mark.integration
def test_float16_works_or_is_refused_with_a_way_out(tmp_path: Path) -> None:
    job = make_job(tmp_path, make_config("plain", precision="float16"))
    if Run(job).wait() == [0]:
        assert max(read_history(job, "train/loss")) == 6
    else:
        error = error_of(job)
        assert (error["type"], "bfloat16" in error["remedy"]) == ("ConfigError", True)


@pytest.mark.integration
def test_patience_ends_a_run_that_learns_nothing_and_clipping_bounds_a_step(tmp_path: Path) -> None:
    fields = {"learning_rate": 1e-9, "projector_learning_rate": 1e-9, "min_learning_rate": 0.0, "max_steps": 30}
    job = make_job(tmp_path, make_config("plain", validate_every=1, patience=3, weight_decay=0.0, **fields))
    run = finish(job)
    result = json.loads((job.folder / "result.json").read_text())
    assert result["steps"] < 30
    assert result["steps"] - result["best_step"] == 3
    assert any("stopped early" in text for text in run.messages())
