"""How processes share a step: numbers that fit, and changes that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sra_core.config import DistillConfig, hashed_steps
from sra_core.errors import ConfigError, TrainingError
from sra_core.shards import StoreLock
from sra_core.training import Job, refuse_other_numbers, refuse_other_steps
from sra_core.training.sharing import numbers_that_fit
from tests.training.make import make_config

TORCHRUN = {"RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


def named(per_forward: bool, **fields: Any) -> Any:
    return hashed_steps(DistillConfig.model_validate(fields), per_forward=per_forward)


def test_a_result_is_named_by_what_a_step_takes_not_by_who_shares_it() -> None:
    alone = named(False, batch_size=16)
    assert alone == {**alone, "batch_size": 16, "accumulation": 1, "micro_batch": None, "processes": 1}
    for fields in (
        {"batch_size": 4, "processes": 4},
        {"batch_size": 4, "accumulation": 2, "processes": 2},
        {"batch_size": 16, "micro_batch": 2},
        {"batch_size": 8, "processes": 2, "micro_batch": "auto"},
    ):
        assert named(False, **fields) == alone
    assert named(False, batch_size=16, processes=2) != alone
    assert named(False, batch_size=16, clip=2.0) != alone


def test_where_terms_are_means_over_a_forward_its_examples_are_named_too() -> None:
    """Uneven texts: a mean over two halves is not the mean over both."""
    alone = named(True, batch_size=4, accumulation=4)
    assert alone == named(True, batch_size=4, processes=4) == named(True, batch_size=8, processes=2, micro_batch=4)
    assert alone != named(True, batch_size=16)
    assert alone != named(True, batch_size=2, accumulation=8)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((16, 2, 16), "set processes to 2, batch_size to 8 and accumulation to 1"),
        ((16, 1, 4), "set processes to 1, batch_size to 4 and accumulation to 4"),
        ((24, 2, 5), "set processes to 2, batch_size to 4 and accumulation to 3"),
        ((16, 2, 16, 4), "set processes to 2, batch_size to 4 and accumulation to 2"),
        ((12, 5, 4), "choose processes among 1, 2, 3, 4, 6, 12, which can share the 12 examples of a step equally"),
        ((12, 4, 4, 6), "choose processes among 1, 2, which can share the 12 examples of a step equally"),
    ],
)
def test_the_numbers_that_fit_are_named(arguments: tuple[int, ...], told: str) -> None:
    assert numbers_that_fit(*arguments) == told


def test_torchrun_has_to_start_as_many_as_the_config_says() -> None:
    training = DistillConfig(batch_size=8, processes=2)
    refuse_other_numbers(training, "distill", {})
    refuse_other_numbers(training, "distill", {**TORCHRUN, "WORLD_SIZE": "2"})
    with pytest.raises(
        ConfigError, match=r"started 4 .* distill.processes is 2: .* take 32 examples, not 16"
    ) as caught:
        refuse_other_numbers(training, "distill", {**TORCHRUN, "WORLD_SIZE": "4"})
    assert caught.value.remedy == "set processes to 4, batch_size to 4 and accumulation to 1"


def job_of(store: Path, name: str, saved: bool = False, **distill: Any) -> Job:
    work = store / "students" / name / "work"
    work.mkdir(parents=True)
    job = Job(
        config=make_config("plain", **distill),
        prepared=store / "prepared" / "p",
        teacher=store / "teacher" / "t",
        initial=work / "initial",
        folder=work,
    )
    if saved:
        (job.checkpoints / "step-00000004").mkdir(parents=True)
        job.save()
    return job


def test_a_baseline_that_was_begun_when_spans_weighed_by_mass_is_the_same_training(tmp_path: Path) -> None:
    def of(name: str, objective: str, *, mass: bool, **more: Any) -> Job:
        job = job_of(tmp_path, name, batch_size=4, accumulation=1, **more)
        job.objective.name, job.objective.weighted_loss = objective, mass  # type: ignore[assignment]
        return job

    for objective in ("uld", "sra"):
        stopped = of(f"{objective}-before", objective, mass=True, processes=2)
        (stopped.checkpoints / "step-00000004").mkdir(parents=True)
        stopped.save()
    with pytest.raises(TrainingError, match="uld-before takes 8 examples a step with 2 processes"):
        refuse_other_steps(of("uld-now", "uld", mass=False, processes=1))
    refuse_other_steps(of("sra-now", "sra", mass=False, processes=1))


def test_starting_over_for_other_processes_alone_is_refused(tmp_path: Path) -> None:
    """The training that was stopped has another name, and would be lost without a word."""
    stopped = job_of(tmp_path, "a", saved=True, batch_size=4, accumulation=1, processes=2)
    job_of(tmp_path, "b", saved=True, batch_size=4, accumulation=1, processes=2, learning_rate=1.0)
    (tmp_path / "students" / "c" / "work").mkdir(parents=True)
    (tmp_path / "students" / "c" / "work" / "job.json").write_text('{"made": "by an older version"}')
    fewer = job_of(tmp_path, "d", batch_size=4, accumulation=1, processes=1)
    with pytest.raises(TrainingError) as caught:
        refuse_other_steps(fewer)
    assert caught.value.problem == (
        f"an unfinished training in {stopped.folder.parent} takes 8 examples a step with 2 processes; "
        "with 1 it would be 4, another training"
    )
    assert caught.value.remedy == (
        "to go on with it, set processes to 1, batch_size to 4 and accumulation to 2; "
        f"to start over, delete {stopped.folder}"
    )
    with StoreLock(stopped.folder.parent):
        refuse_other_steps(fewer)  # somebody is at it
    refuse_other_steps(job_of(tmp_path, "e", batch_size=2, accumulation=1, processes=2))  # asked for: another batch
    (fewer.checkpoints / "step-00000001").mkdir(parents=True)
    refuse_other_steps(fewer)  # its own training goes on
