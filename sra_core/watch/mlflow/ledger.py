"""The ledger: writes reports to MLflow. The only module that imports mlflow; itself imported when a run opens.

Which run continues which:

- A parent run is found by the config (every field that determines results, and the name). A parent that failed, was
  killed, or belongs to the same Prefect flow run is continued; a finished one is left as it is and named by the tag
  ``previous_run`` of the new one.
- A benchmark and its cells are always the same runs, whichever processes work on them and however often.
- A child run is found by stage, fingerprint and parent. An unfinished one is continued and gets the steps that it
  lacks; a finished one stays. A stage that was found done is recorded with the tag ``reused`` and, where another
  pipeline made it, ``original_run``: parameters, inputs, tables and figures are there and not written again.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from sra_core.errors import ConfigError
from sra_core.watch import Outbox, Report, redact_text
from sra_core.watch.mlflow.describe import is_dead, now

__all__ = ["BATCH", "NEWEST", "Ledger", "start_sampler"]

BATCH = 1000
"""Most metrics in one call."""
NEWEST = "newest"
"""Alias of the latest student of a registered model (MLflow keeps the name ``latest`` for itself)."""
_MOST_STRIKES = 3
_NEWEST_RUNS = 5  # enough to find the one to go on with: reading a run costs 15 ms and more
_SCHEMES = {"databricks", "http", "https", "mssql", "mysql", "postgresql", "sqlite"}
_SCORES = "scores"
_COLUMNS = (
    *("params.`recipe`", "params.`objective.name`", "params.`seed`"),
    *("metrics.`evaluate/student/bits_per_byte`", "metrics.`evaluate/student/rougeL`"),
    *("metrics.`evaluate/initial/bits_per_byte`", "metrics.`evaluate/teacher/bits_per_byte`"),
)
_EXPERIMENT = {
    "mlflow.experimentKind": "custom_model_development",
    f"mlflow.sharedViewState.{_SCORES}": json.dumps({"selectedColumns": _COLUMNS}),
}
"""Tags by which MLflow's pages show an experiment of models, and the table of runs with the columns of scores."""
_REFUSALS = {
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}


