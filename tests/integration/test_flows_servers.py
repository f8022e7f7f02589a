"""Runs triggered on real servers: what a person sees, and what survives faults.

One worker, one GPU queue, the real stages on the smoke recipe.
"""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest

from tests.integration.servers import TERMINAL, Stack, processes_with, services, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

LONG = {
    "distill.epochs": 1000,
    "distill.max_steps": 700,
    "distill.checkpoint_every": 50,
    "distill.validate_every": 200,
    "distill.log_every": 1,
}
LOSS = "train/loss"


def _store(stack: Stack, name: str, **more: Any) -> dict[str, Any]:
    """Overrides that give a test a store of its own; results of other tests are not found there."""
    return {"store": str(stack.settings.state / name), **more}


def _distill_run(stack: Stack, flow_run: str) -> dict[str, Any] | None:
    return next((run for run in stack.runs(flow_run) if run["tags"].get("stage") == "distill"), None)


def _steps(stack: Stack, flow_run: str) -> list[int]:
    run = _distill_run(stack, flow_run)
    return [step for step, _ in stack.history(run["id"], LOSS)] if run else []


def _training(stack: Stack, flow_run: str, steps: int = 60) -> None:
    """Wait until training has logged some steps."""

    def reached() -> bool:
        assert stack.state(flow_run) not in TERMINAL, stack.log(flow_run)
        return len(_steps(stack, flow_run)) >= steps

    until(reached, 240, f"{steps} steps")


@pytest.fixture(scope="session")
def finished(stack: Stack) -> str:
    """A pipeline run that completed, with results in the common store."""
    flow_run = stack.trigger("pipeline", recipe="smoke")
    stack.wait(flow_run, "COMPLETED", seconds=400)
    return flow_run


def test_a_pipeline_runs_and_both_sides_name_each_other(stack: Stack, finished: str) -> None:
    runs = stack.runs(finished)
    assert {run["status"] for run in runs} == {"FINISHED"}
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run["tags"]]
    children = {run["tags"]["stage"]: run for run in runs if run is not parent}
    assert set(children) == {"prepare", "cache", "distill", "evaluate"}
    assert parent["tags"]["prefect.flow_run_url"].endswith(finished)
    assert parent["metrics"]["evaluate/student/bits_per_byte"] > 0
    shown = stack.artifacts(finished)
    for stage, run in children.items():
        assert f"/runs/{run['id']}" in shown[f"{stage}-mlflow"]["data"]
        assert shown[f"{stage}-result"]["data"].startswith(f"**{stage}**")
    assert shown["distill-progress"]["data"] == 100.0
    assert "evaluate-summary" in shown
    assert shown["summary"]["task_run_id"] is None
    assert f"/runs/{parent['id']}" in shown["summary"]["data"]
    assert "viewStateShareKey=scores" in shown["summary"]["data"]
    assert {"evaluate-evaluate-scores", "evaluate-evaluate-scores-figure"} <= set(shown)
    assert parent["name"] == "smoke · sra · seed 0"
    assert json.loads(shown["distill-live"]["data"])[0]["step"] == 6


def test_figures_lie_in_the_page_itself(stack: Stack, finished: str) -> None:
    images = [artifact for artifact in stack.artifacts(finished).values() if artifact["type"] == "image"]
    assert images
    for image in images:
        assert image["data"].startswith("data:image/png;base64,iVBORw0KGgo"), "a PNG"


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"config": {"distill": {"epochs": -1}}}, "epochs"),
        ({"config": {"distill": {"epoch": 1}}}, "epoch"),
        ({"recipe": "smoek"}, "smoek"),
        ({"bogus": 1}, "bogus"),
    ],
)
def test_a_bad_value_is_refused_when_triggered(stack: Stack, parameters: dict[str, Any], named: str) -> None:
    path = f"/deployments/{stack.deployment('pipeline')['id']}/create_flow_run"
    answer = stack.prefect.post(path, json={"parameters": parameters})
    assert answer.status_code in (409, 422)
    assert named in answer.text


