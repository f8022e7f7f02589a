"""What MLflow holds after runs, retries, reuse, cancellation and an outage."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from sra_core.config import DistillConfig, RunConfig, TrackingConfig
from sra_core.config.load import load_config
from sra_core.errors import ConfigError
from sra_core.shards import Manifest
from sra_core.shards.manifest import Upstream
from sra_core.watch.mlflow import (
    MlflowWatcher,
    PipelineRun,
    describe,
    pipeline_run,
    runs,
    tracking_uri,
    ui_command,
)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty tracking database: laying one out takes seconds."""
    config = RunConfig(store=str(tmp_path_factory.mktemp("template")))
    with pipeline_run(config):
        pass
    path = Path(config.store) / "mlflow.db"
    _client(config).delete_experiment(_experiment(config))
    return path


@pytest.fixture
def config(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(runs, "_PAUSE", 0.0)
    shutil.copy(database, tmp_path / "mlflow.db")
    return RunConfig(name="demo", store=str(tmp_path), tracking=TrackingConfig(experiment="tests"))


def _client(config: RunConfig) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri(config))


def _experiment(config: RunConfig) -> str:
    return str(_client(config).get_experiment_by_name(config.tracking.experiment).experiment_id)


def _runs(config: RunConfig) -> list[Any]:
    """All runs, oldest first; None for an experiment that was never made."""
    found = _client(config).search_runs([_experiment(config)], order_by=["attributes.start_time ASC"])
    return list(found)


def _children(config: RunConfig) -> list[Any]:
    return [run for run in _runs(config) if "mlflow.parentRunId" in run.data.tags]


def _parents(config: RunConfig) -> list[Any]:
    return [run for run in _runs(config) if "mlflow.parentRunId" not in run.data.tags]


def _steps(config: RunConfig, run: Any, name: str = "loss") -> list[int]:
    return [metric.step for metric in _client(config).get_metric_history(run.info.run_id, name)]


def _manifest(config: RunConfig, stage: str, fingerprint: str | None = None, **fields: Any) -> Manifest:
    return Manifest(
        stage=stage,
        fingerprint=fingerprint or f"{stage}-fp",
        identity={"corpus": {"source": "x"}},
        created="2026-01-01T00:00:00+00:00",
        folder=str(Path(config.store) / stage),
        **fields,
    )


def _stage(
    config: RunConfig,
    parent: PipelineRun | None,
    stage: str = "distill",
    steps: range = range(1, 4),
    *,
    fail: BaseException | None = None,
    reused: bool = False,
    **fields: Any,
) -> MlflowWatcher:
    watch = MlflowWatcher(config, parent)
    watch.begin(stage, f"{stage}-fp", config, "what it will do", reused=reused)
    for step in steps if not reused else ():
        watch.metrics({"loss": 1 / step}, step)
    if fail is not None:
        watch.failed(fail)
        raise fail
    watch.end(_manifest(config, stage, **fields))
    return watch


def test_what_a_killed_attempt_did_not_deliver_is_filled_in_once(config: RunConfig) -> None:
    with pytest.raises(OSError, match="gone"):
        _stage(config, None, steps=range(1, 4), fail=OSError("gone"))
    watch = MlflowWatcher(config)
    watch.begin("distill", "distill-fp", config, "go on", reused=False)
    for step in (*range(1, 7), *range(5, 9)):  # all that is on disk, then the steps after the last checkpoint
        watch.metrics({"loss": 1 / step}, step)
    watch.end(_manifest(config, "distill"))
    (run,) = _runs(config)
    assert sorted(_steps(config, run)) == list(range(1, 9))


def test_one_parent_a_pipeline_and_one_child_a_stage(config: RunConfig) -> None:
    with pipeline_run(config, {"prefect.flow_run_id": "flow-1"}) as parent:
        for stage in ("prepare", "distill"):
            _stage(config, parent, stage, counts={"kept": 3, "empty_response": 1}, metrics={"bits_per_byte": 1.25})
    (top,) = _parents(config)
    prepare, distill = _children(config)
    assert [run.info.run_name for run in (top, prepare, distill)] == ["sra · seed 0 · demo", "prepare", "distill"]
    assert {run.info.status for run in (top, prepare, distill)} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in (prepare, distill)} == {top.info.run_id}
    assert (distill.data.tags["stage"], distill.data.tags["fingerprint"]) == ("distill", "distill-fp")
    assert {run.data.tags["prefect.flow_run_id"] for run in (top, prepare, distill)} == {"flow-1"}
    assert _steps(config, distill) == [1, 2, 3]
    assert distill.data.metrics["loss"] == pytest.approx(1 / 3)
    assert distill.data.metrics["bits_per_byte"] == top.data.metrics["bits_per_byte"] == 1.25
    assert distill.data.metrics["count/empty_response"] == 1
    assert distill.data.metrics["distill_seconds"] > 0


