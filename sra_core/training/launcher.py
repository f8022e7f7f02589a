"""Starts the training processes, relays what they report, and ends them with the stage."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sra_core import errors
from sra_core.errors import SraError, StorageError, TrainingError
from sra_core.processes import start, stop
from sra_core.shards import StageFolder
from sra_core.training.hosts import external_rank, inside_torchrun, session, start_of
from sra_core.training.job import WORK, Job, read_lines
from sra_core.watch import Watcher

__all__ = ["Relay", "join_stage", "launch"]

_POLL_SECONDS = 0.1
_log = logging.getLogger(__name__)


def launch(job: Job, watch: Watcher) -> Mapping[str, Any]:
    """Train in processes of their own until they end.

    With micro-batch `auto`, a run that ends for lack of memory starts again from its last checkpoint with half the
    examples in one forward.

    Args:
        job: What to train.
        watch: Told of progress and metrics as they come.

    Returns:
        Steps, best held-out bits per byte and its step, tokens, seconds.

    Raises:
        TrainingError: A process failed; carries the first failing process's traceback.
        SraError: The error of the first failing process, where it is one that the user can mend.
    """
    _free_gpu_memory()
    # Beside torchrun's other processes nothing starts again: each of them joins one training and returns.
    automatic = job.training.micro_batch == "auto" and not inside_torchrun()
    job = job.model_copy(update={"session": session()})
    while True:
        try:
            return _once(job, watch)
        except _OutOfMemory as error:
            # Half, or the next smaller divisor: a step must keep its examples, as they are part of the result's name.
            fitting = (size for size in range(job.micro // 2, 0, -1) if job.training.batch_size % size == 0)
            smaller = next(fitting, 0)
            if not automatic or not smaller:
                raise TrainingError(error.problem, error.remedy) from None
            job = job.model_copy(update={"micro_batch": smaller})
            watch.message(f"out of memory; going on with {smaller} examples in one forward")


def _free_gpu_memory() -> None:
    """Training runs in other processes, and torch keeps for this one what teacher and student took of the GPU."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


class _OutOfMemory(TrainingError):
    """Training did not fit in memory."""


def _once(job: Job, watch: Watcher) -> Mapping[str, float]:
    # Before the job is saved: from then on processes of torchrun join, and what they report must stay.
    for stale in (job.events, job.folder / "result.json", *job.folder.glob("error-*.json")):
        stale.unlink(missing_ok=True)
    log = job.folder / "worker.log"
    log.unlink(missing_ok=True)
    how = start_of(job.training, str(job.save()))
    relay = Relay(job, log, watch)
    process = start(how.command, how.environment, log)
    try:
        while process.poll() is None:
            relay.pass_on()
            time.sleep(_POLL_SECONDS)
    finally:
        code = process.poll()
        stop([process])
        relay.pass_on()  # what came between the last look and the end
    if code:
        raise _first_error(job, code, log)
    result: Mapping[str, float] = json.loads((job.folder / "result.json").read_bytes())
    return result


def join_stage(folder: StageFolder) -> None:
    """Train to the end beside the first of the processes that torchrun started, where this is another of them.

    The first one makes the job and holds the lock of the stage's folder; it runs the stage and returns here at once.

    Args:
        folder: The stage's folder.

    Raises:
        TrainingError: This process failed.
    """
    rank = external_rank()
    if rank > 0:
        work = folder.path / WORK
        work.mkdir(parents=True, exist_ok=True)
        _join(work / "job.json", folder.manifest_path, work / f"worker-{rank}.log")


def _join(job_file: Path, result: Path, log: Path) -> None:
    """Train as one of the processes that torchrun started, beside the first one, which has made the job.

    Args:
        job_file: Where the first process writes the job.
        result: File that appears when the stage is done; then there is nothing left to join.
        log: Takes this process's output.

    Raises:
        TrainingError: This process failed.
    """
    wanted = session()
    while not result.exists():
        # A job of an earlier start may lie there still: the first process is about to put this start's in its place.
        if job_file.exists() and Job.load(job_file).session == wanted:
            job = Job.load(job_file)
            process = start(start_of(job.training, str(job_file)).command, {}, log)
            try:
                process.wait()
            finally:
                code = process.poll()
                stop([process])
            if code:
                raise _first_error(job, code, log)
            return
        time.sleep(_POLL_SECONDS)


class Relay:
    """Tells the watcher what the first training process writes down, as it comes.

    Args:
        job: Whose events and history are read.
        log: Output of the training processes, passed on to the log.
        watch: Told of messages, progress and metrics.
    """

    def __init__(self, job: Job, log: Path, watch: Watcher) -> None:
        self._job = job
        self._log = log
        self._watch = watch
        self._position = self._log_position = 0
        self._history_position: int | None = None  # unknown until training has cut the history back to its checkpoint

    def pass_on(self) -> None:
        events, self._position = read_lines(self._job.events, self._position)
        for event in events:
            if event["kind"] == "start":
                self._history_position = 0  # all of it: a stage that was killed may not have passed everything on
            elif event["kind"] == "progress":
                self._watch.progress(event["done"], event["total"], "steps", event["note"])
            else:
                self._watch.message(event["text"])
        if self._history_position is not None:
            rows, self._history_position = read_lines(self._job.history, self._history_position)
            for row in rows:
                self._watch.metrics({name: value for name, value in row.items() if name != "step"}, row["step"])
        self._log_lines()

    def _log_lines(self) -> None:
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._log_position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._log_position += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            _log.info("%s", line)


def _first_error(job: Job, code: int, log: Path) -> SraError:
    reports = [json.loads(path.read_bytes()) for path in job.folder.glob("error-*.json")]
    resumes = f"the whole output is in {log}; running again resumes from the last checkpoint"
    if not reports:
        return _unreported(code, log, resumes)
    # The others fail because their peer is gone: its error is the cause.
    first = min(reports, key=lambda report: report["time"])
    if first["memory"]:
        return _OutOfMemory(first["problem"], first["remedy"])
    if first["known"]:
        kind: type[SraError] = getattr(errors, first["type"])
        return kind(first["problem"], first["remedy"])
    return TrainingError(
        f"training process {first['rank']} failed with {first['type']}: {first['problem']}\n{first['traceback']}",
        resumes,
    )


def _unreported(code: int, log: Path, resumes: str) -> SraError:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    if "No space left on device" in tail:
        return StorageError(f"no space left while training in {log.parent}", "free space and run again: it resumes")
    why = " (killed; by the system, if memory ran out)" if code in (-9, 137) else ""  # 137 is 128 + 9
    error = TrainingError(f"training ended with exit code {code}{why} and no report:\n{tail}", resumes)
    error.__cause__ = ChildProcessError(code)  # killed from outside: a second try may well pass
    return error
