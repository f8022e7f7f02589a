"""The README's commands run as printed, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SmokeRun

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


ON_SMOKE = [command for command in commands() if command.startswith(".venv/bin/sra")]
MAKE = [command for command in commands() if command.startswith("make ")]
FLOWS = [command for command in commands() if command.startswith(".venv/bin/python -m flows.")]


@pytest.fixture(scope="module")
def store(smoke_run: SmokeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("readme") / "store"
    shutil.copytree(smoke_run.store, copy)
    return copy


def run(command: str, store: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    starts = {".venv/bin/sra": [sys.executable, "-m", "sra_core.cli"], ".venv/bin/python": [sys.executable]}
    environment = {**os.environ, "SRA_STORE": str(store), "SRA_TRACKING__ENABLED": "false"}
    words = [*starts[words[0]], *words[1:]]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=250)


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    assert len(ON_SMOKE) >= 8
    assert set(commands()) == {*ON_SMOKE, *MAKE, *FLOWS}
    assert all(" smoke" in command or re.search(r"sra (recipes|fields)", command) for command in ON_SMOKE)


@pytest.mark.parametrize("command", ON_SMOKE)
def test_command(command: str, store: Path) -> None:
    done = run(command, store)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout) > 100


@pytest.mark.integration
@pytest.mark.parametrize("command", FLOWS)
def test_flow_command(command: str, store: Path) -> None:
    done = run(command, store)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Completed" in done.stdout + done.stderr


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_the_target(command: str) -> None:
    assert subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "deploy/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not (folder / link).exists()] == []
