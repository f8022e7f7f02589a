"""A stage folder on object storage (any fsspec URL), and the local folder through which it is read.

Objects appear whole or not at all, so nothing is renamed here. Between machines, a claim is an object that its owner
keeps rewriting; one that stays the same for too long belongs to a dead process.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from sra_core.errors import ShardError, StorageError, told_as
from sra_core.shards.files import atomic_write, file_digest
from sra_core.shards.manifest import FileEntry

__all__ = ["RECEIPT", "Lease", "Remote", "is_url", "local_copy"]

RECEIPT = ".receipt.json"
"""What is added to a shard's name for the note that it is whole."""

LEASE_SECONDS = 60.0
"""How long a claim may stay unchanged before its owner counts as dead."""


def is_url(store: str) -> bool:
    """Whether a store lies behind an fsspec URL rather than in a local folder."""
    return "://" in store


def local_copy(url: str) -> Path:
    """The local folder through which a remote store is read, below ``$SRA_CACHE_HOME`` or the user's cache folder."""
    base = os.environ.get("SRA_CACHE_HOME") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url).strip("-.")
    root = Path(base).expanduser().absolute()
    root = root if os.environ.get("SRA_CACHE_HOME") else root / "sra"
    return root / "stores" / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


class Remote:
    """The objects below one URL.

    Args:
        url: An fsspec URL; credentials and endpoints come from the environment, as the protocol's library reads them.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.url}/{name}")

    @property
    def _fs(self) -> Any:
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.url)[0]
        except (ImportError, ValueError) as error:
            raise StorageError(
                f"no file system for {self.url}: {error}", "install what fsspec needs for it, such as s3fs or gcsfs"
            ) from error

    def _path(self, name: str = "") -> str:
        whole = f"{self.url}/{name}".rstrip("/")
        return str(self._fs._strip_protocol(whole))

    def _reached(self) -> AbstractContextManager[None]:
        remedy = "check the address, your credentials and the connection, then run again: finished work is kept"
        return told_as(StorageError, f"cannot use {self.url}", remedy)

    def read(self, name: str) -> bytes | None:
        """An object's bytes; None if it is not there."""
        with self._reached():
            try:
                return bytes(self._fs.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write a small object."""
        with self._reached():
            self._put(name, lambda path: self._fs.pipe_file(path, data))

    def create(self, name: str, data: bytes) -> bool:
        """Write a small object unless there is one already; true if it was written."""
        with self._reached():
            try:
                # S3 itself lets one writer win; what fsspec does by default is to look first and write then.
                self._put(name, lambda path: self._fs.pipe_file(path, data, mode="create"))
            except FileExistsError:
                return False
            except OSError as error:
                # S3's answer, of which s3fs (2026.9) makes a FileExistsError only if it names the condition.
                if "PreconditionFailed" in str(error) or "pre-conditions" in str(error):
                    return False
                raise
            return True

    def push(self, path: Path, name: str) -> None:
        """Copy a local file to an object."""
        with self._reached():
            self._put(name, lambda target: self._fs.put_file(str(path), target))

    def _put(self, name: str, write: Callable[[str], None]) -> None:
        """Write an object; where the protocol has folders, its folder is made first."""
        target = self._path(name)
        try:
            write(target)
        except FileNotFoundError:
            self._fs.makedirs(self._fs._parent(target), exist_ok=True)
            write(target)

    def pull(self, entry: FileEntry, path: Path) -> None:
        """Copy an object to a local file, unless that is there with the right size.

        Raises:
            ShardError: The object is missing or not what the entry says.
        """
        # By size: what has other bytes of it was removed when manifest or receipt came (`_drop_other`).
        if path.is_file() and path.stat().st_size == entry.bytes:
            return
        remedy = "run the stage again: it keeps what is whole and makes the rest"
        path.parent.mkdir(parents=True, exist_ok=True)
        arriving = path.with_name(f".{path.name}.{os.getpid()}.arriving")
        try:
            with self._reached():
                try:
                    self._fs.get_file(self._path(entry.name), str(arriving))
                except FileNotFoundError as error:
                    raise ShardError(f"{self.url}/{entry.name} is missing", remedy) from error
            if arriving.stat().st_size != entry.bytes or file_digest(arriving) != entry.sha256:
                self.remove(f"{entry.name}{RECEIPT}")  # a damaged shard counts as finished no longer
                raise ShardError(f"{self.url}/{entry.name} does not match its checksum", remedy)
            arriving.replace(path)
        finally:
            arriving.unlink(missing_ok=True)

    def size(self, name: str) -> int | None:
        """Bytes of an object; None if it is not there."""
        with self._reached():
            # fsspec remembers listings, and other machines write too.
            self._fs.invalidate_cache()
            try:
                return int(self._fs.size(self._path(name)))
            except FileNotFoundError:
                return None

    def remove(self, name: str) -> None:
        """Remove an object if it is there."""
        with self._reached(), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def names(self, pattern: str) -> list[str]:
        """Names below the URL that match, sorted."""
        with self._reached():
            self._fs.invalidate_cache()
            root = self._path()
            found = self._fs.glob(f"{root}/{pattern}")
            return sorted(str(path)[len(root) :].lstrip("/") for path in found)

    def mirror(self, name: str, path: Path, before: Callable[[bytes], None] = lambda data: None) -> bytes | None:
        """Bring a small object to a local file, or remove that file if there is none.

        Args:
            name: The object.
            path: The file.
            before: Given the object's bytes before the file takes on others.
        """
        data = self.read(name)
        if data is None:
            path.unlink(missing_ok=True)
        elif not path.is_file() or path.read_bytes() != data:
            before(data)
            with atomic_write(path) as file:
                file.write(data)
        return data


class Lease:
    """A claim between machines: an object that its owner rewrites while it lives.

    Args:
        remote: Where claims lie.
        name: What is claimed.
        seconds: How long a claim may stay unchanged before it counts as a dead process's; unset takes `LEASE_SECONDS`.
    """

    def __init__(self, remote: Remote, name: str, seconds: float | None = None) -> None:
        self._remote = remote
        self._name = name
        self._seconds = LEASE_SECONDS if seconds is None else seconds
        # What was read and when it was new here: clocks of two machines are never compared.
        self._seen: tuple[bytes | None, float] = (None, time.monotonic())
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None
        self._owner = ""

    def acquire(self) -> bool:
        """Take the claim if it is free or its owner is dead."""
        # Another one each time: others must not take a claim for the one that stood here a minute ago.
        self._owner = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
        if not self._remote.create(self._name, self._content(0)):
            if not self._abandoned():
                return False
            self._remote.remove(self._name)
            if not self._remote.create(self._name, self._content(0)):
                return False
        self._stop.clear()
        self._beat = threading.Thread(target=self._keep, daemon=True)
        self._beat.start()
        return True

    def release(self) -> None:
        """Give the claim back."""
        self._stop.set()
        if self._beat is not None:
            # Before the claim goes: a beat that is under way would write it once more.
            self._beat.join()
            self._beat = None
        if self._is_own():
            self._remote.remove(self._name)

    def _content(self, count: int) -> bytes:
        return f"{self._owner} {count}".encode()

    def _abandoned(self) -> bool:
        found, now = self._remote.read(self._name), time.monotonic()
        if found != self._seen[0]:
            self._seen = (found, now)
        return now - self._seen[1] > self._seconds

    def _keep(self) -> None:
        count = 0
        # Five of them may fail before the claim counts as a dead process's.
        while not self._stop.wait(self._seconds / 6):
            count += 1
            with suppress(StorageError):  # an outage shorter than the lease does no harm
                if not self._is_own():  # after a longer one somebody else took over, and keeps it
                    return
                self._remote.write(self._name, self._content(count))

    def _is_own(self) -> bool:
        found = self._remote.read(self._name)
        return found is not None and found.rpartition(b" ")[0] == self._owner.encode()
