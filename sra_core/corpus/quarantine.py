"""Where malformed rows are put aside, up to the number that the user allows."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from sra_core.corpus.types import BadRow, Rejected
from sra_core.errors import DataError

__all__ = ["Quarantine"]


class Quarantine:
    """Counts the malformed rows of one pass and writes them as JSON lines: file, line, reason, raw.

    Args:
        path: The file to write, made at the first malformed row; one left from an earlier pass is removed. None keeps
            the count only.
        most: Malformed rows to put aside before the pass stops.
    """

    def __init__(self, path: Path | None, most: int) -> None:
        self.path = path
        self._most = most
        self._count = 0
        self._first: BadRow | None = None
        if path is not None:
            path.unlink(missing_ok=True)

    def add(self, row: BadRow, error: DataError | None = None) -> Rejected:
        """Put a row aside.

        Args:
            error: What to raise in place of the usual error when there are more than allowed.

        Raises:
            DataError: If there are more than allowed; it names the file and line of the first one.
        """
        # A lone surrogate out of the row must not stop the message that tells of it.
        row = replace(row, reason=row.reason.encode(errors="backslashreplace").decode())
        self._count += 1
        self._first = self._first or row
        if self.path is not None:
            self._write(self.path, row)
        if self._count > self._most:
            raise error or self._too_many(self._first)
        name = f"{row.name}:{row.line}"
        return Rejected(name, "malformed", f"{row.name}, line {row.line}: {row.reason}")

    @staticmethod
    def _write(path: Path, row: BadRow) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"file": row.path, **{key: value for key, value in asdict(row).items() if key not in ("path", "name")}}
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def _too_many(self, first: BadRow) -> DataError:
        problem = f"{first.path}, line {first.line}: {first.reason}"
        if self._most:
            problem += f" (the first of {self._count} malformed rows, where corpus.max_malformed allows {self._most})"
        kept = f"; they are listed in {self.path}" if self.path is not None else ""
        return DataError(problem, f"mend the row, or raise corpus.max_malformed to go on without rows like it{kept}")
