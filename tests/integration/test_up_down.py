"""`up` starts services that answer, applies the deployments, survives a restart; `down` leaves nothing behind."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import httpx
import psutil
import pytest

from .servers import Stack, command, new_settings, running_stack, services

pytestmark = pytest.mark.integration


def _environment(settings: object) -> dict[str, str]:
    return {
        "SRA_STORE": settings.store,  # type: ignore[attr-defined]
        "SERVICES_HOME": str(settings.home),  # type: ignore[attr-defined]
        "SERVICES_PREFECT_PORT": str(settings.prefect_port),  # type: ignore[attr-defined]
        "SERVICES_MLFLOW_PORT": str(settings.mlflow_port),  # type: ignore[attr-defined]
    }


@pytest.mark.timeout(1500)
def test_up_again_and_down_again(tmp_path: Path) -> None:
    settings = new_settings(tmp_path)
    environment = _environment(settings)
    try:
        first = command("deploy/services.py", "up", **environment)
        assert first.returncode == 0, first.stderr
        assert settings.prefect_url in first.stdout
        assert settings.mlflow_url in first.stdout
        stack = Stack(settings)
        stack.post("/variables/", {"name": "kept", "value": "yes"})
        pids = {service.name: services.running(service, settings).pid for service in services.services(settings)}

        again = command("deploy/services.py", "up", **environment)
        assert again.returncode == 0, again.stderr
        assert {s.name: services.running(s, settings).pid for s in services.services(settings)} == pids

        down = command("deploy/services.py", "down", **environment)
        assert down.returncode == 0, down.stderr
        assert not any(psutil.pid_exists(pid) for pid in pids.values())
        assert command("deploy/services.py", "status", **environment).returncode == 1

        assert command("deploy/services.py", "up", **environment).returncode == 0
        assert stack.prefect.get("/variables/name/kept").json()["value"] == "yes"
        assert command("deploy/services.py", "status", **environment).returncode == 0
    finally:
        services.down(settings)


def test_deployments_queues_and_schedule(stack: Stack) -> None:
    names = {"prepare": "cpu", "evaluate": "train", "cache": "train", "distill": "train", "pipeline": "train"}
    for name, queue in names.items():
        deployment = stack.deployment(name)
        assert (deployment["work_pool_name"], deployment["work_queue_name"]) == ("gpu", queue)
        assert deployment["enforce_parameter_schema"] is True
        assert "sra" in deployment["tags"]
        assert deployment["version"]
    queues = {queue["name"]: queue for queue in stack.post("/work_pools/gpu/queues/filter")}
    assert (queues["train"]["concurrency_limit"], queues["cpu"]["concurrency_limit"]) == (1, 2)
    (schedule,) = stack.deployment("pipeline")["schedules"]
    assert (schedule["active"], schedule["schedule"]["cron"]) == (False, "0 2 * * *")
    assert stack.deployment("pipeline")["global_concurrency_limit"] is None, "its slot would be a lease"


def test_automations_keep_the_switch_that_a_person_set(stack: Stack) -> None:
    def automations() -> dict[str, dict[str, object]]:
        return {item["name"]: item for item in stack.post("/automations/filter")}

    found = automations()
    enabled = {name: item["enabled"] for name, item in found.items()}
    assert enabled == {
        "evaluate-after-distill": False,
        "crash-silent-runs": True,
        "reschedule-crashed-runs": True,
    }
    address = f"/automations/{found['crash-silent-runs']['id']}"
    stack.prefect.patch(address, json={"enabled": False}).raise_for_status()
    services.apply(stack.settings)
    assert automations()["crash-silent-runs"]["enabled"] is False
    stack.prefect.patch(address, json={"enabled": True}).raise_for_status()
    assert len(automations()) == 3


def test_servers_listen_on_loopback_only(stack: Stack) -> None:
    for name in ("prefect", "mlflow"):
        process = services.running(stack.service(name), stack.settings)
        listening = [
            connection.laddr.ip
            for member in (process, *process.children(recursive=True))
            for connection in member.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening
        assert set(listening) == {"127.0.0.1"}


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    settings = new_settings(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.mlflow_port))
        taken.listen()
        done = command("deploy/services.py", "up", **_environment(settings))
    assert done.returncode == 1
    assert "mlflow" in done.stderr
    assert "address already in use; set SERVICES_MLFLOW_PORT" in done.stderr
    assert not list(settings.home.glob("*.pid")), "nothing was started"


@pytest.mark.timeout(1500)
def test_a_password_guards_prefect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "ann:opensesame")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ann:opensesame")
    with running_stack(new_settings(tmp_path)) as stack:
        assert stack.prefect.post("/flows/filter", json={}).status_code == 401
        inside = stack.prefect.post("/flows/filter", json={}, auth=("ann", "opensesame"))
        assert {flow["name"] for flow in inside.json()} >= {"pipeline", "distill"}
        log = "".join(path.read_text(errors="replace") for path in stack.settings.home.glob("*.log"))
        assert "opensesame" not in log


@pytest.mark.timeout(1500)
def test_a_password_guards_mlflow_and_runs_are_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask_wtf", reason="extra `auth` is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = new_settings(tmp_path, mlflow_auth="ann:opensesame-1234")
    with running_stack(settings) as stack:
        address = f"{settings.mlflow_url}/api/2.0/mlflow/experiments/search"
        assert httpx.post(address, json={"max_results": 10}).status_code == 401
        assert httpx.post(address, json={"max_results": 10}, auth=("ann", "wrong")).status_code == 401
        stack.mlflow.auth = ("ann", "opensesame-1234")
        flow_run = stack.trigger("prepare", recipe="smoke")
        stack.wait(flow_run, "COMPLETED", seconds=300)
        (run,) = stack.runs(flow_run)
        assert run["status"] == "FINISHED"
        assert "opensesame" not in json.dumps([run, stack.artifacts(flow_run), stack.log(flow_run)])
        log = "".join(path.read_text(errors="replace") for path in stack.settings.home.glob("*.log"))
        assert "opensesame" not in log


@pytest.mark.timeout(1500)
def test_postgresql_by_setting(tmp_path: Path, postgres: str) -> None:
    settings = new_settings(
        tmp_path,
        prefect_database=f"postgresql+asyncpg://{postgres}/prefect",
        mlflow_database=f"postgresql+psycopg2://{postgres}/mlflow",
    )
    with running_stack(settings) as stack:
        assert stack.deployment("pipeline")["name"] == "pipeline"
        created = stack.mlflow.post("/experiments/create", json={"name": "on-postgres"})
        assert created.status_code == 200, created.text
        assert httpx.get(f"{settings.mlflow_url}/health").text == "OK"
    assert not (settings.home / "prefect.db").exists()
    assert not (settings.state / "mlflow.db").exists()