def test_a_bad_override_fails_at_once_and_is_named(stack: Stack) -> None:
    flow_run = stack.trigger("prepare", recipe="smoke", overrides={"distill.epoch": 1})
    stack.wait(flow_run, "FAILED", seconds=120)
    assert "distill.epoch" in stack.flow_run(flow_run)["state"]["message"]
    assert stack.task_runs(flow_run) == []


def test_a_stage_alone_uses_results_that_are_there(stack: Stack, finished: str) -> None:
    flow_run = stack.trigger("distill", recipe="smoke", overrides={"distill.max_steps": 2})
    stack.wait(flow_run, "COMPLETED", seconds=240)
    (run,) = stack.runs(flow_run)
    made = {r["tags"]["stage"]: r["tags"]["fingerprint"] for r in stack.runs(finished) if "stage" in r["tags"]}
    assert run["tags"]["upstream.cache"] == made["cache"]
    assert run["tags"]["fingerprint"] != made["distill"]


def test_the_automation_evaluates_what_a_distill_run_was_given(stack: Stack, finished: str) -> None:
    found = stack.prefect.post("/automations/filter", json={}).json()
    (automation,) = [each for each in found if each["name"] == "evaluate-after-distill"]

    def switch(on: bool) -> None:
        stack.prefect.patch(f"/automations/{automation['id']}", json={"enabled": on}).raise_for_status()

    switch(True)
    try:
        stack.wait(stack.trigger("distill", recipe="smoke", seed=0), "COMPLETED", seconds=240)  # no config is sent
        recent = {"sort": "START_TIME_DESC", "limit": 5, "flows": {"name": {"any_": ["evaluate"]}}}
        (started,) = until(lambda: stack.post("/flow_runs/filter", recent), 60, "an evaluate run")
    finally:
        switch(False)
    assert started["parameters"] == {"recipe": "smoke", "seed": 0}
    stack.wait(started["id"], "COMPLETED", seconds=240)


def test_a_failed_run_is_retried_without_repeating_finished_stages(stack: Stack) -> None:
    overrides = _store(stack, "retried")
    students = stack.settings.state / "retried" / "students"
    students.parent.mkdir(parents=True)
    students.write_text("in the way")
    flow_run = stack.trigger("pipeline", recipe="smoke", overrides=overrides)
    stack.wait(flow_run, "FAILED", seconds=400)
    distill = [task for task in stack.task_runs(flow_run) if task["name"] == "distill"]
    assert distill[0]["run_count"] == 4, "a store that cannot be written may heal: retried with back-off"
    students.unlink()
    stack.set_state(flow_run, "SCHEDULED", "AwaitingRetry")
    until(lambda: stack.state(flow_run) != "SCHEDULED", 60)
    stack.wait(flow_run, "COMPLETED", seconds=400)
    runs = {run["tags"].get("stage", "pipeline"): run for run in stack.runs(flow_run)}
    assert len(stack.runs(flow_run)) == 5, "the retry continues its runs"
    assert {runs[stage]["tags"].get("reused") for stage in ("prepare", "cache")} == {"true"}
    assert "reused" not in runs["distill"]["tags"]
    assert {run["status"] for run in runs.values()} == {"FINISHED"}


def test_a_killed_run_is_scheduled_again_and_resumes(stack: Stack) -> None:
    flow_run = stack.trigger("pipeline", recipe="smoke", overrides=_store(stack, "killed", **LONG))
    _training(stack, flow_run, 120)
    worker = services.running(stack.service("worker"), stack.settings)
    flow_process = next(child for child in worker.children(recursive=True) if "prefect.engine" in child.cmdline())
    flow_process.send_signal(signal.SIGKILL)
    stack.wait(flow_run, "CRASHED", "SCHEDULED", "PENDING", "RUNNING", seconds=60)
    until(lambda: stack.flow_run(flow_run)["run_count"] >= 2, 120, "second run")
    stack.wait(flow_run, "COMPLETED", seconds=400)
    assert stack.flow_run(flow_run)["run_count"] == 2, "one crash is one new start"
    steps = _steps(stack, flow_run)
    assert sorted(steps) == list(range(1, 701)), "every step is there once"
    (run,) = [run for run in stack.runs(flow_run) if run["tags"].get("stage") == "distill"]
    assert run["tags"]["attempt"] == "2"
    assert "resum" in stack.log(flow_run).lower()


