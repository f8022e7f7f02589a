"""Files that are whole or absent: written aside, flushed to disk, renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from sra_core.errors import StorageError, is_full

__all__ = ["PARTIAL_SUFFIX", "HashingWriter", "atomic_write", "file_digest"]

PARTIAL_SUFFIX = ".partial"


class HashingWriter:
    """A binary file that keeps the SHA-256 and the number of bytes written to it."""

    def __init__(self, file: BinaryIO | IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._hash.update(data)
        self.bytes += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        # pyarrow closes what it writes into; the file itself has to stay open until it is on the disk.
        self.closed = True

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of all bytes written so far."""
        return self._hash.hexdigest()


@contextmanager
def atomic_write(path: Path) -> Iterator[HashingWriter]:
    """Write ``path`` so that it appears whole or not at all.

    Raises:
        StorageError: The disk is full or the folder cannot be written; the partial file is removed.
    """
    # By process, so that two that write the same file do not write into one another's.
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            writer = HashingWriter(file)
            yield writer
            file.flush()
            # Before the rename, which may reach the disk first otherwise: a name without its bytes.
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise storage_error(path, error) from error
    except BaseException:  # Ctrl-C too, and errors of whoever makes the bytes
        partial.unlink(missing_ok=True)
        raise


def storage_error(path: Path, error: OSError) -> StorageError:
    """The error that a failed write to ``path`` deserves."""
    if is_full(error):
        return StorageError(
            f"no space left while writing {path}",
            "free space or point `store` elsewhere, then run again: finished work is kept",
        )
    return StorageError(f"cannot write {path}: {error}", "check that the store exists and that you may write to it")


def file_digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
