"""Spikes, and errors that say what to change."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from sra_core.config import DistillConfig
from sra_core.errors import ConfigError, StorageError, TrainingError
from sra_core.training.guards import SpikeWatch, explained, is_out_of_memory, non_finite_error


def test_a_spike_is_told_and_ordinary_noise_is_not() -> None:
    losses = 3.0 + 0.1 * np.random.default_rng(0).normal(size=400) - 0.002 * np.arange(400)
    watch = SpikeWatch(6.0)
    assert [step for step, loss in enumerate(losses) if watch.add(loss)] == []
    assert watch.add(watch.mean + 3.0)
    assert not watch.add(watch.mean)
    assert watch.add(watch.mean + 3.0), "one spike does not hide the next"


def test_nothing_is_a_spike_before_the_losses_have_settled() -> None:
    watch = SpikeWatch(6.0)
    assert not any(watch.add(loss) for loss in [5.0] * 10 + [50.0])


def test_a_lower_loss_is_no_spike() -> None:
    watch = SpikeWatch(6.0)
    assert not any(watch.add(loss) for loss in [5.0] * 30 + [0.1] * 3)


def test_the_mean_follows_the_losses() -> None:
    watch = SpikeWatch(6.0)
    for _ in range(200):
        watch.add(2.0)
    assert watch.mean == pytest.approx(2.0)
    assert watch.variance == pytest.approx(0.0, abs=1e-9)


def real_allocation_error() -> BaseException:
    try:
        torch.empty(1 << 52)
    except RuntimeError as error:
        return error
    raise AssertionError


def test_lack_of_memory_is_recognised() -> None:
    assert is_out_of_memory(real_allocation_error())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_lack_of_memory_says_what_to_change() -> None:
    shown = explained(real_allocation_error(), DistillConfig(batch_size=8, precision="float32"), 8, "distill")  # type: ignore[arg-type]
    assert isinstance(shown, TrainingError)
    assert "out of memory with 8 examples" in shown.problem
    for way in ("distill.micro_batch to auto", "gradient_checkpointing", "precision to bfloat16", "max_length"):
        assert way in shown.remedy
    frugal = DistillConfig(precision="bfloat16", gradient_checkpointing=True, offload=True, zero_stage=3)
    shown = explained(MemoryError(), frugal, 1, "adapt")
    assert isinstance(shown, TrainingError)
    assert shown.remedy == "lower alignment.max_length"


def test_a_full_disk_is_a_storage_error() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert isinstance(explained(full, DistillConfig(), 1, "distill"), StorageError)


def test_other_errors_stay_what_they_are() -> None:
    for error in (ConfigError("a", "b"), ValueError("x"), OSError(errno.EACCES, "denied")):
        assert explained(error, DistillConfig(), 1, "distill") is error


def test_float16_that_underflows_names_the_way_out() -> None:
    error = Exception("Current loss scale already at minimum - cannot decrease scale anymore. Exiting run.")
    assert "bfloat16" in explained(error, DistillConfig(), 1, "distill").remedy  # type: ignore[attr-defined]


def test_a_step_that_is_not_finite_names_step_and_examples() -> None:
    error = non_finite_error("gradient", 12, ["a", "b"], "adapt")
    assert "gradient is not finite at step 12" in error.problem
    assert error.problem.endswith("a, b")
    assert "adapt.non_finite" in error.remedy
