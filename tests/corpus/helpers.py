"""Small writers and readers that the corpus tests share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sra_core.config import CorpusConfig
from sra_core.corpus import Corpus, Example, Rejected

NO_HOLDOUT = {"validation_share": 0.0, "test_share": 0.0}


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """One JSON value a line; bytes are written as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def pairs(count: int, start: int = 0) -> list[dict[str, str]]:
    """Distinct instruction rows."""
    return [{"instruction": f"question {n}", "response": f"answer {n}"} for n in range(start, start + count)]


def corpus(path: Path | str, quarantine: Path | None = None, **fields: Any) -> Corpus:
    return Corpus(CorpusConfig(source=str(path), **fields), quarantine)


def kept(path: Path | str, **fields: Any) -> list[Example]:
    """The examples of a source, whatever their split."""
    return [item for _, item in corpus(path, **fields) if isinstance(item, Example)]


def rejected(path: Path | str, **fields: Any) -> list[Rejected]:
    return [item for _, item in corpus(path, **fields) if isinstance(item, Rejected)]


def splits(path: Path | str, **fields: Any) -> dict[str, str]:
    """Split by response, of what was kept."""
    return {item.response: split for split, item in corpus(path, **fields) if isinstance(item, Example)}