class Ledger:
    """Writes reports to MLflow. Calls run in the outbox's thread and may raise: the outbox tries again.

    Args:
        uri: Tracking server or database.
        experiment: Name of the experiment that collects the runs; made if it is missing.
        artifacts: Folder of the experiment's artifacts; None leaves the place to the tracking server.

    Raises:
        ConfigError: MLflow knows no such kind of store.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path | None) -> None:
        if uri.partition(":")[0].partition("+")[0] not in _SCHEMES:
            raise ConfigError(
                f"tracking.uri {redact_text(uri)!r} is not a tracking server or database",
                "give an address such as http://127.0.0.1:5000 or a database such as sqlite:////folder/mlflow.db",
            )
        self._uri, self._experiment, self._artifacts = uri, experiment, artifacts
        self._experiment_id: str | None = None
        self._strikes = 0
        self._known: dict[str, dict[str, int]] = {}  # run id -> metric -> last step that is there
        self.ids: dict[str, str] = {}
        self.repeats: set[str] = set()
        """Keys of runs of reused stages whose original is in the store."""

    def __call__(self, report: Report) -> None:
        getattr(self, f"_do_{report['do']}")(report)
        self._strikes = 0

    def passing(self, error: Exception) -> bool:
        """Whether a later try may succeed: the store is away or overloaded, and not: it refused the report."""
        if isinstance(error, MlflowException):
            return error.error_code not in _REFUSALS and not self._struck_out()
        # The file of an artifact is gone: no later try finds it.
        if isinstance(error, FileNotFoundError):
            return False
        return isinstance(error, OSError) or type(error).__module__.startswith(("requests", "urllib3", "sqlalchemy"))

    def _struck_out(self) -> bool:
        """An error without a clear code is a refusal when it comes back while the store answers other questions."""
        try:
            self._client.search_experiments(max_results=1)
        except MlflowException:
            return False
        self._strikes += 1
        return self._strikes > _MOST_STRIKES

    @cached_property
    def _client(self) -> Any:
        return _open_client(self._uri)

    def url(self, key: str) -> str | None:
        return self._address(f"runs/{self.ids[key]}") if key in self.ids else None

    @property
    def scores_url(self) -> str | None:
        return self._address("runs", viewStateShareKey=_SCORES) if self._experiment_id else None

    def _address(self, place: str, **query: str) -> str | None:
        if not self._uri.startswith("http"):
            return None
        return f"{redact_text(self._uri.rstrip('/'))}/{self._page(place, **query)}"

    def _page(self, place: str, **query: str) -> str:
        """Address of a page of the experiment below that of the server."""
        query = {"workflowType": "machine_learning", **query}  # else it may open as one of prompts and traces
        return f"#/experiments/{self._experiment_id}/{place}?{urlencode(query)}"

    def _do_open(self, report: Report) -> None:
        parent = self._id(report["parent"]) if report["parent"] else None
        tags = {**report["match"], **report["tags"], "session": report["run"]}
        if parent:
            tags["mlflow.parentRunId"] = parent
        found = self._find(report["match"], parent)
        run = next((run for run in found if _continues(run, report)), None)
        if report["reused"]:
            tags["reused"] = "true"
        if run is None:
            tags |= self._lineage(report, found)
            if report["reused"] and tags.keys() & {"original_run", "previous_run"}:
                self.repeats.add(report["run"])
                made = self._page(f"runs/{tags.get('original_run') or tags['previous_run']}")
                tags["mlflow.note.content"] = f"Found finished: [the run that made it]({made}) has figures and tables."
            tags["attempt"] = "1"
            name = f"{report['name']} (reused)" if report["reused"] else report["name"]
            run = self._client.create_run(self._id_of_experiment(), report["start"], tags, name)
        else:
            again = not report["reused"] and run.data.tags.get("session") != report["run"]
            tags["attempt"] = str(int(run.data.tags.get("attempt", "1")) + again)
            tags |= _changed(run.data.params, report)
            # A finished run stays so: a reused stage, or a benchmark that grows, only adds to it.
            if run.info.status != "FINISHED":
                self._client.update_run(run.info.run_id, status="RUNNING")
            # `data.metrics` has values alone; the objects behind it have the last step too, past which steps are new.
            self._known[run.info.run_id] = {metric.key: metric.step for metric in run.data._metric_objs}
        told = run.data.params or report["run"] in self.repeats
        params = {} if told else {name: report["params"][name] for name in report["shown"]}
        self._log(run.info.run_id, params=params, tags=tags)
        self.ids[report["run"]] = run.info.run_id

    def _do_metrics(self, report: Report) -> None:
        run_id = self._id(report["run"])
        known = dict(self._known.get(run_id, {}))
        metrics = []
        for name, value, time, step in report["metrics"]:
            if (step or 0) > known.get(name, -1):  # training that resumes tells its steps again
                metrics.append(Metric(name, value, time, step or 0))
                if step is not None:  # a total may be said again
                    known[name] = step
        for first in range(0, len(metrics), BATCH):
            self._client.log_batch(run_id, metrics=metrics[first : first + BATCH])
        self._known[run_id] = known

    def _do_tags(self, report: Report) -> None:
        self._log(self._id(report["run"]), tags=report["tags"])

    def _do_describe(self, report: Report) -> None:
        run_id = self._id(report["run"])
        scores = f"[Scores of all runs]({self._page('runs', viewStateShareKey=_SCORES)})"
        self._log(run_id, tags={"mlflow.note.content": f"{scores}\n\n{report['text']}"})

    def _do_artifact(self, report: Report) -> None:
        path, run_id = Path(report["path"]), self._id(report["run"])
        self._client.log_artifact(run_id, str(path), report["folder"] or None)
        # The tag that `log_table` writes: by it MLflow's pages find tables.
        if report.get("table"):
            shown = json.loads(self._client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
            entry = {"path": f"{report['folder']}/{path.name}", "type": "table"}
            if entry not in shown:
                self._client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*shown, entry]))
        if report["staged"]:
            shutil.rmtree(path.parent)

    def _do_inputs(self, report: Report) -> None:
        inputs = [
            DatasetInput(
                Dataset(name, digest, "local", json.dumps({"uri": path}), profile=profile),
                [InputTag("mlflow.data.context", context)],
            )
            for name, digest, path, profile, context in report["inputs"]
        ]
        if inputs:
            self._client.log_inputs(self._id(report["run"]), inputs)

    def _do_model(self, report: Report) -> None:
        """An entry of the model registry that points at the student's folder; weights are not copied.

        Alias `NEWEST` of the registered model is moved to the entry.
        """
        run_id, name = self._id(report["run"]), _model_name(report["name"])
        tags = {"fingerprint": report["fingerprint"], "path": report["path"]}
        same = self._client.search_model_versions(f"name = '{name}'")
        if any(version.tags.get("fingerprint") == report["fingerprint"] for version in same):
            return
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        logged = name.replace(".", "-").replace("%", "-")  # which a registered model's name may have
        external = {**tags, "mlflow.model.isExternal": "true"}
        model = self._client.create_logged_model(
            self._id_of_experiment(), logged, run_id, external, model_type="student"
        )
        self._client.finalize_logged_model(model.model_id, "READY")
        made = self._client.create_model_version(name, model.artifact_location, run_id, tags, model_id=model.model_id)
        self._client.set_registered_model_alias(name, NEWEST, made.version)

    def _do_close(self, report: Report) -> None:
        self._client.set_terminated(self._id(report["run"]), report["status"], report["end"])

    def _id(self, key: str) -> str:
        """The run that was opened under ``key``, by this process or by one whose reports were left behind."""
        if key not in self.ids:
            found = self._find({"session": key}, None)
            if not found:
                raise LookupError(f"no run was opened under {key}")
            self.ids[key] = found[0].info.run_id
        return self.ids[key]

    def _find(self, tags: Mapping[str, str], parent: str | None) -> list[Any]:
        wanted = {**tags, **({"mlflow.parentRunId": parent} if parent else {})}
        text = " and ".join(f"tags.`{name}` = '{value}'" for name, value in wanted.items())
        runs = self._client.search_runs(
            [self._id_of_experiment()], text, max_results=_NEWEST_RUNS, order_by=["attributes.start_time DESC"]
        )
        # Runs of stages below a pipeline carry the same tags; without a parent those alone are meant that have none.
        return [run for run in runs if parent or "session" in tags or "mlflow.parentRunId" not in run.data.tags]

    def _lineage(self, report: Report, found: Sequence[Any]) -> dict[str, str]:
        if found:
            return {"previous_run": found[0].info.run_id}
        if report["reused"]:
            text = " and ".join(f"tags.`{name}` = '{value}'" for name, value in report["match"].items())
            runs = self._client.search_runs(
                [self._id_of_experiment()], text, max_results=1, order_by=["attributes.start_time ASC"]
            )
            made = [run.info.run_id for run in runs if run.data.tags.get("reused") != "true"]
            return {"original_run": made[0]} if made else {}
        return {}

    def _log(self, run_id: str, params: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None) -> None:
        items = [Param(name, text) for name, text in (params or {}).items()]
        self._client.log_batch(run_id, tags=[RunTag(name, str(text)) for name, text in (tags or {}).items()])
        # MLflow takes 100 parameters in a call at most.
        for first in range(0, len(items), 100):
            self._client.log_batch(run_id, params=items[first : first + 100])

    def _id_of_experiment(self) -> str:
        if self._experiment_id is None:
            found = self._client.get_experiment_by_name(self._experiment)
            if found is None:
                try:
                    self._client.create_experiment(
                        self._experiment, self._artifacts.as_uri() if self._artifacts else None, _EXPERIMENT
                    )
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process made it first
                        raise
                found = self._client.get_experiment_by_name(self._experiment)
            for name, value in _EXPERIMENT.items():
                if name not in found.tags:
                    self._client.set_experiment_tag(found.experiment_id, name, value)
            self._experiment_id = found.experiment_id
        return self._experiment_id


def _open_client(uri: str) -> Any:
    """A client of the tracking store; a new SQLite database is laid out by one process at a time."""
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    database = uri.removeprefix("sqlite:///")
    guard = FileLock(f"{database}.lock") if database != uri else nullcontext()
    with guard:
        return MlflowClient(tracking_uri=uri)


def _continues(run: Any, report: Report) -> bool:
    """Whether an earlier run is the one that ``report`` opens again."""
    tags, status = run.data.tags, run.info.status
    flow_run = report["tags"].get("prefect.flow_run_id")
    if (
        report["reused"]
        or report.get("joined")
        or tags.get("session") == report["run"]
        or status in ("FAILED", "KILLED")
    ):
        return True
    if flow_run and tags.get("prefect.flow_run_id") == flow_run:
        return True
    return status != "FINISHED" and (report["parent"] is not None or is_dead(tags.get("process", "")))


def _changed(told: Mapping[str, str], report: Report) -> dict[str, str]:
    """Parameters can't change in MLflow; what differs in a later attempt goes into tags."""
    if not told:  # the first attempt ended before it told them
        return {}
    now = report["params"]
    changed = [name for name in told if name in now and now[name] != told[name]]
    changed += [name for name in report["shown"] if name not in told]
    return {f"changed.{name}": now[name] for name in changed}


def _model_name(name: str) -> str:
    return "".join("-" if letter in "/:'\"`" else letter for letter in name)


def start_sampler(outbox: Outbox, key: str, uri: str, interval: float = 10.0) -> Callable[[], None]:
    """Report the machine's use every ``interval`` seconds; returns the function that stops it."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(key, tracking_uri=uri)  # else it opens a database where we stand
    stop = threading.Event()

    def sample() -> None:
        step = 0
        while not stop.wait(interval):
            monitor.collect_metrics()
            values = monitor.aggregate_metrics()
            for source in monitor.monitors:
                source.clear_metrics()
            rows = [[f"system/{name}", float(value), now(), step] for name, value in values.items()]
            outbox.put({"do": "metrics", "run": key, "metrics": rows})
            step += 1

    threading.Thread(target=sample, name="system-metrics", daemon=True).start()
    return stop.set
