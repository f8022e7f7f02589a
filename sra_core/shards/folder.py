"""One folder a stage result, named by its fingerprint: finished shards leave receipts, the manifest comes last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout
from pydantic import ValidationError

from sra_core.errors import ShardError, StorageError
from sra_core.shards.files import PARTIAL_SUFFIX, atomic_write, file_digest
from sra_core.shards.manifest import FileEntry, Manifest, ShardEntry, Upstream, differences, fingerprint

__all__ = ["StageFolder", "StoreLock"]

_MAGIC = b"ARROW1"
_RECEIPT = ".receipt.json"
_RECORDED = ("sra", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "deepspeed")


class StageFolder:
    """The folder of one stage result: ``<store>/<room>/<fingerprint>/``.

    Args:
        store: Root of the store.
        stage: Stage name: prepare, cache, distill or evaluate.
        identity: All that determines the bytes of the result.
    """

    ROOMS: Mapping[str, str] = {
        "prepare": "prepared",
        "cache": "teacher",
        "distill": "students",
        "evaluate": "evaluations",
    }

    def __init__(self, store: str | Path, stage: str, identity: Mapping[str, Any]) -> None:
        self.stage = stage
        self.identity = dict(identity)
        self.fingerprint = fingerprint(identity)
        self.path = Path(store).expanduser().absolute() / self.ROOMS[stage] / self.fingerprint

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def manifest(self, upstream: Iterable[Manifest] = (), *, full: bool = False) -> Manifest | None:
        """The manifest if the stage is done, everything that it names is whole and made from ``upstream``, else None.

        Args:
            upstream: Results that the stage reads; one that was made again with other bytes makes this one stale.
            full: Read every byte and compare checksums; otherwise sizes and Arrow footers.
        """
        if not self.manifest_path.exists():
            return None
        try:
            manifest = read_manifest(self.path)
            verify(self.path, [*manifest.shards, *manifest.files], full=full)
        except ShardError:
            return None
        fresh = all(manifest.upstream[made.stage].content == made.content for made in upstream)
        return manifest if fresh else None

    def missing(self, command: str) -> tuple[str, str]:
        """Problem and remedy for a result that is not there, naming where the nearest other result differs.

        Args:
            command: What makes the result.
        """
        remedy = f"run `{command}` with this config first"
        others = [other for other in self._siblings() if other.stage == self.stage]
        if self.manifest_path.exists():
            return (
                f"the result of {self.stage} in {self.path} is damaged",
                f"run `{command}` again: it keeps what is whole",
            )
        if not others:
            return f"there is no result of {self.stage} in {self.path.parent}", remedy
        nearest = min(others, key=lambda other: len(list(differences(self.identity, other.identity))))
        differing = differences(self.identity, nearest.identity)
        fields = [f"{name} (wanted {want!r}, found {got!r})" for name, want, got in differing]
        return (
            f"no result of {self.stage} fits this config; the nearest, {nearest.fingerprint}, differs in "
            + ", ".join(fields),
            remedy,
        )

    def _siblings(self) -> Iterator[Manifest]:
        for path in sorted(self.path.parent.glob("*/manifest.json")):
            with suppress(ShardError):
                yield read_manifest(path.parent)

    @contextmanager
    def lock(self, waiting: Callable[[], None] = lambda: None, timeout: float = -1) -> Iterator[None]:
        """Hold the folder against other processes; the lock of a dead process is free at once.

        Args:
            waiting: Called once if another process holds the folder.
            timeout: Seconds to wait; -1 waits for ever.

        Raises:
            StorageError: The folder stayed locked for longer than ``timeout``, or cannot be made.
        """
        with StoreLock(self.path, waiting, timeout):
            for partial in self.path.rglob(f".*{PARTIAL_SUFFIX}"):
                partial.unlink(missing_ok=True)
            yield

    def finished_shards(self) -> dict[str, ShardEntry]:
        """Shards that were written whole, by name; damaged ones are removed so that they are made again."""
        finished = {}
        for receipt in sorted(self.path.glob(f"*{_RECEIPT}")):
            try:
                entry = ShardEntry.model_validate_json(receipt.read_bytes())
                verify(self.path, [entry], full=True)
            except (ShardError, ValidationError):
                receipt.unlink()
                continue
            finished[entry.name] = entry
        return finished

    def write_shard(
        self,
        name: str,
        split: str,
        batches: Iterable[pa.RecordBatch],
        schema: pa.Schema,
        *,
        compression: str | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> ShardEntry:
        """Write an Arrow IPC file atomically, then its receipt.

        Raises:
            StorageError: The disk is full or not writable; no partial shard stays behind.
        """
        rows = 0
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with (
            atomic_write(self.path / name) as file,
            pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema, options=options) as writer,
        ):
            for batch in batches:
                writer.write_batch(batch)
                rows += batch.num_rows
        entry = ShardEntry(
            name=name, split=split, rows=rows, bytes=file.bytes, sha256=file.sha256, counts=dict(counts or {})
        )
        with atomic_write(self.path / f"{name}{_RECEIPT}") as receipt:
            receipt.write(entry.model_dump_json().encode())
        return entry

    def entry(self, name: str) -> FileEntry:
        """The manifest entry of a file that was written into the folder."""
        path = self.path / name
        return FileEntry(name=name, bytes=path.stat().st_size, sha256=file_digest(path))

    def entries(self, subfolder: str) -> list[FileEntry]:
        """Manifest entries of all files below a subfolder, sorted by name."""
        paths = sorted(path for path in (self.path / subfolder).rglob("*") if path.is_file())
        return [self.entry(path.relative_to(self.path).as_posix()) for path in paths]

    def commit(
        self,
        *,
        upstream: Iterable[Manifest] = (),
        shards: Iterable[ShardEntry] = (),
        files: Iterable[FileEntry] = (),
        counts: Mapping[str, int] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Manifest:
        """Write the manifest, last and by rename: from now on the stage is done."""
        manifest = Manifest(
            stage=self.stage,
            fingerprint=self.fingerprint,
            identity=self.identity,
            upstream={made.stage: Upstream(fingerprint=made.fingerprint, content=made.content) for made in upstream},
            shards=list(shards),
            files=list(files),
            counts=dict(counts or {}),
            metrics=dict(metrics or {}),
            versions={name: metadata.version(name) for name in _RECORDED},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            folder=str(self.path),
        )
        with atomic_write(self.manifest_path) as file:
            file.write(manifest.model_dump_json(indent=2).encode())
        return manifest

    def reset(self) -> None:
        """Forget that the stage was done, keeping every shard that may still be whole."""
        self.manifest_path.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file or subfolder of the folder if it is there."""
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


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
            raise StorageError(
                f"cannot use {self._path}: {error}", "check that `store` is a folder that you may write to"
            ) from error
        return self

    def _acquire(self) -> None:
        try:
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


