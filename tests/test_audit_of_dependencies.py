"""The audit of dependencies is red for what can be mended, and never for a service that does not answer."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "audit.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit_of_dependencies", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _package(*flaws: tuple[str, list[str]]) -> dict[str, Any]:
    return {"name": "p", "version": "1.0", "vulns": [{"id": name, "fix_versions": fixed} for name, fixed in flaws]}


@pytest.mark.parametrize(
    ("found", "status", "said"),
    [
        ([_package()], 0, "1 packages looked up, 0 known"),
        ([_package(("CVE-1", ["1.1"])), _package()], 1, "p 1.0: CVE-1, mended in 1.1"),
        ([_package(("CVE-1", []))], 0, "mended in no version yet"),
        ([{"name": "p", "skip_reason": "not found"}], 0, "audit skipped"),
    ],
)
def test_what_counts(script: ModuleType, found: list[dict[str, Any]], status: int, said: str) -> None:
    code, text = script.judge(found)
    assert code == status
    assert said in text


@pytest.mark.parametrize("code", ["raise SystemExit('no network')", "print('not JSON')"])
def test_no_answer_is_no_finding(script: ModuleType, code: str) -> None:
    assert script.audit([sys.executable, "-c", code]) == (
        0,
        "audit skipped: the vulnerability service gave no answer",
    )


def test_an_answer_is_read_whatever_the_exit_status(script: ModuleType) -> None:
    answer = json.dumps({"dependencies": [_package(("CVE-1", ["2"]))]})
    status, _ = script.audit([sys.executable, "-c", f"print({answer!r}); raise SystemExit(1)"])
    assert status == 1