def test_parameters_are_what_people_compare_by_and_the_whole_config_is_an_artifact(config: RunConfig) -> None:
    config.distill.deepspeed = {"zero": {"offload": True}}
    config.distill.warmup = 0.25
    with pipeline_run(config) as parent:
        _stage(config, parent)
    (top,) = _parents(config)
    for run in _runs(config):
        assert run.data.params["teacher.source"] == config.teacher.source
        assert run.data.params["distill.learning_rate"] == "0.0005", "a main field, although it is the default"
        assert run.data.params["distill.warmup"] == "0.25"
        assert run.data.params["distill.deepspeed.zero.offload"] == "true"
        assert not {"student.keep_layers", "distill.log_every", "bench.seeds"} & run.data.params.keys()
        assert len(run.data.params) < 25
    text = (Path(top.info.artifact_uri.removeprefix("file://")) / "config.yaml").read_text()
    kept = Path(config.store) / "again.yaml"
    kept.write_text(text)
    assert load_config(str(kept)) == config.model_copy(update={"recipe": "again"})


def test_headline_scores_are_logged_first(config: RunConfig) -> None:
    late = {"evaluate/teacher/bits_per_byte": 1.0, "evaluate/student/rougeL": 2.0, "evaluate/student/bits_per_byte": 3}
    with pipeline_run(config) as parent:
        _stage(config, parent, "prepare", metrics={"alignment/examples": 24.0})
        _stage(config, parent, "evaluate", metrics=late)
    (top,) = _parents(config)
    first = ["evaluate/student/bits_per_byte", "evaluate/student/rougeL", "evaluate/teacher/bits_per_byte"]
    assert list(top.data.metrics)[:3] == first
    assert top.data.metrics["alignment/examples"] == 24.0


def test_a_failed_pipeline_tells_what_its_stages_came_to(config: RunConfig) -> None:
    def run() -> None:
        with pipeline_run(config) as parent:
            _stage(config, parent, "prepare", metrics={"alignment/examples": 24.0})
            _stage(config, parent, "cache", fail=OSError("disk"))

    with pytest.raises(OSError, match="disk"):
        run()
    assert _parents(config)[0].data.metrics["alignment/examples"] == 24.0


def test_the_summary_is_the_description_of_the_pipelines_run(config: RunConfig) -> None:
    with pipeline_run(config) as parent:
        watch = MlflowWatcher(config, parent)
        watch.begin("evaluate", "evaluate-fp", config, "", reused=False)
        watch.markdown("alignment_audit", "not this")
        watch.markdown("summary", "# demo\n" + "a line of a long answer\n" * 500)
        watch.end(_manifest(config, "evaluate"))
    (top,) = _parents(config)
    note = top.data.tags["mlflow.note.content"]
    page = f"(#/experiments/{_experiment(config)}/runs?workflowType=machine_learning&viewStateShareKey=scores)"
    assert note.startswith(f"[Scores of all runs]{page}\n\n# demo\na line")
    assert note.endswith("a line of a long answer\n\n… the rest is among the artifacts, under reports.")
    assert "mlflow.note.content" not in _children(config)[0].data.tags


def test_the_experiment_opens_as_one_of_models_with_columns_of_scores(config: RunConfig) -> None:
    with pipeline_run(config):
        pass
    client = _client(config)
    experiment = client.get_experiment(_experiment(config))
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    columns = json.loads(experiment.tags["mlflow.sharedViewState.scores"])["selectedColumns"]
    assert "metrics.`evaluate/student/bits_per_byte`" in columns
    client.set_experiment_tag(experiment.experiment_id, "mlflow.experimentKind", "chosen in the UI")
    with pipeline_run(config):
        pass
    assert client.get_experiment(experiment.experiment_id).tags["mlflow.experimentKind"] == "chosen in the UI"


