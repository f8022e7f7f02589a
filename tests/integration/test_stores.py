"""One store, one place of artifacts: with the servers of `up` and without."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from .servers import ROOT, Stack, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def alone(stack: Stack) -> dict[str, Any]:
    """A prepare run of the command line, without the server, in the store that `up` made; its MLflow run."""
    first = stack.trigger("prepare", recipe="smoke")  # the experiment is the server's own
    stack.wait(first, "COMPLETED", seconds=240)
    settings = ["--set", f"store={stack.settings.store}", "--set", "name=alone", "--set", "seed=77"]
    command = [sys.executable, "-m", "sra_core.cli", "prepare", "smoke", *settings, "--set", "alignment.max_length=88"]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "dropped" not in done.stdout + done.stderr
    (run,) = [run for run in stack.runs() if run["name"] == "smoke · sra · seed 77 · alone · prepare"]
    return run


def _figure(address: str, run: dict[str, Any]) -> bytes:
    listed = httpx.get(
        f"{address}/api/2.0/mlflow/artifacts/list", params={"run_id": run["id"], "path": "figures"}, timeout=60
    )
    names = [item["path"] for item in listed.json().get("files", [])]
    assert names, "the run has its figures"
    answer = httpx.get(f"{address}/get-artifact", params={"path": names[0], "run_uuid": run["id"]}, timeout=60)
    return answer.content


def test_the_server_shows_what_a_command_line_run_kept(stack: Stack, alone: dict[str, Any]) -> None:
    assert _figure(stack.settings.mlflow_url, alone).startswith(b"\x89PNG")


def test_the_ui_takes_a_free_port_shows_what_the_server_kept_and_ends_whole(
    stack: Stack, alone: dict[str, Any]
) -> None:
    (served,) = [
        run for run in stack.runs() if run["name"] == "smoke · sra · seed 0 · prepare" and "reused" not in run["tags"]
    ][:1]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 5000))
            taken.listen()
        except OSError:
            pass  # somebody listens there already
        command = [sys.executable, "-u", "-m", "sra_core.cli", "ui", "smoke", "--set", f"store={stack.settings.store}"]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert server.stdout is not None
        try:
            address = next(found[0] for line in server.stdout if (found := re.findall(r"http://127.0.0.1:\d+", line)))
            assert not address.endswith(":5000")
            until(lambda: _answers(f"{address}/health"), 120, "the UI")
            for run in (served, alone):
                assert _figure(address, run).startswith(b"\x89PNG")
            family = psutil.Process(server.pid).children(recursive=True)
            assert family
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    _, left = psutil.wait_procs(family, timeout=10)
    assert left == []


def test_deleted_runs_leave_with_their_artifacts(stack: Stack, alone: dict[str, Any]) -> None:
    folder = Path(alone["artifacts"].removeprefix("file://"))
    assert list(folder.rglob("*.png"))
    stack.mlflow.post("/runs/delete", json={"run_id": alone["id"]}).raise_for_status()
    database = f"sqlite:///{stack.settings.store}/mlflow.db"
    documented = f"gc --backend-store-uri {database} --tracking-uri {database}"
    assert documented.replace(f"{stack.settings.store}/", "sra-store/") in (ROOT / "docs/operations.md").read_text()
    done = subprocess.run([sys.executable, "-m", "mlflow", *documented.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(folder.rglob("*.png"))


def _answers(address: str) -> bool:
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False
