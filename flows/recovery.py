"""Runs that lost their process are put right when services start or stop: ``python -m flows.recovery``.

A stopped or killed machine leaves runs that the server believes to be running. It finds them by their missing
heartbeats, but 100 s later, and not where it waits for none: then they would hold their place in the queue for ever.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import flows  # noqa: F401  sets defaults that Prefect reads on import

# isort: split
import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import AwaitingRetry, Cancelled, Crashed, State

from flows.retries import MOST_STARTS
from sra_core.watch.mlflow import close_dead_runs, is_dead, process_name

__all__ = ["recover", "remember_process"]

_PROCESS, _START = "sra.process", "sra.start"
_RESCHEDULING = "reschedule-crashed-runs"
_PATIENCE = 60.0
_LONGEST_PENDING = timedelta(seconds=60)
"""A process that a worker started is there within this time."""


def remember_process() -> None:
    """Note in the current flow run which process it is, so that `recover` can tell whether that is gone."""
    if flow_run.id:
        with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
            client.update_flow_run_labels(flow_run.id, {_PROCESS: process_name(), _START: flow_run.run_count})


def recover(mlflow: str | None = None, stopped: Collection[str] = ()) -> list[str]:
    """End runs whose process is gone and schedule them again; what runs elsewhere must send a heartbeat to stay.

    Args:
        mlflow: Tracking server whose runs end too where their process is gone.
        stopped: Workers that do not run, whatever the server still believes.

    Returns:
        A line for each run that was put right.
    """
    said = []
    with get_client(sync_client=True) as client:
        for run in _tagged(client, StateType.SCHEDULED):
            _tell_again(client, run)
        for run in _tagged(client, StateType.CANCELLING, StateType.RUNNING, StateType.PENDING):
            _tell_again(client, run)
            said += _put_right(client, run, stopped)
        since = _rescheduled_since(client)
        for run in _tagged(client, StateType.CRASHED):
            # The server does this itself 20 s after a crash, unless it was stopped within them.
            if since is not None and 1 <= (run.run_count or 0) <= MOST_STARTS and _since(run) > since:
                _tell_again(client, run)
                _set(client, run, AwaitingRetry(message="The run crashed; it goes on where it stopped."))
                said.append(f"{run.name}: scheduled again")
        if mlflow:
            ended = close_dead_runs(mlflow, lambda flow_run_id: _is_over(client, flow_run_id))
            said += [f"{name} in MLflow: ended, its process is gone" for name in ended]
    return said


def _put_right(client: SyncPrefectClient, run: FlowRun, stopped: Collection[str]) -> list[str]:
    kind = run.state_type
    if kind == StateType.PENDING:
        if not _is_abandoned(client, run, stopped):
            return []
        _set(client, run, AwaitingRetry(message="The worker was gone before it started the run."))
        return [f"{run.name}: scheduled again, the worker was gone before it started the run"]
    if not _is_gone(run):
        # Automation `crash-silent-runs` waits for no run that it never heard, nor after it was changed: it hears this.
        _send(client, run, "heartbeat", uuid4())
        return []
    message = "Its process is gone: services were stopped, or the machine."
    _set(client, run, Cancelled(message=message) if kind == StateType.CANCELLING else Crashed(message=message))
    return [f"{run.name}: {'cancelled' if kind == StateType.CANCELLING else 'crashed'}, its process is gone"]


def _is_gone(run: FlowRun) -> bool:
    """Whether the run's process was one of this machine and is no more; one that is just starting isn't noted yet."""
    # Another start of the run has another process: a label from before says nothing of it.
    return run.labels.get(_START) == run.run_count and is_dead(str(run.labels[_PROCESS]))


def _is_over(client: SyncPrefectClient, flow_run_id: str) -> bool:
    try:
        return client.read_flow_run(UUID(flow_run_id)).state_type not in (StateType.RUNNING, StateType.CANCELLING)
    except ObjectNotFound:  # deleted, or of another server: nothing says that it is over
        return False


def _is_abandoned(client: SyncPrefectClient, run: FlowRun, stopped: Collection[str]) -> bool:
    """Whether nobody will start a pending run: no worker is there, or it took far too long."""
    workers = client.read_workers_for_work_pool(run.work_pool_name) if run.work_pool_name else []
    there = [worker for worker in workers if worker.name not in stopped and worker.status == "ONLINE"]
    return not there or datetime.now(UTC) - _since(run) > _LONGEST_PENDING


def _tell_again(client: SyncPrefectClient, run: FlowRun) -> None:
    """Send the event of the run's last state again, by its own id, for a server that has started since.

    It keeps in memory which events it has seen. The event of a state names that of the state before, and where this one
    is unknown it is held back from the automations for a quarter of an hour: a run that was scheduled again and waited
    in the queue was marked as crashed, for want of heartbeats, and stayed so.
    """
    assert run.state is not None
    _send(client, run, str(run.state.name), run.state.id)


def _send(client: SyncPrefectClient, run: FlowRun, event: str, identity: UUID) -> None:
    content = {
        "id": str(identity),
        "occurred": datetime.now(UTC).isoformat(),
        "event": f"prefect.flow-run.{event}",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name},
        "related": [],
        "payload": {},
    }
    client.request("POST", "/events", json=[content])


def _rescheduled_since(client: SyncPrefectClient) -> datetime | None:
    """Since when the server schedules crashed runs again; None where a person switched that off."""
    wanted = {"automations": {"name": {"any_": [_RESCHEDULING]}}}
    found = client.request("POST", "/automations/filter", json=wanted).json()
    moments = [datetime.fromisoformat(item["updated"]) for item in found if item["enabled"]]
    return min(moments, default=None)


def _since(run: FlowRun) -> datetime:
    assert run.state is not None
    return run.state.timestamp


def _tagged(client: SyncPrefectClient, *kinds: StateType) -> list[FlowRun]:
    """All flow runs with tag ``sra`` in one of these states."""
    wanted = FlowRunFilter.model_validate({"tags": {"all_": ["sra"]}, "state": {"type": {"any_": list(kinds)}}})
    found: list[FlowRun] = []
    while page := client.read_flow_runs(flow_run_filter=wanted, limit=200, offset=len(found)):
        found += page
    return found


def _set(client: SyncPrefectClient, run: FlowRun, state: State) -> None:
    client.set_flow_run_state(run.id, state, force=True)


def main() -> int:
    """Entry point of ``python -m flows.recovery [STOPPED_WORKER ...]``; waits a while for a server that starts too."""
    with get_client(sync_client=True) as client:
        limit = time.monotonic() + _PATIENCE
        # It returns the exception that it met, and None where all is well.
        while client.api_healthcheck() is not None and time.monotonic() < limit:
            time.sleep(1)
    for line in recover(os.environ.get("MLFLOW_TRACKING_URI"), sys.argv[1:]):
        sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
