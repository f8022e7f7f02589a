"""The commands for servers in docs/operations.md, in order, as printed except for the ports."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.integration.servers import ROOT, Stack, new_settings, services
from tests.test_docs import COMMANDS, PATHS, SERVICES

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def _run(line: str, environment: dict[str, str], settings: object) -> subprocess.CompletedProcess[str]:
    line = line.replace("http://127.0.0.1:4200", settings.prefect_url)  # type: ignore[attr-defined]
    words = shlex.split(line)
    own = dict(word.split("=", 1) for word in words if word.split("=")[0].isupper() and "=" in word)
    words = words[len(own) :]
    prefect = [*PATHS[".venv/bin/python"], "-m", "prefect"]
    words = [*{**PATHS, ".venv/bin/prefect": prefect}[words[0]], *words[1:]]
    return subprocess.run(words, cwd=ROOT, env={**environment, **own}, capture_output=True, text=True, timeout=600)


def test_commands_for_servers(tmp_path: Path) -> None:
    settings = new_settings(tmp_path)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_TRACKING"))},
        "SRA_STORE": settings.store,
        "SERVICES_HOME": str(settings.home),
        "SERVICES_PREFECT_PORT": str(settings.prefect_port),
        "SERVICES_MLFLOW_PORT": str(settings.mlflow_port),
    }
    lines = [command.text for command in COMMANDS if command.needs == SERVICES]
    stopped = [line for line in lines if line.endswith(" down")]
    trigger = next(line for line in lines if "deployment run" in line)
    guarded = next(line for line in lines if "AUTH_STRING" in line)
    plain = [line for line in lines if line not in (*stopped, trigger, guarded)]
    assert len(plain) == 2
    try:
        for line in (*plain, trigger, *stopped, guarded):
            done = _run(line, environment, settings)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        assert Stack(settings).prefect.post("/flow_runs/filter", json={}).status_code == 401
        inside = Stack(settings).prefect.post("/flow_runs/filter", json={}, auth=("ann", "opensesame")).json()
        assert [run["parameters"] for run in inside] == [{"recipe": "smoke", "seed": 1}]
    finally:
        services.down(settings)
