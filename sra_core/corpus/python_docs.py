"""The embedded corpus: what the running interpreter's standard library says about itself."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from sra_core.corpus.types import Row
from sra_core.errors import DataError

__all__ = ["PythonDocs"]

NAME = "python-docs"
SCRIPT = Path(__file__).with_name("collect_docs.py")
SECONDS = 120
REMEDY = "run with an ordinary CPython 3.11 or later, or set corpus.source to data of your own"


class PythonDocs:
    """Documented functions and classes of the standard library as questions and answers, sorted by name."""

    layout: str | None = "instruction"
    brought: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.notes: list[str] = []

    def identity(self) -> dict[str, Any]:
        """The interpreter's version and the digest of what it said."""
        text = _collected()
        return {
            "kind": NAME,
            "python": platform.python_version(),
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }

    def __iter__(self) -> Iterator[Row]:
        for line, text in enumerate(_collected().splitlines(), 1):
            record = json.loads(text)
            record["instruction"] = f"What does `{record['id'].removeprefix('builtins.')}` do?"
            yield Row(NAME, NAME, line, record)


@cache  # asked for the identity and by every pass
def _collected() -> str:
    """Run the collecting script in an isolated interpreter, without a display; JSON lines.

    Raises:
        DataError: If the interpreter cannot be started, crashes, or takes too long.
    """
    # Isolated (-I) and without site (-S): no variable, folder or .pth file of the user's changes what is collected.
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-W", "ignore", str(SCRIPT)]
    environment = {key: value for key, value in os.environ.items() if key not in {"DISPLAY", "WAYLAND_DISPLAY"}}
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, env=environment, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        raise DataError(f"python-docs: cannot run {sys.executable or 'the interpreter'}: {error}", REMEDY) from error
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode or not text:
        reason = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise DataError(f"python-docs: the collecting process ended with {done.returncode}: {reason}", REMEDY)
    return text
