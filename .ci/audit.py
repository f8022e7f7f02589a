"""Look up the pinned dependencies among known vulnerabilities: `make audit`.

Fails for a vulnerability that a newer version mends. Where the vulnerability service cannot be reached, it says so and
does not fail: no answer is no finding.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"


def audit(command: list[str]) -> tuple[int, str]:
    """Run pip-audit on the pinned versions; returns the exit status and what to say."""
    options = ["--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip", "--timeout", "10"]
    try:
        done = subprocess.run(
            [*command, *options, "--format", "json", "--progress-spinner", "off"],
            capture_output=True,
            text=True,
            timeout=300,
        )
        found = json.loads(done.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError, KeyError):
        return 0, "audit skipped: the vulnerability service gave no answer"
    return judge(found)


def judge(found: list[dict[str, Any]]) -> tuple[int, str]:
    """Exit status and report for pip-audit's list of dependencies."""
    known = [item for item in found if "skip_reason" not in item]
    if not known:
        return 0, "audit skipped: the vulnerability service knows none of the packages, so it was not reached"
    flaws = [(item, flaw) for item in known for flaw in item["vulns"]]
    lines = [
        f"{item['name']} {item['version']}: {flaw['id']}, "
        f"mended in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for item, flaw in flaws
    ]
    mendable = any(flaw["fix_versions"] for _, flaw in flaws)
    return int(mendable), "\n".join([*lines, f"{len(known)} packages looked up, {len(flaws)} known vulnerabilities"])


if __name__ == "__main__":
    status, said = audit(sys.argv[1:] or [sys.executable, "-m", "pip_audit"])
    sys.stdout.write(f"{said}\n")
    raise SystemExit(status)
