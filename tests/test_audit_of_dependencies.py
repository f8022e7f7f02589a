"""The audit of dependencies is red for what can be mended, and never for a service that does not answer."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / ".ci" / "audit.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit_of_dependencies", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pinned_packages_run_on_the_oldest_python_that_is_named() -> None:
    """pip of Python 3.11.2, which Debian 12 has, went through versions without end where a pin asked for 3.11.5."""
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    wanted = {}
    for package in metadata.distributions():
        wanted[canonicalize_name(package.name), package.version] = package.metadata.get("Requires-Python") or ""
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    refused = {
        f"{name} {version} needs {wanted[canonicalize_name(name), version]}"
        for name, version in pins
        if oldest not in SpecifierSet(wanted.get((canonicalize_name(name), version), ""))
    }
    assert not refused


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
