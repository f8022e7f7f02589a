"""How this machine's user calls the `sra` command, so that hints can be pasted as they are printed."""

from __future__ import annotations

import shutil
import sys
from functools import lru_cache
from pathlib import Path

__all__ = ["as_typed", "sra_command"]


@lru_cache(maxsize=1)
def sra_command() -> str:
    """``sra`` where a shell finds it; where it does not, the path of the one beside the interpreter."""
    beside, found = Path(sys.executable).parent / "sra", shutil.which("sra")
    # The `sra` that a shell finds may be that of another environment: then this one is named by its path.
    if not beside.exists() or (found and Path(found).samefile(beside)):
        return "sra"
    try:
        return str(beside.relative_to(Path.cwd()))
    except ValueError:
        return str(beside)


def as_typed(text: str) -> str:
    """A message with its commands (in backticks) as they are typed on this machine."""
    return text.replace("`sra ", f"`{sra_command()} ")