def test_files_are_kept_with_the_run_and_nothing_stays_in_the_spool(config: RunConfig, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    extra = tmp_path / "notes.txt"
    extra.write_text("keep me")
    with pipeline_run(config) as parent:
        watch = MlflowWatcher(config, parent)
        watch.begin("prepare", "prepare-fp", config, "", reused=False)
        watch.figure("evaluate/coverage", lambda: figure)
        watch.table("samples", [{"question": "a", "score": 1}, {"question": "\ud800", "score": math.nan}])
        watch.markdown("audit", "# fine")
        watch.artifact(extra)
        watch.end(_manifest(config, "prepare"))
    (run,) = _children(config)
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert folder.is_relative_to(tmp_path / "mlflow-artifacts")
    assert (folder / "figures" / "evaluate-coverage.png").read_bytes().startswith(b"\x89PNG")
    table = {"columns": ["question", "score"], "data": [["a", 1], ["\ud800", None]]}  # JSON has no NaN
    assert json.loads((folder / "tables" / "samples.json").read_text()) == table
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "tables/samples.json", "type": "table"}]
    assert (folder / "reports" / "audit.md").read_text() == "# fine"
    assert (folder / "notes.txt").read_text() == "keep me"
    assert extra.exists()
    assert [path for path in (tmp_path / "mlflow-spool").rglob("*") if path.is_file()] == []


def test_inputs_name_upstream_results_with_digests(config: RunConfig) -> None:
    upstream = {"prepare": Upstream(fingerprint="prepare-fp", content="abc")}
    with pipeline_run(config) as parent:
        _stage(config, parent, "prepare")
        _stage(config, parent, "cache", upstream=upstream)
    prepare, cache = _children(config)
    named = {item.dataset.name: item.dataset.digest for item in cache.inputs.dataset_inputs}
    assert named == {"prepare": "prepare-fp", "cache manifest": "cache-fp"}
    assert cache.data.tags["upstream.prepare"] == "prepare-fp"
    corpus = [item.dataset for item in prepare.inputs.dataset_inputs if item.dataset.name == "corpus"]
    assert json.loads(corpus[0].profile) == {"source": "x"}


