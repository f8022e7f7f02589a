"""The manifest: what a stage made, from what, and how to tell that it is whole.

It is written last; its presence means done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = [
    "SCHEMA_VERSION",
    "FileEntry",
    "Manifest",
    "ShardEntry",
    "Upstream",
    "differences",
    "fingerprint",
]

# One more renames every result of every store: all are made again.
SCHEMA_VERSION = 1
"""Version of the shard formats; part of every fingerprint."""


class FileEntry(BaseModel):
    """A file of a stage folder."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Path inside the stage folder, with forward slashes.")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @field_validator("name")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        path = PurePosixPath(name)
        # A manifest may come from a remote store: what it names is fetched to, verified and deleted at this path.
        if not name or path.is_absolute() or ".." in path.parts or "\\" in name:
            raise ValueError(f"{name!r} leaves the stage folder")
        return name


class ShardEntry(FileEntry):
    """An Arrow shard: one row an example."""

    split: str
    rows: int = Field(ge=0)
    source: str = Field("", description="SHA-256 of the upstream shard that it was made from, if there is one.")
    counts: dict[str, int] = Field({}, description="What happened to the examples of this shard, by reason.")


class Upstream(BaseModel):
    """What a stage read: which result, and a digest of its bytes."""

    model_config = ConfigDict(extra="forbid")

    fingerprint: str
    content: str


class Manifest(BaseModel):
    """The result of one stage."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    fingerprint: str
    identity: dict[str, Any] = Field(description="All that determines the bytes; the fingerprint hashes it.")
    upstream: dict[str, Upstream] = Field({}, description="The results that this stage read, by stage.")
    shards: list[ShardEntry] = []
    files: list[FileEntry] = []
    counts: dict[str, int] = Field({}, description="Examples in, kept, and dropped by reason.")
    metrics: dict[str, float] = Field({}, description="Scores and costs of the stage.")
    notes: dict[str, str] = Field({}, description="What was decided while it ran, such as the layout of batches.")
    versions: dict[str, str] = Field({}, description="Packages that made it.")
    created: str = Field(description="UTC time at which the stage ended.")
    folder: str = Field("", exclude=True, description="Where it was read from; not stored.")

    def rows(self, split: str) -> int:
        """Examples kept in a split."""
        return sum(shard.rows for shard in self.shards if shard.split == split)

    @property
    def content(self) -> str:
        """A digest of the bytes of all shards and files."""
        # Of names and bytes alone: a stage that is made again alike has the same content, and what rests on it stays.
        return fingerprint({entry.name: entry.sha256 for entry in (*self.shards, *self.files)})

    def size(self) -> int:
        """Bytes of all shards and files."""
        return sum(entry.bytes for entry in (*self.shards, *self.files))


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of the identity as canonical JSON."""
    # Every option is fixed: a change of one would give all results other names.
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(wanted: Any, found: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, wanted, found) for every leaf in which two identities differ."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for key in sorted({*wanted, *found}):
            yield from differences(wanted.get(key), found.get(key), f"{path}.{key}" if path else key)
    elif wanted != found:
        yield path, wanted, found
