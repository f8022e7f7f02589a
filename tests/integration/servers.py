"""Real servers on free ports of the loopback, and what a person does with them."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
TERMINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def load_services() -> ModuleType:
    """deploy/services.py as a module; deploy is a folder of files, not a package."""
    spec = importlib.util.spec_from_file_location("services", ROOT / "deploy" / "services.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["services"] = module
    spec.loader.exec_module(module)
    return module


services = load_services()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(true: Callable[[], Any], seconds: float, what: str = "") -> Any:
    """Wait for something to become true and return it."""
    limit = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < limit, f"waited {seconds} s in vain: {what}"
        time.sleep(0.3)
    return value


class _Patient(httpx.HTTPTransport):
    """Asks again where SQLite is busy (503, docs/operations.md), as Prefect's own client does."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(20):
            answer = super().handle_request(request)
            if answer.status_code != 503:
                break
            answer.close()
            time.sleep(0.5)
        return answer


class Stack:
    """Running services, and what a person does with them."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.prefect = httpx.Client(base_url=f"{settings.prefect_url}/api", timeout=30, transport=_Patient())
        self.mlflow = httpx.Client(base_url=f"{settings.mlflow_url}/api/2.0/mlflow", timeout=30)

    def post(self, path: str, content: Any = None) -> Any:
        answer = self.prefect.post(path, json=content or {})
        assert answer.status_code < 300, f"{path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.prefect.get(f"/deployments/name/{name}/{name}").raise_for_status().json()
        return found

    def trigger(self, name: str, **parameters: Any) -> str:
        """Start a deployment as the UI does; returns the id of the flow run."""
        path = f"/deployments/{self.deployment(name)['id']}/create_flow_run"
        content = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self.post(path, content)["id"])

    def flow_run(self, flow_run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.prefect.get(f"/flow_runs/{flow_run_id}").raise_for_status().json()
        return found

    def state(self, flow_run_id: str) -> str:
        return str(self.flow_run(flow_run_id)["state"]["type"])

    def wait(self, flow_run_id: str, *states: str, seconds: float = 240) -> str:
        wanted = set(states) or TERMINAL
        state = until(lambda: (now := self.state(flow_run_id)) in wanted | TERMINAL and now, seconds, f"state {wanted}")
        assert state in wanted, (
            f"{state}: {self.flow_run(flow_run_id)['state'].get('message')}\n{self.log(flow_run_id)}"
        )
        return str(state)

    def set_state(self, flow_run_id: str, kind: str, name: str | None = None) -> None:
        self.post(f"/flow_runs/{flow_run_id}/set_state", {"state": {"type": kind, "name": name}, "force": False})

    def artifacts(self, flow_run_id: str) -> dict[str, dict[str, Any]]:
        found = self.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}, "limit": 200})
        return {artifact["key"]: artifact for artifact in found}

    def task_runs(self, flow_run_id: str) -> list[dict[str, Any]]:
        found = self.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run_id]}}})
        return sorted(found, key=lambda run: str(run["expected_start_time"]))

    def log(self, flow_run_id: str) -> str:
        lines = self.post("/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "limit": 200})
        return "\n".join(line["message"] for line in lines)

    def runs(self, flow_run_id: str | None = None) -> list[dict[str, Any]]:
        """MLflow runs, oldest first, of one flow run or all: {id, status, name, tags, params, metrics}."""
        experiments = self.mlflow.post("/experiments/search", json={"max_results": 100}).json().get("experiments", [])
        content = {"experiment_ids": [item["experiment_id"] for item in experiments], "max_results": 500}
        if flow_run_id:
            content["filter"] = f"tags.`prefect.flow_run_id` = '{flow_run_id}'"
        found = self.mlflow.post("/runs/search", json=content).json().get("runs", [])
        plain = [_plain_run(run) for run in found]
        return sorted(plain, key=lambda run: run["start"])

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        content = {"run_id": run_id, "metric_key": metric, "max_results": 25000}
        found = self.mlflow.get("/metrics/get-history", params=content).json().get("metrics", [])
        return [(int(item["step"]), float(item["value"])) for item in found]

    def service(self, name: str) -> Any:
        return next(service for service in services.services(self.settings) if service.name == name)

    def stop(self, name: str) -> None:
        process = services.running(self.service(name), self.settings)
        assert process is not None
        services.stop(process)

    def start(self, name: str) -> None:
        services.start(self.service(name), self.settings)
        services.wait(self.service(name), self.settings)


def _plain_run(run: dict[str, Any]) -> dict[str, Any]:
    data = run["data"]
    return {
        "id": run["info"]["run_id"],
        "status": run["info"]["status"],
        "name": run["info"]["run_name"],
        "start": run["info"]["start_time"],
        "artifacts": run["info"]["artifact_uri"],
        **{kind: {item["key"]: item["value"] for item in data.get(kind, [])} for kind in ("tags", "params", "metrics")},
    }


def new_settings(folder: Path, **changes: Any) -> Any:
    places = {"store": str(folder / "store"), "state": folder / "store", "home": folder / "home"}
    return services.Settings(prefect_port=free_port(), mlflow_port=free_port(), **places, **changes)


@contextmanager
def running_stack(settings: Any) -> Iterator[Stack]:
    """Services that run inside the block and are gone after it."""
    try:
        services.up(settings)
        yield Stack(settings)
    finally:
        services.down(settings)


def processes_with(text: str) -> list[psutil.Process]:
    """Living processes whose command line holds ``text``."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and text in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return [process for process in found if process.pid != os.getpid()]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
