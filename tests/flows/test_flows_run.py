"""Flows against a Prefect server, with stages that finish at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.states import State

from flows import common, retries
from flows.distill import distill
from flows.pipeline import pipeline
from sra_core.config import RunConfig
from sra_core.doctor import check_layers, check_models
from sra_core.errors import ConfigError, ShardError, SraError
from sra_core.runs import Run

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {"store": str(tmp_path / "store"), "tracking.enabled": False}


def _artifacts(state: State) -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
        found = client.read_artifacts(artifact_filter=wanted)
    return {artifact.key: artifact for artifact in found}


def test_pipeline_runs_the_four_stages_in_order_with_one_config(stub_stages: Any, settings: dict[str, Any]) -> None:
    state = pipeline(recipe="smoke", overrides={**settings, "seed": 5}, return_state=True)
    assert state.is_completed()
    assert stub_stages.calls == ["prepare", "cache", "distill", "evaluate"]
    assert {config.seed for config in stub_stages.configs} == {5}
    assert [manifest.stage for manifest in state.result().values()] == stub_stages.calls


def test_stages_that_the_config_does_not_need_are_left_out(stub_stages: Any, settings: dict[str, Any]) -> None:
    pipeline(recipe="smoke", overrides={**settings, "objective.name": "sft"})
    assert stub_stages.calls == ["prepare", "distill", "evaluate"]


def _name(state: State) -> str:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(state.state_details.flow_run_id).name


def test_a_run_is_named_by_recipe_objective_seed_and_the_name_that_was_typed(
    stub_stages: Any, settings: dict[str, Any]
) -> None:
    assert _name(distill(recipe="smoke", overrides=settings, return_state=True)) == "smoke · sra · seed 0"
    typed = distill.with_options(flow_run_name="my sweep")
    assert _name(typed(recipe="smoke", seed=3, overrides=settings, return_state=True)) == (
        "smoke · sra · seed 3 · my sweep"
    )
    assert stub_stages.configs[-1].name == "my sweep"
    assert _name(typed(recipe="smoke", name="own", overrides=settings, return_state=True)) == (
        "smoke · sra · seed 0 · own"
    )


def test_artifacts_show_progress_live_numbers_reports_and_the_result(
    stub_stages: Any, settings: dict[str, Any]
) -> None:
    state = distill(recipe="smoke", overrides=settings, return_state=True)
    shown = _artifacts(state)
    assert {"distill-progress", "distill-live", "distill-samples", "distill-audit", "distill-result"} <= set(shown)
    assert shown["distill-progress"].data == 100.0
    assert "4 of 4 steps" in shown["distill-progress"].description
    assert "loss 0.25" in shown["distill-progress"].description
    live = json.loads(shown["distill-live"].data)
    assert live[0] == {"step": 4, "loss": 0.25}
    assert json.loads(shown["distill-samples"].data)[1] == {"question": "b", "answer": "d"}
    assert "| bits_per_byte | 1.5 |" in shown["distill-result"].data


def test_one_summary_a_flow_run_says_what_ran_and_what_came_of_it(
    stub_stages: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"evaluate/student/bits_per_byte": 1.5, "evaluate/initial/bits_per_byte": 4.5}
    monkeypatch.setattr("tests.flows.conftest.METRICS", {**scores, "evaluate/teacher/bits_per_byte": 1.25})
    state = pipeline(recipe="smoke", seed=7, overrides=settings, return_state=True)
    summary = _artifacts(state)["summary"]
    assert summary.task_run_id is None, "it belongs to the flow run, whose artifacts the page shows first"
    assert summary.data.startswith("# smoke · sra · seed 7\n")
    assert "| bits per byte | 1.5 | 4.5 | -3 | 1.25 | +0.25 |" in summary.data
    assert f"| student | `{settings['store']}/distill/student` |" in summary.data
    config = summary.data.partition("```yaml\n")[2].removesuffix("\n```")
    assert RunConfig.model_validate(yaml.safe_load(config)) == Run(stub_stages.configs[0]).config


def test_a_run_that_fails_still_has_its_settled_config(stub_stages: Any, settings: dict[str, Any]) -> None:
    stub_stages.fail["prepare"] = [ConfigError("wrong", "mend it")]
    state = pipeline(recipe="smoke", overrides=settings, return_state=True)
    assert "recipe: smoke" in _artifacts(state)["summary"].data


def test_a_reused_stage_says_so_in_the_name_of_its_task(stub_stages: Any, settings: dict[str, Any]) -> None:
    stub_stages.done = {"prepare"}
    state = pipeline(recipe="smoke", overrides=settings, return_state=True)
    with get_client(sync_client=True) as client:
        flow_run_id = state.state_details.flow_run_id
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
    assert {task.name for task in tasks} == {"prepare (reused)", "cache", "distill", "evaluate"}


def test_a_passing_cause_is_retried_and_the_run_completes(
    stub_stages: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _hurry(monkeypatch)
    stub_stages.fail["cache"] = [ShardError("torn", "again"), ConnectionResetError("gone")]
    state = pipeline(recipe="smoke", overrides=settings, return_state=True)
    assert state.is_completed()
    assert stub_stages.calls == ["prepare", "cache", "cache", "cache", "distill", "evaluate"]
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
        keys = [artifact.key for artifact in client.read_artifacts(artifact_filter=wanted)]
    assert len(keys) == len(set(keys)), "a second try updates what the first one wrote"


def test_retries_end(stub_stages: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _hurry(monkeypatch)
    stub_stages.fail["prepare"] = [OSError("disk")] * 9
    state = pipeline(recipe="smoke", overrides=settings, return_state=True)
    assert state.is_failed()
    assert stub_stages.calls == ["prepare"] * (1 + retries.RETRIES)


def test_a_cause_that_lasts_fails_at_once(stub_stages: Any, settings: dict[str, Any]) -> None:
    stub_stages.fail["distill"] = [ConfigError("wrong", "mend it")]
    state = pipeline(recipe="smoke", overrides=settings, return_state=True)
    assert state.is_failed()
    assert stub_stages.calls == ["prepare", "cache", "distill"]
    with pytest.raises(ConfigError, match="mend it"):
        state.result()


def test_a_wrong_config_fails_before_any_stage(stub_stages: Any, settings: dict[str, Any]) -> None:
    state = pipeline(recipe="smoke", overrides={**settings, "distill.epoch": 1}, return_state=True)
    assert state.is_failed()
    assert stub_stages.calls == []


def test_a_value_that_the_form_should_refuse_is_refused_by_the_flow(stub_stages: Any) -> None:
    with pytest.raises(Exception, match="epochs"):
        pipeline(recipe="smoke", config={"distill": {"epochs": -1}})
    assert stub_stages.calls == []


def test_a_run_that_keeps_crashing_is_not_started_for_ever(
    stub_stages: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "MOST_STARTS", 0)
    state = pipeline(recipe="smoke", overrides=settings, return_state=True)
    assert state.is_failed()
    assert "never came to its end" in (state.message or "")
    assert stub_stages.calls == []


def test_cancellation_passes_through_the_task(stub_stages: Any, settings: dict[str, Any]) -> None:
    stub_stages.fail["distill"] = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        pipeline(recipe="smoke", overrides=settings)
    assert stub_stages.calls == ["prepare", "cache", "distill"]


def test_mlflow_and_prefect_name_each_other(stub_stages: Any, settings: dict[str, Any]) -> None:
    from mlflow import MlflowClient

    from sra_core.watch.mlflow import tracking_uri

    config = RunConfig(store=settings["store"])
    state = pipeline(recipe="smoke", overrides={**settings, "tracking.enabled": True}, return_state=True)
    client = MlflowClient(tracking_uri(config))
    runs = client.search_runs([client.get_experiment_by_name("sra").experiment_id])
    assert len(runs) == 5
    flow_run = str(state.state_details.flow_run_id)
    assert {run.data.tags["prefect.flow_run_id"] for run in runs} == {flow_run}
    assert {run.info.status for run in runs} == {"FINISHED"}
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    assert parents[0].data.metrics["bits_per_byte"] == 1.5
    assert "mlflow ui" in _artifacts(state)["distill-mlflow"].data


def test_a_planted_secret_reaches_neither_log_nor_state_nor_artifact(
    stub_stages: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _hurry(monkeypatch)
    planted = "correct-horse-battery"
    monkeypatch.setenv("STORE_PASSWORD", planted)
    work = stub_stages._work

    def telling(stage: str, watch: Any) -> None:
        watch.message(f"using {planted}")
        watch.markdown("audit", f"# {planted}")
        watch.table("samples", [{"answer": planted}])
        work(stage, watch)

    monkeypatch.setattr(stub_stages, "_work", telling)
    passing = ConnectionResetError(f"http://ann:{planted}@host is gone")
    stub_stages.fail["prepare"] = [passing, ConfigError(f"no access with {planted}", "mend it")]
    state = pipeline(recipe="smoke", overrides=settings, return_state=True)
    assert state.is_failed()
    assert stub_stages.calls == ["prepare", "prepare"], "a passing cause stays one"
    flow_run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(flow_run_id)
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])))
    told = [flow_run.model_dump_json(), *(each.model_dump_json() for each in (*tasks, *logs))]
    told += [artifact.model_dump_json() for artifact in _artifacts(state).values()]
    assert any("no access with ***" in text for text in told)
    assert [text for text in told if planted in text] == []


def test_a_second_run_records_reused_stages(stub_stages: Any, settings: dict[str, Any]) -> None:
    from mlflow import MlflowClient

    from sra_core.watch.mlflow import tracking_uri

    tracked = {**settings, "tracking.enabled": True}
    for _ in range(2):
        pipeline(recipe="smoke", overrides=tracked)
    client = MlflowClient(tracking_uri(RunConfig(store=settings["store"])))
    runs = client.search_runs([client.get_experiment_by_name("sra").experiment_id])
    reused = [run for run in runs if run.data.tags.get("reused") == "true"]
    made = {run.data.tags["stage"]: run.info.run_id for run in runs if "stage" in run.data.tags and run not in reused}
    assert len(runs) == 10
    assert {run.data.tags["stage"]: run.data.tags["original_run"] for run in reused} == made
    assert all("loss" not in run.data.metrics for run in reused)


def test_a_missing_tool_of_evaluation_stops_the_flow_before_its_first_stage(
    stub_stages: Any, settings: dict[str, Any]
) -> None:
    stub_stages.missing = [ConfigError("lm-eval is not installed", "install it")]
    with pytest.raises(ConfigError, match="install it"):
        pipeline("smoke", overrides=settings)
    assert stub_stages.calls == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"objective.layers": [[9, 2]]}, "9"), ({"student.source": "/no/such/model"}, "/no/such/model")],
)
def test_a_wrong_layer_or_model_stops_the_flow_before_its_first_stage(
    stub_stages: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(common, "check_models", check_models)
    monkeypatch.setattr(common, "check_layers", check_layers)
    with pytest.raises(SraError, match=message):
        pipeline("smoke", overrides={**settings, **wrong})
    assert stub_stages.calls == []


def test_as_a_script(stub_stages: Any, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assignments = [f"--set={name}={json.dumps(value)}" for name, value in settings.items()]
    summary = Path(settings["store"]) / "evaluate" / "summary.md"
    summary.parent.mkdir(parents=True)
    summary.write_text("scores: 1.5")
    assert common.run_as_script(pipeline, ["smoke", *assignments, "--set=seed=9"]) == 0
    assert {config.seed for config in stub_stages.configs} == {9}
    shown = capsys.readouterr().out
    assert "scores: 1.5" in shown
    assert f"{settings['store']}/distill/student" in shown


def test_a_script_refuses_a_wrong_recipe_before_it_starts_anything(capsys: pytest.CaptureFixture[str]) -> None:
    def never(**parameters: Any) -> None:
        raise AssertionError("started")

    for arguments, named in ((["smok"], "did you mean 'smoke'"), (["smoke", "--set=seed=x"], "from --set")):
        with pytest.raises(SystemExit) as exit_info:
            common.run_as_script(never, arguments)
        assert exit_info.value.code == 1
        assert named in capsys.readouterr().err


def test_a_script_explains_a_wrong_config(capsys: pytest.CaptureFixture[str], stub_stages: Any) -> None:
    with pytest.raises(SystemExit) as exit_info:
        common.run_as_script(pipeline, ["smoke", "--set=distill.epoch=1"])
    assert exit_info.value.code == 1
    assert "distill.epoch" in capsys.readouterr().err
    assert stub_stages.calls == []


def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between tries."""
    real = retries.task

    def quick(function: Callable[..., Any], **options: Any) -> Any:
        return real(function, **{**options, "retry_delay_seconds": 0.01, "retry_jitter_factor": None})

    monkeypatch.setattr(retries, "task", quick)
