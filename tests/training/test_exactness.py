"""A run that is killed and resumed, or spread over processes, is the same run."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sra_core.training import Job
from sra_core.training.checkpoints import damage
from tests.training.make import again, make_config, make_job, read_history
from tests.training.test_launcher import Listener
from tests.training.warm import Run, finish

STEPS = 36
THRESHOLD = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}  # else ZeRO 3 leaves tiny models whole


def last_weights(job: Job) -> Path:
    return sorted(job.weights.glob("step-*"))[-1]


def final_weights(job: Job) -> bytes:
    return last_weights(job).read_bytes()


def read_tokens(job: Job) -> dict[int, float]:
    """Tokens of each step, from its rate."""
    rates, seconds = (read_history(job, f"train/{name}") for name in ("tokens_per_second", "seconds_per_step"))
    return {step: rate * seconds[step] for step, rate in rates.items()}


@pytest.mark.integration
def test_ten_kills_leave_no_trace(tmp_path: Path) -> None:
    config = make_config(
        "dropout", max_steps=STEPS, checkpoint_every=3, validate_every=5, keep_best=False, accumulation=2
    )
    whole = make_job(tmp_path / "whole", config)
    finish(whole)
    killed = again(whole, tmp_path / "killed")
    chosen = random.Random(7)
    for step in sorted(chosen.sample(range(1, STEPS), 10)):
        Run(killed).kill_at(step)
        assert not (killed.folder / "result.json").exists()
    run = finish(killed)
    assert any(text.startswith("resumed at step") for text in run.messages())
    assert final_weights(killed) == final_weights(whole)
    for name in ("train/loss", "train/ce", "train/gradient_norm", "validation/bits_per_byte"):
        assert read_history(killed, name) == read_history(whole, name)
    assert list(read_history(whole, "train/loss")) == list(range(1, STEPS + 1))


@pytest.mark.integration
def test_resuming_is_exact_after_one_kill_with_adapters_and_best_weights(tmp_path: Path) -> None:
    config = make_config(
        "dropout",
        max_steps=8,
        checkpoint_every=2,
        validate_every=2,
        learning_rate=2e-2,
        lora={"rank": 2, "dropout": 0.3},
    )
    whole = make_job(tmp_path / "whole", config)
    finish(whole)
    killed = again(whole, tmp_path / "killed")
    Run(killed).kill_at(5)
    run, told = Run(killed), Listener()
    run.relay(told)
    assert run.wait() == [0], run.output()
    assert told.losses == list(read_history(whole, "train/loss").items()), "each step once"
    assert read_tokens(killed) == pytest.approx(read_tokens(whole)), "of a step alone, also of the first after a resume"
    assert final_weights(killed) == final_weights(whole)
    assert (killed.folder / "result.json").read_text().split('"seconds"')[0] == (
        whole.folder / "result.json"
    ).read_text().split('"seconds"')[0]


@pytest.mark.integration
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_processes_do_what_one_does(tmp_path: Path, stage: int) -> None:
    fields = {"max_steps": 6, "zero_stage": stage, "deepspeed": THRESHOLD if stage == 3 else {}}
    one = make_job(tmp_path / "one", make_config("plain", accumulation=4, **fields))
    finish(one)
    two = again(one, tmp_path / "two", accumulation=2)
    finish(two, world=2)
    for name, tolerance in (("train/loss", 1e-4), ("train/ce", 1e-4), ("validation/bits_per_byte", 1e-4)):
        alone, shared = read_history(one, name), read_history(two, name)
        assert alone.keys() == shared.keys()
        assert max(abs(alone[step] - shared[step]) for step in alone) < tolerance
    assert abs(read_history(one, "train/loss")[1] - read_history(one, "train/loss")[6]) > 0.05  # it learned something
    kept = sorted(one.weights.glob("*"))[-1].name
    alone, shared = load_file(one.weights / kept), load_file(two.weights / kept)
    assert alone.keys() == shared.keys()
    assert all((alone[name] - shared[name]).abs().max() < 2e-3 for name in alone)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("fields", "world"),
    [
        ({}, 2),
        ({"zero_stage": 3, "deepspeed": THRESHOLD}, 2),
        ({"precision": "bfloat16"}, 1),
        ({"precision": "bfloat16", "lora": {"rank": 2, "dropout": 0.3}}, 2),
    ],
)
def test_resuming_is_exact(tmp_path: Path, fields: dict[str, Any], world: int) -> None:
    whole = make_job(tmp_path / "whole", make_config("dropout", max_steps=6, **fields))
    finish(whole, world)
    killed = again(whole, tmp_path / "killed")
    Run(killed, world).kill_at(3)
    finish(killed, world)
    assert read_history(killed, "train/loss") == read_history(whole, "train/loss")
    assert final_weights(killed) == final_weights(whole)


def over(job: Job, processes: int) -> Job:
    """The job with its steps of eight examples shared by another number of processes."""
    job.config.distill.processes, job.config.distill.accumulation = processes, 4 // processes
    return job


CHANGES = [
    (2, 1, {}),
    (1, 2, {"zero_stage": 1}),
    (2, 4, {"zero_stage": 2}),
    (2, 1, {"precision": "bfloat16"}),
    (1, 2, {"zero_stage": 2, "lora": {"rank": 2, "dropout": 0.0}}),
    (2, 1, {"zero_stage": 1, "offload": True}),
]


@pytest.mark.integration
@pytest.mark.parametrize(("before", "after", "fields"), CHANGES, ids=str)
def test_another_number_of_processes_goes_on_as_the_old_one_would_have(
    tmp_path: Path, before: int, after: int, fields: dict[str, Any]
) -> None:
    """Weights, moments, order of examples and counts: what follows is the run that was not stopped, but rounding."""
    config = make_config("plain", max_steps=7, checkpoint_every=3, keep_best=False, **fields)
    whole = over(make_job(tmp_path / "whole", config), before)
    finish(whole, before)
    moved = again(whole, tmp_path / "a store [of ours]+")  # a pattern, where DeepSpeed looks for files
    Run(moved, before).kill_at(5)
    run = finish(over(moved, after), after)
    assert f"resumed at step 3 of 7, with {after} processes in place of {before}" in run.messages()
    close = 2e-2 if "precision" in fields else 1e-4
    for name in ("train/loss", "train/ce", "train/cosine", "train/gradient_norm", "validation/bits_per_byte"):
        values, others = read_history(whole, name), read_history(moved, name)
        assert values.keys() == others.keys()
        assert all(others[step] == values[step] for step in values if step <= 3)
        np.testing.assert_allclose(list(others.values()), list(values.values()), rtol=close)
    alone, shared = load_file(last_weights(whole)), load_file(last_weights(moved))
    for name in alone:
        torch.testing.assert_close(shared[name].float(), alone[name].float(), rtol=close, atol=close * 3e-2)
    told = [json.loads((job.folder / "result.json").read_text()) for job in (whole, moved)]
    assert told[0]["tokens"] == told[1]["tokens"], "other examples have other lengths"
    assert [each["processes"] for each in told] == [str(before), f"{before} to step 3, then {after}"]
    assert sorted(path.name for path in moved.checkpoints.iterdir()) == ["step-00000006", "step-00000007"]


def killed_while_converting() -> None:
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal._merge_tp_slice_files = lambda *args, **named: os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.integration
def test_a_kill_while_a_checkpoint_is_converted_leaves_it_whole(tmp_path: Path) -> None:
    job = over(make_job(tmp_path, make_config("plain", max_steps=4, zero_stage=1)), 2)
    Run(job, 2).kill_at(2)
    assert Run(over(job, 1), 1, killed_while_converting).wait() == [-9]
    (half,) = job.checkpoints.glob(".step-*.universal")
    whole = job.checkpoints / half.name.removeprefix(".").removesuffix(".universal")
    assert any(half.rglob("fp32.*"))
    assert damage(whole) is None
    finish(over(job, 2), 2)  # as if nobody had tried
    assert list(read_history(job, "train/loss")) == [1, 2, 3, 4]
    assert not any(job.checkpoints.glob(".*"))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {},
            "a step would take 8 examples, not 4.*set processes to 2, batch_size to 2 and accumulation to 1; or train",
        ),
        ({"zero_stage": 3}, "under ZeRO 3 each process keeps its part of every parameter"),
    ],
)
def test_another_number_of_processes_is_refused(tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    job = make_job(tmp_path, make_config("plain", max_steps=4, **fields))
    Run(job).kill_at(2)
    before = sorted(path.name for path in job.checkpoints.iterdir())
    run = Run(job, world=2)
    assert any(run.wait())
    assert re.search("was written by 1 processes and cannot be resumed by 2: " + told, run.output(), re.DOTALL)
    assert sorted(path.name for path in job.checkpoints.iterdir()) == before


@pytest.mark.integration
@pytest.mark.parametrize(
    "fields",
    [
        {"zero_stage": 0},
        {"zero_stage": 2, "lora": {"rank": 2, "dropout": 0.0}},
        {"zero_stage": 3, "deepspeed": THRESHOLD, "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_padding_changes_nothing_of_a_run_over_two_processes(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Two layer pairs; the student has no dropout, which would draw other numbers for other shapes."""
    flat = make_job(tmp_path / "flat", make_config("plain", max_steps=6, **fields))
    told = finish(flat, world=2).messages()
    assert any(text.startswith("the student reads batches flat: states differ by") for text in told)
    padded = again(flat, tmp_path / "padded")
    padded.config.layout = "padded"
    assert "the student reads batches padded: as asked for" in finish(padded, world=2).messages()
    for name in ("train/loss", "train/ce", "train/cosine", "train/geometry", "train/logit", "validation/bits_per_byte"):
        values, others = read_history(flat, name), read_history(padded, name)
        assert values.keys() == others.keys()
        assert max(abs(values[step] - others[step]) for step in values) < 1e-4
    counted = [json.loads((job.folder / "result.json").read_text())["tokens"] for job in (flat, padded)]
    assert counted[0] == counted[1]


@pytest.mark.slow
@pytest.mark.integration
def test_compiled_layers_train_the_same(tmp_path: Path) -> None:
    plain = make_job(tmp_path / "plain", make_config("plain", max_steps=4))
    finish(plain)
    compiled = again(plain, tmp_path / "compiled", compile=True)
    finish(compiled)
    values, others = read_history(plain, "train/loss"), read_history(compiled, "train/loss")
    assert max(abs(values[step] - others[step]) for step in values) < 1e-3
