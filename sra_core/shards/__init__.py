"""What lies on disk: fingerprinted stage folders, atomic shards, manifests written last, verifying readers."""

from sra_core.shards.files import atomic_write, file_digest
from sra_core.shards.folder import StageFolder, StoreLock
from sra_core.shards.manifest import SCHEMA_VERSION, FileEntry, Manifest, ShardEntry, differences, fingerprint
from sra_core.shards.prepared import PREPARED_SCHEMA, PreparedRow, PreparedSet, prepared_batch
from sra_core.shards.teacher import TeacherRow, TeacherSet, teacher_batch, teacher_schema

__all__ = [
    "PREPARED_SCHEMA",
    "SCHEMA_VERSION",
    "FileEntry",
    "Manifest",
    "PreparedRow",
    "PreparedSet",
    "ShardEntry",
    "StageFolder",
    "StoreLock",
    "TeacherRow",
    "TeacherSet",
    "atomic_write",
    "differences",
    "file_digest",
    "fingerprint",
    "prepared_batch",
    "teacher_batch",
    "teacher_schema",
]
