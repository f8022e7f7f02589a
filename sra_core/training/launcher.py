"""Starts the training processes, relays what they report, and ends them with the stage."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sra_core import errors
from sra_core.errors import SraError, TrainingError
from sra_core.training.job import Job, read_events
from sra_core.training.processes import free_port, start, stop
from sra_core.watching import Watcher

__all__ = ["launch"]

_POLL_SECONDS = 0.2
_WORKER = "sra_core.training.worker"
_log = logging.getLogger(__name__)


def launch(job: Job, watch: Watcher) -> Mapping[str, float]:
    """Train in processes of their own until they end.

    Args:
        job: What to train.
        watch: Told of progress and metrics as they come.

    Returns:
        Steps, best held-out bits per byte and its step, tokens, seconds.

    Raises:
        TrainingError: A process failed; carries the first failing process's traceback.
        SraError: The error of the first failing process, where it is one that the user can mend.
    """
    for stale in (job.events, job.folder / "result.json", *job.folder.glob("error-*.json")):
        stale.unlink(missing_ok=True)
    log = job.folder / "worker.log"
    log.unlink(missing_ok=True)
    process = start(_command(job), _environment(job), log)
    relay = _Relay(job, log, watch)
    try:
        while process.poll() is None:
            relay.pass_on()
            time.sleep(_POLL_SECONDS)
    finally:
        stop(process)
        relay.pass_on()
    if process.returncode:
        raise _first_error(job, process, log)
    result: Mapping[str, float] = json.loads((job.folder / "result.json").read_bytes())
    return result


def _command(job: Job) -> list[str]:
    file = str(job.save())
    processes = job.config.distill.processes
    if processes == 1:
        return [sys.executable, "-m", _WORKER, file]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return [*torchrun, "--master_addr", "127.0.0.1", "--master_port", str(free_port()), "-m", _WORKER, file]


def _environment(job: Job) -> dict[str, str]:
    if job.config.distill.processes > 1:
        return {}
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    return {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


class _Relay:
    def __init__(self, job: Job, log: Path, watch: Watcher) -> None:
        self._job = job
        self._log = log
        self._watch = watch
        self._position = 0
        self._log_position = 0

    def pass_on(self) -> None:
        events, self._position = read_events(self._job.events, self._position)
        for event in events:
            self._one(event)
        self._log_lines()

    def _one(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "metrics":
            self._watch.metrics(event["values"], event["step"])
        elif event["kind"] == "progress":
            self._watch.progress(event["done"], event["total"], "steps", event["note"])
        else:
            self._watch.message(event["text"])

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


def _first_error(job: Job, process: subprocess.Popen[bytes], log: Path) -> SraError:
    reports = [json.loads(path.read_bytes()) for path in job.folder.glob("error-*.json")]
    if not reports:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        return TrainingError(
            f"training ended with exit code {process.returncode} and no report (killed, or out of memory?):\n{tail}",
            f"the whole output is in {log}; running again resumes from the last checkpoint",
        )
    first = min(reports, key=lambda report: report["time"])
    if first["known"]:
        kind: type[SraError] = getattr(errors, first["type"])
        return kind(first["problem"], first["remedy"])
    return TrainingError(
        f"training process {first['rank']} failed with {first['type']}: {first['problem']}\n{first['traceback']}",
        f"the whole output is in {log}; running again resumes from the last checkpoint",
    )
