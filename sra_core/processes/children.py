"""Processes that never outlive the one that started them."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

__all__ = ["STARTER", "die_with_parent", "free_port", "outlive_readers", "start", "stop"]

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
        # Kept over exec, not over fork: training processes that torchrun has forked ask once more (`worker.main`).
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # After the request: a parent that died before it sends no signal any more.
    starter = os.environ.get(STARTER)
    if starter and not _is_alive(int(starter)):
        os._exit(1)


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    # `sys.exit` in a thread would end that thread alone.
    os._exit(1)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and another user's
        return True
    return True


def free_port(preferred: int = 0) -> int:
    """A TCP port of the loopback that nobody listens on: ``preferred`` if it is one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was closed a moment ago is free
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def outlive_readers() -> None:
    """Let this process go on when whoever reads its output is gone; what it says from then on is dropped.

    Else its next line would end it: rich, which prints Prefect's log lines, leaves the process on a broken pipe.
    """
    Thread(target=_drop_unread, name="unread-output", daemon=True).start()


def _drop_unread() -> None:
    waiting = select.poll()
    for output in (1, 2):
        waiting.register(output, 0)  # errors alone: the other end of a pipe is closed, a terminal hung up
    for _ in (1, 2):
        for output, found in waiting.poll():
            waiting.unregister(output)
            if not found & select.POLLNVAL:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, output)
                os.close(nowhere)


def start(command: Sequence[str], environment: Mapping[str, str], log: Path | None) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own; it dies with this process.

    Both outputs are appended to ``log``; None shows them where this process's own go.
    """
    with nullcontext() if log is None else log.open("ab") as output:
        return subprocess.Popen(
            command,
            env={**os.environ, STARTER: str(os.getpid()), **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            # A group of its own, so that `stop` reaches all that it has started.
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