def read_manifest(path: Path) -> Manifest:
    """Read ``path/manifest.json``.

    Raises:
        ShardError: It is missing or not a manifest.
    """
    file = path / "manifest.json"
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise ShardError(f"{file} is missing", "run the stage that makes it; finished shards are kept") from error
    except (ValidationError, json.JSONDecodeError) as error:
        raise ShardError(f"{file} is not a manifest: {error}", "delete it and run the stage again") from error
    manifest.folder = str(path)
    return manifest


def verify(path: Path, entries: Iterable[FileEntry], *, full: bool = False) -> None:
    """Check that files are there and whole.

    Args:
        path: The stage folder.
        entries: What it should hold.
        full: Compare checksums of every byte; otherwise sizes, and footers of shards.

    Raises:
        ShardError: Names the first file that is missing, truncated or changed.
    """
    remedy = "run the stage again: it keeps what is whole and makes the rest"
    for entry in entries:
        file = path / entry.name
        if not file.is_file():
            raise ShardError(f"{file} is missing", remedy)
        size = file.stat().st_size
        if size != entry.bytes:
            raise ShardError(f"{file} has {size} bytes instead of {entry.bytes}", remedy)
        if isinstance(entry, ShardEntry) and not _has_footer(file):
            raise ShardError(f"{file} does not end like an Arrow file", remedy)
        if full and file_digest(file) != entry.sha256:
            raise ShardError(f"{file} does not match its checksum", remedy)


def _has_footer(file: Path) -> bool:
    with file.open("rb") as stream:
        stream.seek(-len(_MAGIC), 2)
        return stream.read() == _MAGIC
