"""Training processes that start in a second: forked from a server that has imported everything, killed like any other.

What a real start costs (imports) is left to the tests of the launcher.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any

from sra_core.processes import free_port
from sra_core.training import Job
from sra_core.training.job import read_lines
from sra_core.training.launcher import Relay
from sra_core.watch import Watcher

__all__ = ["Run", "finish"]

_PRELOADED = "tests.training.warm_imports"


def _server() -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    context = get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED])
    return context


def _work(job_file: str, place: Mapping[str, str], log: str, prepare: Callable[[], None] | None) -> None:
    os.environ.update(place)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if prepare:
        prepare()
    from sra_core.training.worker import main

    code = main(job_file)
    sys.stdout.flush()
    os._exit(code)


class Run:
    """The processes of one job.

    Args:
        job: What to train.
        world: How many processes.
        prepare: Called in each process before it trains.
    """

    def __init__(self, job: Job, world: int = 1, prepare: Callable[[], None] | None = None) -> None:
        for stale in (job.events, job.folder / "result.json", *job.folder.glob("error-*.json")):
            stale.unlink(missing_ok=True)
        self.job = job
        file, port, context = str(job.save()), str(free_port()), _server()
        self.processes: list[BaseProcess] = []
        for rank in range(world):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            log = str(job.folder / f"log-{rank}.txt")
            process = context.Process(target=_work, args=(file, place, log, prepare))
            process.start()
            self.processes.append(process)

    def step(self) -> int:
        """Steps that the first process has reported."""
        events, _ = read_lines(self.job.events)
        return max([event["done"] for event in events if event["kind"] == "progress"] or [0])

    def messages(self) -> list[str]:
        events, _ = read_lines(self.job.events)
        return [event["text"] for event in events if event["kind"] == "message"]

    def relay(self, watch: Watcher) -> None:
        """Pass on what the processes tell, as the stage does, until they end."""
        relay = Relay(self.job, self.job.folder / "log-0.txt", watch)
        while self.processes[0].is_alive():
            relay.pass_on()
            time.sleep(0.002)
        relay.pass_on()

    def kill_at(self, step: int, patience: float = 120.0) -> None:
        """kill -9 all processes once they report this step."""
        end = time.monotonic() + patience
        while self.step() < step and self.processes[0].is_alive() and time.monotonic() < end:
            time.sleep(0.002)
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self, patience: float = 200.0) -> list[int | None]:
        """Exit codes; when one process fails, the others are ended."""
        end = time.monotonic() + patience
        while any(process.is_alive() for process in self.processes) and time.monotonic() < end:
            if any(process.exitcode for process in self.processes):
                time.sleep(0.5)
                break
            time.sleep(0.01)
        for process in self.processes:
            process.kill() if process.is_alive() else None
            process.join()
        return [process.exitcode for process in self.processes]

    def output(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.job.folder.glob("log-*.txt")))


def finish(job: Job, world: int = 1, prepare: Callable[[], None] | None = None) -> Run:
    """Train to the end."""
    run = Run(job, world, prepare)
    codes = run.wait()
    assert codes == [0] * world, run.output()
    return run