def test_a_retry_continues_parent_and_child_without_repeating_steps(config: RunConfig) -> None:
    with pytest.raises(OSError, match="disk"), pipeline_run(config) as parent:
        _stage(config, parent, steps=range(1, 8), fail=OSError("disk"))
    failed = _runs(config)
    assert {run.info.status for run in failed} == {"FAILED"}
    assert failed[1].data.tags["error"] == "OSError: disk"
    with pipeline_run(config) as parent:
        _stage(config, parent, steps=range(5, 11))
    assert [run.info.run_id for run in _runs(config)] == [run.info.run_id for run in failed]
    (top,), (child,) = _parents(config), _children(config)
    assert (top.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert (top.data.tags["attempt"], child.data.tags["attempt"]) == ("2", "2")
    assert (top.data.tags["error"], child.data.tags["error"]) == ("", "")
    assert _steps(config, child) == list(range(1, 11))


def test_a_retry_inside_one_pipeline_continues_the_child(config: RunConfig) -> None:
    with pipeline_run(config) as parent:
        with pytest.raises(OSError, match="disk"):
            _stage(config, parent, steps=range(1, 4), fail=OSError("disk"))
        _stage(config, parent, steps=range(3, 6))
    (child,) = _children(config)
    assert _steps(config, child) == [1, 2, 3, 4, 5]
    assert child.info.status == "FINISHED"


def test_training_that_starts_again_tells_each_step_once(config: RunConfig) -> None:
    with pipeline_run(config) as parent:
        watch = MlflowWatcher(config, parent)
        watch.begin("distill", "distill-fp", config, "", reused=False)
        for step in (0, 1, 2, 0, 1, 2, 3):
            watch.metrics({"validation/bits_per_byte": 4.0}, step)
        watch.metrics({"total": 1.0})
        watch.metrics({"total": 2.0})
        watch.end(_manifest(config, "distill"))
    (run,) = _children(config)
    assert _steps(config, run, "validation/bits_per_byte") == [0, 1, 2, 3]
    assert run.data.metrics["total"] == 2.0


def test_cancellation_ends_runs_as_killed_and_they_can_go_on(config: RunConfig) -> None:
    with pytest.raises(KeyboardInterrupt), pipeline_run(config) as parent:
        _stage(config, parent, fail=KeyboardInterrupt())
    assert {run.info.status for run in _runs(config)} == {"KILLED"}
    with pipeline_run(config) as parent:
        _stage(config, parent, steps=range(4, 6))
    assert len(_runs(config)) == 2


def test_a_run_whose_process_died_goes_on(config: RunConfig) -> None:
    code = (
        "import os, sys\n"
        "from sra_core.config import RunConfig\n"
        "from sra_core.watch.mlflow import MlflowWatcher, PipelineRun\n"
        "config = RunConfig.model_validate_json(sys.argv[1])\n"
        "parent = PipelineRun(config)\n"
        "watch = MlflowWatcher(config, parent)\n"
        "watch.begin('distill', 'distill-fp', config, '', reused=False)\n"
        "watch.metrics({'loss': 1.0}, 1)\n"
        "parent._outbox.flush(60)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    died = subprocess.run([sys.executable, "-c", code, config.model_dump_json()], check=False)
    assert died.returncode == -9
    assert {run.info.status for run in _runs(config)} == {"RUNNING"}
    with pipeline_run(config) as parent:
        _stage(config, parent, steps=range(1, 4))
    (child,) = _children(config)
    assert _steps(config, child) == [1, 2, 3]
    assert {run.info.status for run in _runs(config)} == {"FINISHED"}


def test_a_living_run_of_the_same_config_is_left_alone(config: RunConfig) -> None:
    with pipeline_run(config) as first:
        assert first is not None
        first._outbox.flush(30)
        with pipeline_run(config):
            pass
        assert [run.info.status for run in _parents(config)] == ["RUNNING", "FINISHED"]


def test_a_retried_flow_run_continues_its_own_run(config: RunConfig) -> None:
    for _ in range(2):
        with pipeline_run(config, {"prefect.flow_run_id": "same"}):
            pass
    assert len(_parents(config)) == 1


def test_another_run_of_a_finished_config_is_new_and_reused_stages_point_at_their_origin(config: RunConfig) -> None:
    with pipeline_run(config) as parent:
        _stage(config, parent, metrics={"bits_per_byte": 1.25})
    with pipeline_run(config) as parent:
        _stage(config, parent, reused=True, metrics={"bits_per_byte": 1.25})
    old, new = _parents(config)
    made, reused = _children(config)
    assert new.data.tags["previous_run"] == old.info.run_id
    assert new.data.metrics["bits_per_byte"] == 1.25
    assert (reused.data.tags["reused"], reused.data.tags["original_run"]) == ("true", made.info.run_id)
    assert (reused.info.run_name, reused.info.status) == ("distill (reused)", "FINISHED")
    assert reused.info.end_time - reused.info.start_time < 500
    assert "loss" not in reused.data.metrics
    assert "distill_seconds" not in reused.data.metrics
    assert "reused" not in made.data.tags
    assert _steps(config, made, "bits_per_byte") == [0]


def test_a_finished_child_that_is_made_again_gets_a_new_run(config: RunConfig) -> None:
    with pipeline_run(config, {"prefect.flow_run_id": "same"}) as parent:
        _stage(config, parent)
    with pipeline_run(config, {"prefect.flow_run_id": "same"}) as parent:
        _stage(config, parent)
    children = _children(config)
    assert len(_parents(config)) == 1
    assert len(children) == 1, "the same flow run goes on with the same child"
    with pipeline_run(config) as parent:
        _stage(config, parent)
    assert [_steps(config, run) for run in _children(config)] == [[1, 2, 3], [1, 2, 3]]


def test_a_parameter_that_changed_in_a_retry_becomes_a_tag(config: RunConfig) -> None:
    first = config.model_copy(update={"distill": DistillConfig(log_every=2)})
    with pytest.raises(OSError, match="x"), pipeline_run(first):
        raise OSError("x")
    changed = config.model_copy(update={"distill": DistillConfig(keep_checkpoints=3)})
    with pipeline_run(changed):
        pass
    (run,) = _parents(config)
    assert run.data.params["distill.log_every"] == "2"
    assert run.data.tags["changed.distill.log_every"] == "5", "back at its default"
    assert run.data.tags["changed.distill.keep_checkpoints"] == "3"
    assert "distill.keep_checkpoints" not in run.data.params, "the first attempt had another value"
    assert len([name for name in run.data.tags if name.startswith("changed.")]) == 2


def test_other_settings_are_another_pipeline(config: RunConfig) -> None:
    with pytest.raises(OSError, match="x"), pipeline_run(config):
        raise OSError("x")
    with pipeline_run(config.model_copy(update={"seed": 1})):
        pass
    assert len(_parents(config)) == 2


def test_a_stage_alone_has_a_run_of_its_own(config: RunConfig) -> None:
    _stage(config, None, "evaluate", metrics={"rouge_l": 0.5})
    (run,) = _runs(config)
    assert "mlflow.parentRunId" not in run.data.tags
    assert (run.info.run_name, run.info.status, run.data.metrics["rouge_l"]) == (
        "sra · seed 0 · demo · evaluate",
        "FINISHED",
        0.5,
    )


def test_the_student_is_registered_once_with_its_lineage(config: RunConfig) -> None:
    for _ in range(2):
        with pipeline_run(config) as parent:
            _stage(config, parent)
    (version,) = _client(config).search_model_versions("name = 'demo-student'")
    assert version.tags == {"fingerprint": "distill-fp", "path": str(Path(config.store) / "distill")}
    assert version.run_id == _children(config)[0].info.run_id
    assert _client(config).get_model_version_by_alias("demo-student", "newest").version == version.version


def test_a_student_of_a_recipe_with_a_dot_in_its_name_is_registered(config: RunConfig) -> None:
    config.name = "gpt2-1.5b 100%"
    with pipeline_run(config) as parent:
        _stage(config, parent)
    (version,) = _client(config).search_model_versions("name = 'gpt2-1.5b 100%-student'")
    assert version.tags["fingerprint"] == "distill-fp"
    (logged,) = _client(config).search_logged_models([_experiment(config)])
    assert logged.name == "gpt2-1-5b 100--student"


def test_the_alias_moves_to_a_new_student(config: RunConfig) -> None:
    for fingerprint in ("one", "two"):
        with pipeline_run(config) as parent:
            _stage(config, parent, fingerprint=fingerprint)
    newest = _client(config).get_model_version_by_alias("demo-student", "newest")
    assert newest.tags["fingerprint"] == "two"


def test_more_metrics_than_one_call_takes(config: RunConfig) -> None:
    with pipeline_run(config) as parent:
        _stage(config, parent, steps=range(1, 2600))
    (child,) = _children(config)
    assert _steps(config, child) == list(range(1, 2600))


def test_every_score_has_a_name_that_mlflow_takes() -> None:
    from mlflow.utils.validation import _validate_metric_name

    told = ["evaluate/student/lm_eval/gsm8k/exact_match (strict-match)", "evaluate/student/lm_eval/humaneval/pass@1"]
    names = [row[0] for row in runs._rows(dict.fromkeys(["evaluate/student/bits_per_byte", *told], 0.5), None)]
    for name in names:
        _validate_metric_name(name)
    assert names[0] == "evaluate/student/bits_per_byte"
    assert len(set(names)) == 3


def test_nothing_is_lost_while_the_server_is_away(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sra_core.watch.mlflow.ledger import Ledger

    real, patience = Ledger.__call__, runs.PATIENCE
    monkeypatch.setattr(runs, "PATIENCE", 0.2)

    def away(ledger: Ledger, report: dict[str, Any]) -> None:
        if report["do"] != "open" and not allowed:
            raise ConnectionError("nobody answers")
        real(ledger, report)

    allowed: list[bool] = []
    monkeypatch.setattr(Ledger, "__call__", away)
    with pipeline_run(config) as parent:
        _stage(config, parent, steps=range(1, 30))
    assert "kept in" in caplog.text
    assert all("loss" not in child.data.metrics for child in _children(config))  # slow disks may not have opened it yet
    allowed.append(True)
    monkeypatch.setattr(runs, "PATIENCE", patience)
    other = config.model_copy(update={"name": "another"})
    with pipeline_run(other):
        pass
    (child,) = _children(config)
    assert _steps(config, child) == list(range(1, 30))
    assert child.info.status == "FINISHED"


def test_secrets_reach_neither_database_nor_artifacts(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = "s3cr3t-pa55phrase"
    monkeypatch.setenv("STORE_ACCESS_KEY", planted)
    config.name = f"run {planted}"
    # A whole config with these is refused; parts of one are changed behind its back, and masked all the same.
    config.corpus.source, config.corpus.system = f"https://ann:{planted}@host/data.jsonl", f"Say {planted}"
    config.distill.deepspeed = {"wandb": {"api_key": planted}}
    with pipeline_run(config, {"note": planted}) as parent:
        watch = MlflowWatcher(config, parent)
        watch.begin("prepare", "prepare-fp", config, f"reads {planted}", reused=False)
        watch.table("samples", [{"question": planted}])
        watch.markdown("audit", planted)
        watch.failed(OSError(planted))
        alone = MlflowWatcher(config)
        alone.begin("distill", "distill-fp", config, "", reused=False)
        alone.end(_manifest(config, "distill"))
    files = [path for path in Path(config.store).rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert [path for path in files if planted.encode() in path.read_bytes()] == []
    assert _children(config)[0].data.tags["error"] == "OSError: ***"
    assert _parents(config)[0].data.tags["note"] == "***"


def test_tracking_can_be_off(tmp_path: Path) -> None:
    config = RunConfig(store=str(tmp_path), tracking=TrackingConfig(enabled=False))
    with pipeline_run(config) as parent:
        assert parent is None
        watch = _stage(config, parent)
        watch.markdown("audit", "x")
    assert watch.run_id is None
    assert list(tmp_path.iterdir()) == []


def test_system_metrics(config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sra_core.watch.mlflow import ledger

    real = ledger.start_sampler
    monkeypatch.setattr(ledger, "start_sampler", lambda outbox, key, uri: real(outbox, key, uri, interval=0.05))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    config.tracking.system_metrics = True
    with pipeline_run(config) as parent:
        watch = MlflowWatcher(config, parent)
        watch.begin("distill", "distill-fp", config, "", reused=False)
        time.sleep(1.0)
        watch.end(_manifest(config, "distill"))
    (child,) = _children(config)
    assert 0 <= child.data.metrics["system/cpu_utilization_percentage"] <= 100
    assert "system/system_memory_usage_megabytes" in child.data.metrics
    assert list(here.iterdir()) == [], "a database was opened where we stand"


def test_where_runs_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(RunConfig(store="here")) == f"sqlite:///{tmp_path}/here/mlflow.db"
    assert tracking_uri(RunConfig(store="s3://bucket/x")) == f"sqlite:///{tmp_path}/sra-tracking/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(RunConfig(store="here")) == "http://server:5000"
    assert tracking_uri(RunConfig(tracking=TrackingConfig(uri="http://other:1"))) == "http://other:1"


def test_the_ui_command_is_on_loopback_and_names_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = ui_command(RunConfig(store=str(tmp_path)), port=5001)
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path}/mlflow.db"
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5001"


def test_an_unknown_kind_of_store_is_refused(tmp_path: Path) -> None:
    config = RunConfig(store=str(tmp_path), tracking=TrackingConfig(uri="ftp://host"))
    with pytest.raises(ConfigError, match="ftp://host"), pipeline_run(config):
        pass


def test_importing_tracking_does_not_import_mlflow() -> None:
    code = "import sys, sra_core.watch.mlflow; print(sorted(sys.modules.keys() & {'mlflow', 'torch', 'prefect'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_process_is_dead_only_if_it_ran_here_and_is_gone() -> None:
    own = describe.process_tags()["process"]
    assert not describe.is_dead(own)
    assert not describe.is_dead("")
    assert not describe.is_dead(f"elsewhere-{socket.gethostname()}:1:0")
    assert describe.is_dead(f"{socket.gethostname()}:{os.getpid()}:0"), "the number was given to another process"
    child = subprocess.Popen([sys.executable, "-c", ""])
    created = psutil.Process(child.pid).create_time()
    child.wait()
    assert describe.is_dead(f"{socket.gethostname()}:{child.pid}:{created:.0f}")
