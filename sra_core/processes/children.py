"""Processes that never outlive the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

__all__ = ["STARTER", "die_with_parent", "free_port", "start", "stop"]

STARTER = "SRA_STARTED_BY"
"""Environment variable: id of the process on this machine that training must not outlive."""
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """End this process when the one that started it dies, however that ends.

    A process of multiprocessing waits for its parent in a thread. Any other asks the kernel (Linux; elsewhere nothing),
    and ends at once if the process that started training is gone already.
    """
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_after, args=(parent,), daemon=True).start()
    else:
        _ask_the_kernel()


def _ask_the_kernel() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    starter = os.environ.get(STARTER)
    if starter and not _is_alive(int(starter)):
        os._exit(1)


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, both outputs appended to ``log``; it dies with this process."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env={**os.environ, STARTER: str(os.getpid()), **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_ask_the_kernel,
        )


def stop(processes: Sequence[subprocess.Popen[bytes]], grace: float = 5.0) -> None:
    """End processes and all that they started: SIGTERM first, SIGKILL after ``grace`` seconds."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    end = time.monotonic() + grace
    while time.monotonic() < end and any(_group_is_alive(process) for process in processes):
        time.sleep(0.05)
    for process in processes:
        _signal(process, signal.SIGKILL)  # also what a dead launcher has left in its group
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _group_is_alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reaps it: a zombie still counts as a member of its group
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True
