"""Which runs are put right when services start, and which are left alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry, Cancelling, Crashed, Pending, Running

from flows.recovery import recover
from sra_core.watch.mlflow import process_name

pytestmark = pytest.mark.usefixtures("prefect_server")


@flow
def nothing() -> None:
    pass


@pytest.fixture(scope="module")
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def dead() -> str:
    """The name of a process of this machine that is gone."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = process_name().split(":")[0] + f":{process.pid}:{psutil.Process(process.pid).create_time():.0f}"
    process.communicate(b"\n")
    return name


def _run(client: SyncPrefectClient, state: Any, process: str | None = None, earlier: int = 0) -> FlowRun:
    """A flow run in a state, whose process was noted at its last start or some starts earlier."""
    run = client.create_flow_run(nothing, tags=["sra"])
    for each in (Running(), state):
        client.set_flow_run_state(run.id, each, force=True)
    if process:
        start = (client.read_flow_run(run.id).run_count or 0) - earlier
        client.update_flow_run_labels(run.id, {"sra.process": process, "sra.start": start})
    return run


def _state(client: SyncPrefectClient, run: FlowRun) -> str:
    state = client.read_flow_run(run.id).state
    assert state is not None
    return str(state.name)


def test_runs_whose_process_is_gone_end_and_no_others(client: SyncPrefectClient, dead: str) -> None:
    gone = _run(client, Running(), dead)
    cancelled = _run(client, Cancelling(), dead)
    alive = _run(client, Running(), process_name())
    elsewhere = _run(client, Running(), "elsewhere:1:1")
    starting = _run(client, Running(), dead, earlier=1)
    unknown = _run(client, Running())
    said = recover()
    assert _state(client, gone) == "Crashed"
    assert _state(client, cancelled) == "Cancelled"
    assert {_state(client, run) for run in (alive, elsewhere, starting, unknown)} == {"Running"}
    assert len([line for line in said if "its process is gone" in line]) == 2


def test_a_pending_run_that_no_worker_starts_is_scheduled_again(client: SyncPrefectClient) -> None:
    run = _run(client, Pending())
    recover()
    assert _state(client, run) == "AwaitingRetry"


def test_crashed_runs_are_scheduled_again_where_the_server_would_have_done_it(client: SyncPrefectClient) -> None:
    before = _run(client, Crashed())
    recover()
    assert _state(client, before) == "Crashed", "there is no automation that schedules crashed runs"
    trigger = {"type": "event", "posture": "Reactive", "expect": ["never"], "threshold": 1, "within": 0}
    automation = {"name": "reschedule-crashed-runs", "trigger": trigger, "actions": [{"type": "do-nothing"}]}
    made = client.request("POST", "/automations/", json=automation).json()
    after, endless = _run(client, Crashed()), _run(client, Crashed())
    for _ in range(6):
        for state in (Running(), Crashed()):
            client.set_flow_run_state(endless.id, state, force=True)
    never = client.create_flow_run(nothing, tags=["sra"], state=Crashed())
    foreign = client.create_flow_run(nothing, state=Crashed())
    client.request("PATCH", f"/automations/{made['id']}", json={"enabled": False})
    recover()
    assert _state(client, after) == "Crashed", "a person switched it off"
    client.request("PATCH", f"/automations/{made['id']}", json={"enabled": True})
    late = _run(client, Crashed())
    recover()
    assert _state(client, late) == "AwaitingRetry"
    assert {_state(client, run) for run in (before, endless, never, foreign)} == {"Crashed"}


def test_a_server_that_has_restarted_is_told_the_last_state_of_each_run_before_the_next(
    client: SyncPrefectClient, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds back events that follow one that it has not seen since it started."""
    runs = [_run(client, Running(), dead), _run(client, AwaitingRetry()), _run(client, Running(), "elsewhere:1:1")]
    before = {str(client.read_flow_run(run.id).state_id): client.read_flow_run(run.id) for run in runs}
    sent: list[dict[str, Any]] = []
    states: list[str] = []
    request, move = SyncPrefectClient.request, SyncPrefectClient.set_flow_run_state

    def heard(self: SyncPrefectClient, method: Any, path: Any, **named: Any) -> Any:
        sent.extend(named["json"] if path == "/events" else [])
        return request(self, method, path, **named)

    def moved(self: SyncPrefectClient, run: Any, state: Any, **named: Any) -> Any:
        assert any(event["resource"]["prefect.resource.id"] == f"prefect.flow-run.{run}" for event in sent)
        states.append(state.name)
        return move(self, run, state, **named)

    monkeypatch.setattr(SyncPrefectClient, "request", heard)
    monkeypatch.setattr(SyncPrefectClient, "set_flow_run_state", moved)
    recover()
    assert "Crashed" in states
    told = {event["id"]: event["event"] for event in sent}
    for state, run in before.items():
        assert told[state] == f"prefect.flow-run.{run.state_name}"
    assert all("follows" not in event for event in sent)
