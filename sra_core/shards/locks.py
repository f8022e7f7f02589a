"""Who may write: locks that the system takes back from dead processes, leases between machines."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from sra_core.errors import StorageError
from sra_core.shards.files import storage_error
from sra_core.shards.remote import Lease, Remote

__all__ = ["Claim", "StoreLock", "wait_for"]

_CLAIMS = ".claims"
_POLL_SECONDS = 0.5


class Claim:
    """The right to make one shard; the system takes it back when its process dies."""

    def __init__(self, folder: Path, remote: Remote | None, name: str) -> None:
        self._path = folder / _CLAIMS / f"{name}.lock"
        # filelock keeps who holds a lock by thread unless told otherwise; the thread that writes gives it back.
        self._lock = FileLock(self._path, thread_local=False)
        self._lease = Lease(remote / _CLAIMS, name) if remote else None

    def acquire(self) -> bool:
        """Take the claim if nobody has it, this process included."""
        # A FileLock can be taken again by its holder: a second claim in this process would be granted.
        if self._lock.is_locked:
            return False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as error:
            raise storage_error(self._path, error) from error
        # Between machines: locks of a local copy are seen on this one alone.
        if self._lease is not None and not self._lease.acquire():
            self._lock.release()
            return False
        return True

    def release(self) -> None:
        """Give it back; from any thread."""
        if self._lease is not None:
            # The other way round, another process of this machine would find the lease still taken.
            self._lease.release()
        self._lock.release()


class StoreLock:
    """An advisory lock beside a stage folder, released by the system when its process dies."""

    def __init__(self, path: Path, waiting: Callable[[], None] = lambda: None, timeout: float = -1) -> None:
        self._path = path
        self._waiting = waiting
        self._timeout = timeout
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))

    def __enter__(self) -> StoreLock:
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as error:
            raise storage_error(self._path, error) from error
        return self

    def _acquire(self) -> None:
        try:
            # Once without waiting, so that whoever has to wait is told of it.
            self._lock.acquire(timeout=0)
            return
        except Timeout:
            self._waiting()
        try:
            self._lock.acquire(timeout=self._timeout)
        except Timeout as error:
            raise StorageError(
                f"{self._path} is in use by another process", "wait for that run to end, or stop it"
            ) from error

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()


def wait_for(lease: Lease, waiting: Callable[[], None], timeout: float, path: Path) -> None:
    """Acquire a lease as `StoreLock` acquires a lock: ``waiting`` is called once if another machine has it."""
    started, told = time.monotonic(), False
    while not lease.acquire():
        if not told:
            waiting()
            told = True
        if 0 <= timeout < time.monotonic() - started:
            raise StorageError(f"{path} is in use on another machine", "wait for that run to end, or stop it")
        time.sleep(_POLL_SECONDS)
