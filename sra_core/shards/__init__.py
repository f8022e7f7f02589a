"""What lies on disk: fingerprinted stage folders, atomic shards, manifests written last, verifying readers."""

from sra_core.shards.files import atomic_write, file_digest
from sra_core.shards.folder import STUDENT, StageFolder, read_manifest, verify
from sra_core.shards.locks import Claim, StoreLock
from sra_core.shards.manifest import SCHEMA_VERSION, FileEntry, Manifest, ShardEntry, differences, fingerprint
from sra_core.shards.memory import MemoryPrepared, MemoryTeacher
from sra_core.shards.prepared import (
    PREPARED_SCHEMA,
    STUDENT_TOKENIZER,
    TEACHER_TOKENIZER,
    PreparedRow,
    PreparedSet,
    prepared_batch,
    prepared_row,
)
from sra_core.shards.remote import Remote, is_url, local_copy
from sra_core.shards.teacher import (
    TeacherBatch,
    TeacherRow,
    TeacherSet,
    decode_vectors,
    encode_vectors,
    teacher_batch,
    teacher_batches,
    teacher_schema,
)

__all__ = [
    "PREPARED_SCHEMA",
    "SCHEMA_VERSION",
    "STUDENT",
    "STUDENT_TOKENIZER",
    "TEACHER_TOKENIZER",
    "Claim",
    "FileEntry",
    "Manifest",
    "MemoryPrepared",
    "MemoryTeacher",
    "PreparedRow",
    "PreparedSet",
    "Remote",
    "ShardEntry",
    "StageFolder",
    "StoreLock",
    "TeacherBatch",
    "TeacherRow",
    "TeacherSet",
    "atomic_write",
    "decode_vectors",
    "differences",
    "encode_vectors",
    "file_digest",
    "fingerprint",
    "is_url",
    "local_copy",
    "prepared_batch",
    "prepared_row",
    "read_manifest",
    "teacher_batch",
    "teacher_batches",
    "teacher_schema",
    "verify",
]
