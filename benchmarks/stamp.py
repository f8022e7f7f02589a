"""What every benchmark's JSON says about where its figures come from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["machine", "write_json"]

_VERSIONS = ("sra", "torch", "transformers", "tokenizers", "numpy", "pyarrow", "deepspeed")


def machine() -> dict[str, Any]:
    """Processor, cores, system, versions, commit and time."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _VERSIONS},
    }


def write_json(path: Path | None, results: dict[str, Any]) -> None:
    """Write results with the stamp, unless ``path`` is None."""
    if path is not None:
        path.write_text(json.dumps({**results, "stamp": machine()}, indent=2) + "\n", encoding="utf-8")


def _commit() -> str:
    """The commit of the checkout, with ``+`` where files differ from it; empty outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=12"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip()
