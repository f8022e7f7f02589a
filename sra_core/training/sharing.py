"""How processes share a step, and what another number of them needs to go on with a training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sra_core.config import TrainingConfig, hashed, hashed_objective, hashed_steps
from sra_core.errors import ConfigError, SraError, StorageError, TrainingError
from sra_core.objective import teacher_needs
from sra_core.shards import StoreLock
from sra_core.training.hosts import inside_torchrun
from sra_core.training.job import WORK, Job

__all__ = ["numbers_that_fit", "refuse_other_numbers", "refuse_other_steps"]


def numbers_that_fit(examples: int, processes: int, size: int, forward: int | None = None) -> str:
    """What to set so that a step takes so many examples.

    Args:
        examples: Examples of a step, over all processes.
        processes: Processes that are to share them.
        size: Examples that a process takes at once now: kept, or lowered as little as possible.
        forward: Examples that have to stay together in one forward, where that matters.
    """
    shares = examples // (forward or 1)
    if shares % processes:
        fitting = ", ".join(str(number) for number in range(1, shares + 1) if shares % number == 0)
        return f"choose processes among {fitting}, which can share the {examples} examples of a step equally"
    share = examples // processes
    batch = forward or max(number for number in range(1, min(size, share) + 1) if share % number == 0)
    return f"set processes to {processes}, batch_size to {batch} and accumulation to {share // batch}"


def refuse_other_numbers(training: TrainingConfig, part: str, environment: Mapping[str, str] = os.environ) -> None:
    """Under torchrun the config has to say how many processes train: what a step takes follows from it.

    Args:
        training: How to train.
        part: Section of the run config, for messages.
        environment: This process's environment.

    Raises:
        ConfigError: torchrun has started another number.
    """
    said, examples = training.processes, training.step_examples
    started = int(environment["WORLD_SIZE"]) if inside_torchrun(environment) else said
    if started != said:
        raise ConfigError(
            f"torchrun has started {started} training processes, and {part}.processes is {said}: a step would take "
            f"{examples // said * started} examples, not {examples}",
            numbers_that_fit(examples, started, training.batch_size),
        )


def refuse_other_steps(job: Job) -> None:
    """Refuse to start over where an unfinished training waits that differs in processes and examples of a step alone.

    Other processes with the same ``batch_size`` and ``accumulation`` make another step, and so another result: who
    changed the processes of a training that was stopped would lose it without a word.

    Raises:
        TrainingError: Names the numbers that go on with it.
    """
    if any(job.checkpoints.glob("step-*")):  # its own training waits: nothing is started over
        return
    for other in _unfinished(job.folder.parent.parent):
        before, now = other.training, job.training
        if before.processes != now.processes and _told_apart(other) == _told_apart(job):
            forward = other.micro if teacher_needs(job.objective).token_states else None
            raise TrainingError(
                f"an unfinished training in {other.folder.parent} takes {before.step_examples} examples a step with "
                f"{before.processes} processes; with {now.processes} it would be {now.step_examples}, another training",
                f"to go on with it, {numbers_that_fit(before.step_examples, now.processes, now.batch_size, forward)}; "
                f"to start over, delete {other.folder}",
            )


def _unfinished(results: Path) -> Iterator[Job]:
    """Trainings that were stopped with a checkpoint and that nobody is at."""
    for file in sorted(results.glob(f"*/{WORK}/job.json")):
        try:
            # The store may have been moved since; the folder in the file is where it lay then.
            job = Job.load(file).model_copy(update={"folder": file.parent})
        except (SraError, ValueError):  # of a version with other fields
            continue
        if any(job.checkpoints.glob("step-*")) and not _at_work(job):
            yield job


def _at_work(job: Job) -> bool:
    """Whether a process holds the stage's folder."""
    try:
        # The lock of a dead process is free, so only a living one counts.
        with StoreLock(job.folder.parent, timeout=0):
            return False
    except StorageError:
        return True


def _told_apart(job: Job) -> dict[str, Any]:
    """What determines the result, but for the examples of a step."""
    # `hashed_steps` puts the examples of a whole step there, the one thing that may differ.
    steps = hashed_steps(job.training, per_forward=False) | {"batch_size": None}
    sources = (job.prepared.name, job.teacher.name if job.teacher else None)  # folders bear fingerprints
    config = job.config
    return {
        "sources": sources,
        "training": steps,
        "objective": hashed_objective(job.objective),
        "models": (hashed(config.teacher), hashed(config.student)),
        "seed": config.seed,
        "part": job.part,
    }
