"""Tables of scores and answers on disk, each with what it was made from: whole ones are not made again."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sra_core.shards import atomic_write

__all__ = ["is_made_from", "write_table"]

_KEY = b"sra"


def write_table(path: Path, table: pa.Table, key: str) -> None:
    """Write a table, whole or not at all, under the fingerprint of what it was made from."""
    with atomic_write(path) as file:
        made = table.replace_schema_metadata({_KEY: key.encode()})
        # With checksums: a changed byte inside a page would leave footer and key as they were, and be kept.
        pq.write_table(made, pa.PythonFile(file, mode="w"), write_page_checksum=True)


def is_made_from(path: Path, key: str) -> bool:
    """Whether a table is there, every byte of it as it was written, and was made from what ``key`` stands for."""
    try:
        # All of it: a page's checksum is looked at when the page is read.
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid):
        return False
    return (table.schema.metadata or {}).get(_KEY) == key.encode()
