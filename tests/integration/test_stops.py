"""Services that stop or are killed in the middle of a run, on real servers: the run goes on and nothing is lost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from .servers import Stack, new_settings, running_stack, services, until
from .test_flows_servers import LONG, _steps, _store, _take_slot, _training

STEPS = 250
RUN = {**LONG, "distill.max_steps": STEPS}

pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400)]


def _kill_everything(stack: Stack) -> None:
    members: list[psutil.Process] = []
    for service in services.services(stack.settings):
        process = services.running(service, stack.settings)
        members += [process, *process.children(recursive=True)]
    for member in members:
        member.kill()
    psutil.wait_procs(members, timeout=10)


def _goes_on(stack: Stack, flow_run: str, steps: int = STEPS) -> None:
    """The run ends well at its second start, and each step is there once."""
    stack.wait(flow_run, "COMPLETED", seconds=800)
    assert stack.flow_run(flow_run)["run_count"] == 2
    assert sorted(_steps(stack, flow_run)) == list(range(1, steps + 1))
    assert {run["status"] for run in stack.runs(flow_run)} == {"FINISHED"}


def test_down_in_the_middle_of_a_run_and_up_again(stack: Stack) -> None:
    # `down` gives a run half a minute to end by itself: on an idle machine that is 700 steps.
    long = {**LONG, "distill.max_steps": 6 * STEPS}
    flow_run = stack.trigger("pipeline", recipe="smoke", overrides=_store(stack, "stopped", **long))
    _training(stack, flow_run)
    services.down(stack.settings)
    prefect, mlflow, _ = services.services(stack.settings)
    for service in (prefect, mlflow):
        services.start(service, stack.settings)
        services.wait(service, stack.settings)
    assert stack.flow_run(flow_run)["state"]["name"] == "AwaitingRetry", "it waits for a worker"
    assert "RUNNING" not in {run["status"] for run in stack.runs(flow_run)}
    services.up(stack.settings)
    _goes_on(stack, flow_run, 6 * STEPS)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_everything_is_killed_and_up_again(
    database: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database == "sqlite":
        _killed_and_up_again(request.getfixturevalue("stack"))
        return
    server = request.getfixturevalue("postgres")
    settings = new_settings(
        tmp_path,
        prefect_database=f"postgresql+asyncpg://{server}/prefect",
        mlflow_database=f"postgresql+psycopg2://{server}/mlflow",
    )
    with running_stack(settings) as stack:
        _killed_and_up_again(stack)


def _killed_and_up_again(stack: Stack) -> None:
    flow_run = stack.trigger("pipeline", recipe="smoke", overrides=_store(stack, "killed-all", **RUN))
    # It has the queue first, and for longer than a run may be silent.
    waiting = stack.trigger("pipeline", recipe="smoke", overrides=_store(stack, "waited", **LONG))
    _training(stack, flow_run)
    _kill_everything(stack)
    services.up(stack.settings)
    _goes_on(stack, flow_run)
    stack.wait(waiting, "COMPLETED", seconds=800)


def test_a_killed_worker_leaves_its_run_going(stack: Stack) -> None:
    flow_run = stack.trigger("pipeline", recipe="smoke", overrides=_store(stack, "orphan", **RUN))
    _training(stack, flow_run)
    worker = services.running(stack.service("worker"), stack.settings)
    worker.kill()
    worker.wait(10)
    try:
        stack.wait(flow_run, "COMPLETED", seconds=800)
    finally:
        stack.start("worker")
    assert stack.flow_run(flow_run)["run_count"] == 1


def test_a_run_elsewhere_that_is_silent_after_up_is_found(stack: Stack) -> None:
    """A run whose process is on a machine that `up` cannot look at: the server waits for a heartbeat again."""
    flow_run = stack.trigger("prepare", recipe="smoke")
    stack.wait(flow_run, "COMPLETED", seconds=240)
    stack.post(f"/flow_runs/{flow_run}/set_state", {"state": {"type": "RUNNING"}, "force": True})
    stack.prefect.patch(f"/flow_runs/{flow_run}/labels", json={"sra.process": "elsewhere:1:1"}).raise_for_status()
    services.recover(stack.settings)
    assert stack.state(flow_run) == "RUNNING"
    until(lambda: stack.state(flow_run) == "CRASHED", 130, "crashed")
    until(lambda: stack.state(flow_run) != "CRASHED", 60, "scheduled again")
    stack.wait(flow_run, "COMPLETED", seconds=240)


def test_time_without_a_server_is_no_silence_of_the_runs(stack: Stack) -> None:
    """All that ran were marked as crashed when it came back; a run whose machine went away meanwhile still is."""
    flow_run = stack.trigger("prepare", recipe="smoke")
    stack.wait(flow_run, "COMPLETED", seconds=240)
    stack.post(f"/flow_runs/{flow_run}/set_state", {"state": {"type": "RUNNING"}, "force": True})
    stack.prefect.patch(f"/flow_runs/{flow_run}/labels", json={"sra.process": "elsewhere:1:1"}).raise_for_status()
    services.recover(stack.settings)  # sends a heartbeat for it
    assert _take_slot(stack, "of-the-dead", seconds=60)
    time.sleep(10)  # the server has the heartbeat
    stack.stop("prefect")
    time.sleep(110)
    stack.start("prefect")
    started = time.monotonic()
    until(
        lambda: _take_slot(stack, "of-the-dead"), 60, "a slot whose holder is gone is free when its lease has run out"
    )
    until(lambda: stack.state(flow_run) == "CRASHED", 150, "crashed")
    assert time.monotonic() - started > 60, "it had its time again"
    # As `up` does. A server that restarted alone holds the crash back: it follows a recent state that it never saw.
    services.recover(stack.settings)
    stack.wait(flow_run, "COMPLETED", seconds=240)


def test_what_a_person_switched_stays_when_deployments_are_applied_again(stack: Stack) -> None:
    pipeline, distill = stack.deployment("pipeline"), stack.deployment("distill")
    path = f"/deployments/{pipeline['id']}/schedules"
    _change(stack, "PATCH", f"{path}/{pipeline['schedules'][0]['id']}", {"active": True})
    own = {"active": True, "schedule": {"cron": "5 5 * * *", "timezone": "UTC"}, "parameters": {"recipe": "smoke"}}
    stack.post(path, [own])
    stack.post(f"/deployments/{distill['id']}/pause_deployment")
    triggers = _triggers(stack)
    try:
        services.apply(stack.settings)
        found = {item["schedule"]["cron"]: item for item in stack.deployment("pipeline")["schedules"]}
        assert {cron: item["active"] for cron, item in found.items()} == {"0 2 * * *": True, "5 5 * * *": True}
        assert found["5 5 * * *"]["parameters"] == {"recipe": "smoke"}
        assert stack.deployment("distill")["paused"] is True
        assert _triggers(stack) == triggers, "an automation that is rewritten forgets what it waits for"
    finally:
        stack.post(f"/deployments/{distill['id']}/resume_deployment")
        for item in stack.deployment("pipeline")["schedules"]:
            if item["slug"] == "nightly":
                _change(stack, "PATCH", f"{path}/{item['id']}", {"active": False})
            else:
                _change(stack, "DELETE", f"{path}/{item['id']}", None)


def _triggers(stack: Stack) -> dict[str, Any]:
    return {item["name"]: item["trigger"]["id"] for item in stack.post("/automations/filter")}


def _change(stack: Stack, method: str, path: str, content: Any) -> None:
    stack.prefect.request(method, path, json=content).raise_for_status()