def test_training_goes_on_while_the_prefect_server_restarts(stack: Stack) -> None:
    overrides = _store(stack, "restart", **{**LONG, "distill.max_steps": 1500})
    flow_run = stack.trigger("pipeline", recipe="smoke", overrides=overrides)
    lease = _take_slot(stack, "of-a-person")
    _training(stack, flow_run)
    before = len(_steps(stack, flow_run))
    stack.stop("prefect")
    try:
        until(lambda: len(_steps(stack, flow_run)) > before + 20, 60, "training goes on")
    finally:
        stack.start("prefect")
    renewed = stack.prefect.post(f"/v2/concurrency_limits/leases/{lease}/renew", json={"lease_duration": 300})
    assert renewed.status_code == 204, "410 (gone) ends the run that holds it"
    assert _take_slot(stack, "of-a-person") is None, "the slot is taken still"
    stack.wait(flow_run, "COMPLETED", seconds=400)
    assert stack.artifacts(flow_run)["distill-progress"]["data"] == 100.0
    assert stack.flow_run(flow_run)["run_count"] == 1


def _take_slot(stack: Stack, limit: str, seconds: int = 600) -> str | None:
    """What a run does that wants a slot of a limit with one: its lease, or nothing where the slot is taken."""
    if stack.prefect.get(f"/v2/concurrency_limits/{limit}").status_code == 404:
        stack.post("/v2/concurrency_limits/", {"name": limit, "limit": 1})
    wanted = {"names": [limit], "slots": 1, "lease_duration": seconds}
    answer = stack.prefect.post("/v2/concurrency_limits/increment-with-lease", json=wanted)
    return answer.json()["lease_id"] if answer.status_code == 200 else None


def test_metrics_arrive_after_mlflow_was_down(stack: Stack) -> None:
    flow_run = stack.trigger("pipeline", recipe="smoke", overrides=_store(stack, "outage", **LONG))
    _training(stack, flow_run)
    stack.stop("mlflow")
    try:
        time.sleep(15)
    finally:
        stack.start("mlflow")
    stack.wait(flow_run, "COMPLETED", seconds=400)
    assert sorted(_steps(stack, flow_run)) == list(range(1, 701))
    assert {run["status"] for run in stack.runs(flow_run)} == {"FINISHED"}


def test_cancelling_ends_all_ranks(stack: Stack) -> None:
    overrides = _store(stack, "cancelled", **LONG, **{"distill.processes": 2})
    flow_run = stack.trigger("pipeline", recipe="smoke", overrides=overrides)
    _training(stack, flow_run, 20)
    folder = overrides["store"]
    ranks = processes_with(folder)  # others of this machine may train too
    assert len(ranks) >= 2
    stack.set_state(flow_run, "CANCELLING")
    stack.wait(flow_run, "CANCELLED", seconds=90)
    until(lambda: not any(rank.is_running() and rank.status() != "zombie" for rank in ranks), 30, "ranks end")
    until(lambda: _distill_run(stack, flow_run)["status"] == "KILLED", 30, "MLflow knows")  # type: ignore[index]


def test_two_pipelines_queue_for_one_gpu_and_share_results(stack: Stack) -> None:
    overrides = _store(stack, "shared")
    first, second = (stack.trigger("pipeline", recipe="smoke", overrides=overrides) for _ in range(2))
    overlap = False
    while stack.state(second) not in {"COMPLETED", "FAILED", "CRASHED"}:
        overlap = overlap or {stack.state(first), stack.state(second)} == {"RUNNING"}
        time.sleep(0.5)
    assert stack.state(first) == stack.state(second) == "COMPLETED"
    assert not overlap
    order = sorted((first, second), key=lambda run: stack.flow_run(run)["start_time"])
    reused = [run for run in stack.runs(order[1]) if "stage" in run["tags"]]
    assert {run["tags"].get("reused") for run in reused} == {"true"}
    assert len(reused) == 4
    assert len(list((stack.settings.state / "shared" / "teacher").glob("*/manifest.json"))) == 1
