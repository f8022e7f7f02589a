"""The user's cache folder: converted and made models live there, each written once and moved into place whole."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from sra_core.errors import ModelError

__all__ = ["cache_folder", "is_made", "made_once", "remembered", "slug"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

_PATIENCE = 3600.0  # seconds that a second process waits for the first one to finish the same model


def cache_folder() -> Path:
    """`$SRA_CACHE_HOME`, else `$XDG_CACHE_HOME/sra`, else `~/.cache/sra`."""
    if own := os.environ.get("SRA_CACHE_HOME"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").expanduser().absolute() / "sra"


def slug(text: str) -> str:
    """``text`` as a file name: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")


def is_made(key: str) -> bool:
    """Whether `made_once` has made the folder of that key."""
    return (cache_folder() / "models" / key).is_dir()


def made_once(key: str, make: Callable[[Path], None]) -> Path:
    """The folder ``models/<key>`` of the cache, made by ``make(folder)`` if it is not there yet.

    ``make`` writes into a temporary folder beside it, which is renamed when it is complete: a folder that exists is
    whole. A second process that wants the same folder waits for the first one; the lock of a dead process is free.

    Raises:
        ModelError: the cache folder cannot be written, or another process holds the lock for too long.
    """
    folder = cache_folder() / "models" / key
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f".{key}.lock", key):
            if not folder.is_dir():  # else the process that had the lock has made it
                _make(folder, make)
    except Timeout as error:
        raise ModelError(
            f"another process has been making {folder} for {_PATIENCE / 60:.0f} minutes",
            "wait for it, or stop it and run this again",
        ) from error
    except OSError as error:
        raise ModelError(
            f"cannot write the model {folder}: {error}",
            "free some space there, or set SRA_CACHE_HOME to a folder that can be written",
        ) from error
    return folder


@contextmanager
def _locked(path: Path, key: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is making the model %s: waiting for it", key)
        lock.acquire(timeout=_PATIENCE)
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed: the lock is ours now
    try:
        unfinished.mkdir()
        make(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remembered(what: str, files: Iterable[Path], read: Callable[[], T]) -> T:
    """What ``read`` reads off some files: from the cache while each has its path, size and time of change, else anew.

    Args:
        what: Names it; different things that are read off the same files have different names.
        files: All files that it depends on.
        read: Gives it; ready for JSON. The libraries that read are part of what it is remembered by.
    """
    states = [[str(path.resolve()), (state := path.stat()).st_size, state.st_mtime_ns] for path in sorted(files)]
    versions = [metadata.version(name) for name in ("transformers", "tokenizers")]
    key = hashlib.sha256(json.dumps([what, versions, states]).encode()).hexdigest()
    note = cache_folder() / "read" / key
    with suppress(OSError, ValueError):
        value: T = json.loads(note.read_text())["value"]
        return value
    # What raises leaves no note: a fault is told each time.
    value = read()
    with suppress(OSError):  # a cache that can't be written only costs time
        note.parent.mkdir(parents=True, exist_ok=True)
        # Moved into place whole: other processes read the same notes.
        unfinished = note.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps({"value": value}))
        unfinished.replace(note)
    return value
