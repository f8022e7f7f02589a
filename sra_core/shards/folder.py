"""One folder a stage result, named by its fingerprint: finished shards leave receipts, the manifest comes last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from sra_core.errors import ShardError
from sra_core.shards.files import PARTIAL_SUFFIX, atomic_write, file_digest
from sra_core.shards.locks import Claim, StoreLock, wait_for
from sra_core.shards.manifest import FileEntry, Manifest, ShardEntry, Upstream, differences, fingerprint
from sra_core.shards.remote import RECEIPT, Lease, Remote, is_url, local_copy

__all__ = ["STUDENT", "StageFolder", "read_manifest", "verify"]

STUDENT = "student"
"""Subfolder of a result of distill that holds the trained student."""
_MAGIC = b"ARROW1"
_RECORDED = ("sra", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "deepspeed")


class StageFolder:
    """The folder of one stage result: ``<store>/<results of the stage>/<fingerprint>/``.

    A store behind a URL is read and written through a local folder: shards and files are sent there as they are made,
    and fetched when a finished result is asked for.

    Args:
        store: Root of the store: a folder or an fsspec URL.
        stage: Stage name: prepare, adapt, cache, distill, evaluate, generate or benchmark.
        identity: All that determines the bytes of the result.
    """

    FOLDERS: Mapping[str, str] = {
        "prepare": "prepared",
        "adapt": "adapted",
        "cache": "teacher",
        "distill": "students",
        "evaluate": "evaluations",
        "generate": "generated",
        "benchmark": "benchmarks",
    }

    def __init__(self, store: str | Path, stage: str, identity: Mapping[str, Any]) -> None:
        self.stage = stage
        self.identity = dict(identity)
        self.fingerprint = fingerprint(identity)
        url = str(store) if is_url(str(store)) else None
        root = local_copy(url) if url else Path(store).expanduser().absolute()
        self._store = url or str(root)
        self.path = root / self.FOLDERS[stage] / self.fingerprint
        self.remote = Remote(url) / self.FOLDERS[stage] / self.fingerprint if url else None
        # One object a name, kept: only so does a claim know that this very process holds it.
        self._claims: dict[str, Claim] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Elsewhere it is the same result of the same store, claims nothing and has its own local copy."""
        return StageFolder, (self._store, self.stage, self.identity)

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def manifest(self, upstream: Iterable[Manifest] = (), *, full: bool = False) -> Manifest | None:
        """The manifest if the stage is done, everything that it names is whole and made from ``upstream``, else None.

        Args:
            upstream: Results that the stage reads; one that was made again with other bytes makes this one stale.
            full: Read every byte and compare checksums; otherwise sizes and Arrow footers.
        """
        if self.remote:
            # First what others have: a result that was made again or reset elsewhere is no longer this one.
            self.remote.mirror("manifest.json", self.manifest_path, partial(_drop_others, self.path))
        if not self.manifest_path.exists():
            return None
        try:
            manifest = read_manifest(self.path)
            self.fetch([*manifest.shards, *manifest.files])
            verify(self.path, [*manifest.shards, *manifest.files], full=full)
        except ShardError:
            return None
        # By bytes, not by name: an upstream that was deleted and made again alike leaves this result valid.
        fresh = all(manifest.upstream[made.stage].content == made.content for made in upstream)
        return manifest if fresh else None

    def fetch(self, entries: Iterable[FileEntry]) -> None:
        """Bring files of a remote store to this machine; those that are here already are left as they are.

        Raises:
            ShardError: One is missing or not what its entry says.
        """
        if self.remote:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda entry: self.remote.pull(entry, self.path / entry.name), entries))  # type: ignore[union-attr]

    def send(self, entries: Iterable[FileEntry]) -> None:
        """Copy files of this machine to a remote store; nothing to do where the store is a local folder."""
        if self.remote:
            for entry in entries:
                self.remote.push(self.path / entry.name, entry.name)

    def write_note(self, name: str, text: str) -> None:
        """Keep a small text beside the shards, for whoever goes on with the stage; it is no part of the result."""
        with atomic_write(self.path / name) as file:
            file.write(text.encode())
        if self.remote:
            self.remote.push(self.path / name, name)

    def read_note(self, name: str) -> str | None:
        """A text that `write_note` kept, else None."""
        path = self.path / name
        if self.remote:
            self.remote.mirror(name, path)
        return path.read_text() if path.is_file() else None

    def remove_note(self, name: str) -> None:
        """Remove a text that `write_note` kept, if it is there."""
        self.remove(name)
        if self.remote:
            self.remote.remove(name)

    def missing(self, command: str) -> tuple[str, str]:
        """Problem and remedy for a result that is not there, naming where the nearest other result differs.

        Args:
            command: What makes the result.
        """
        remedy = f"run `{command}` with this config first"
        others = list(self.siblings())
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

    def siblings(self) -> Iterator[Manifest]:
        """Manifests of the other results of this stage in the store, by fingerprint; nothing is verified."""
        if self.remote:
            siblings = Remote(self.remote.url.rpartition("/")[0])
            for name in siblings.names("*/manifest.json"):
                path = self.path.parent / name
                siblings.mirror(name, path, partial(_drop_others, path.parent))
        for path in sorted(self.path.parent.glob("*/manifest.json")):
            with suppress(ShardError):
                manifest = read_manifest(path.parent)
                if manifest.stage == self.stage and manifest.fingerprint != self.fingerprint:
                    yield manifest

    def sibling(self, manifest: Manifest) -> StageFolder:
        """The folder of another result of this stage in the same store."""
        return StageFolder(self._store, self.stage, manifest.identity)

    @contextmanager
    def lock(self, waiting: Callable[[], None] = lambda: None, timeout: float = -1) -> Iterator[None]:
        """Hold the folder against other processes; the lock of a dead process is free at once.

        Args:
            waiting: Called once if another process holds the folder.
            timeout: Seconds to wait; -1 waits for ever.

        Raises:
            StorageError: The folder stayed locked for longer than ``timeout``, or cannot be made.
        """
        with self.guard(waiting, timeout):
            # The lock is held, so nobody writes here: these are of processes that died.
            for unfinished in self.path.rglob(f".*{PARTIAL_SUFFIX}"):
                unfinished.unlink(missing_ok=True)
            yield

    @contextmanager
    def guard(self, waiting: Callable[[], None] = lambda: None, timeout: float = -1) -> Iterator[None]:
        """As `lock`, for a moment's work while other processes make shards under claims: their files stay."""
        # The file's lock ends with its process and holds on this machine; the lease holds between machines.
        lease = Lease(self.remote, "lock") if self.remote else None
        # The lock first: processes of one machine settle it among themselves, and one of them asks the store.
        with StoreLock(self.path, waiting, timeout):
            if lease:
                wait_for(lease, waiting, timeout, self.path)
            try:
                yield
            finally:
                if lease:
                    lease.release()

    def claim(self, name: str) -> Claim | None:
        """Own the making of a shard until `Claim.release`; None while another process owns it.

        The claim of a dead process is free at once on one machine, and after a minute between machines.
        """
        claim = self._claims.setdefault(name, Claim(self.path, self.remote, name))
        if not claim.acquire():
            return None
        # Of this shard alone: other processes are at work on theirs.
        for unfinished in self.path.glob(f".{name}.*{PARTIAL_SUFFIX}"):
            unfinished.unlink(missing_ok=True)
        return claim

    def finished_shards(self, sources: Mapping[str, str] | None = None) -> dict[str, ShardEntry]:
        """Shards that were written whole, by name; receipts of damaged ones are removed so that they are made again.

        Args:
            sources: Checksum of the upstream shard of each name; a shard made from another one does not count.
        """
        names = [path.name.removesuffix(RECEIPT) for path in sorted(self.path.glob(f"*{RECEIPT}"))]
        if self.remote:
            # In place of the local ones: what other machines have finished counts, whether it was fetched or not.
            names = [name.removesuffix(RECEIPT) for name in self.remote.names(f"*{RECEIPT}")]
        found = {name: self.finished_shard(name, None if sources is None else sources.get(name)) for name in names}
        return {name: entry for name, entry in found.items() if entry is not None}

    def finished_shard(self, name: str, source: str | None = None) -> ShardEntry | None:
        """The entry of a shard that was written whole, else None."""
        receipt = self.path / f"{name}{RECEIPT}"
        if self.remote:
            self.remote.mirror(receipt.name, receipt)
        try:
            entry = ShardEntry.model_validate_json(receipt.read_bytes())
            self._verify_shard(entry, source)
        except FileNotFoundError:
            return None
        except (ShardError, ValidationError):
            receipt.unlink(missing_ok=True)
            if self.remote:
                self.remote.remove(receipt.name)
            return None
        return entry

    def _verify_shard(self, entry: ShardEntry, source: str | None) -> None:
        if source is not None and entry.source != source:
            raise ShardError(f"{entry.name} was made from another upstream shard", "run the stage again")
        if not self.remote:
            verify(self.path, [entry], full=True)
            return
        # One in a remote store is judged by its size: its checksum would cost its whole transfer.
        if self.remote.size(entry.name) != entry.bytes:
            raise ShardError(f"{self.remote.url}/{entry.name} is damaged", "run the stage again")
        _drop_other(self.path, entry)

    def write_shard(
        self,
        name: str,
        split: str,
        batches: Iterable[pa.RecordBatch],
        schema: pa.Schema,
        *,
        compression: str | None = None,
        counts: Mapping[str, int] | None = None,
        source: str = "",
    ) -> ShardEntry:
        """Write an Arrow IPC file atomically, then its receipt.

        Args:
            name: File name.
            split: Split of its examples.
            batches: Its rows.
            schema: Their schema.
            compression: ``zstd`` or None.
            counts: What happened to its examples, by reason.
            source: Checksum of the upstream shard that it is made from.

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
            name=name,
            split=split,
            rows=rows,
            bytes=file.bytes,
            sha256=file.sha256,
            source=source,
            counts=dict(counts or {}),
        )
        # After the shard: one without a receipt was not finished, and is made again.
        with atomic_write(self.path / f"{name}{RECEIPT}") as receipt:
            receipt.write(entry.model_dump_json().encode())
        if self.remote:
            # The receipt last here too: whoever sees it may read the shard.
            self.remote.push(self.path / name, name)
            self.remote.push(self.path / f"{name}{RECEIPT}", f"{name}{RECEIPT}")
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
        notes: Mapping[str, str] | None = None,
    ) -> Manifest:
        """Write the manifest, last and by rename: from now on the stage is done."""
        files = list(files)
        # Shards were sent when they were written; the manifest must name nothing that is not there.
        self.send(files)
        manifest = Manifest(
            stage=self.stage,
            fingerprint=self.fingerprint,
            identity=self.identity,
            upstream={made.stage: Upstream(fingerprint=made.fingerprint, content=made.content) for made in upstream},
            shards=list(shards),
            files=files,
            counts=dict(counts or {}),
            metrics=dict(metrics or {}),
            notes=dict(notes or {}),
            # For whoever reads it: neither versions nor the time are part of identity or content.
            versions={name: metadata.version(name) for name in _RECORDED},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            folder=str(self.path),
        )
        with atomic_write(self.manifest_path) as file:
            file.write(manifest.model_dump_json(indent=2).encode())
        if self.remote:
            self.remote.push(self.manifest_path, "manifest.json")
        return manifest

    def reset(self) -> None:
        """Forget that the stage was done, keeping every shard that may still be whole."""
        self.manifest_path.unlink(missing_ok=True)
        if self.remote:
            self.remote.remove("manifest.json")

    def remove(self, name: str) -> None:
        """Remove a file or subfolder of the folder if it is there."""
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _drop_others(folder: Path, manifest: bytes) -> None:
    """Remove what lies here of another result of the same name, before a manifest from the remote store takes over."""
    with suppress(ValidationError):
        made = Manifest.model_validate_json(manifest)
        for entry in (*made.shards, *made.files):
            _drop_other(folder, entry)


def _drop_other(folder: Path, entry: FileEntry) -> None:
    """Remove a local file with other bytes than the entry names: what two machines make may differ, and not in size."""
    path = folder / entry.name
    if path.is_file() and file_digest(path) != entry.sha256:
        path.unlink(missing_ok=True)


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
        # An Arrow file ends with these letters, written when it is closed: a cheap sign that it is whole.
        stream.seek(-len(_MAGIC), 2)
        return stream.read() == _MAGIC
