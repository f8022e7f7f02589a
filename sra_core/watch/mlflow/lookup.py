"""Runs of a tracking server: finished evaluations, and runs that nobody works on any more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sra_core.config import RunConfig
from sra_core.errors import EvaluationError
from sra_core.watch.mlflow.describe import is_dead
from sra_core.watch.mlflow.places import tracking_uri
from sra_core.watch.telemetry import quiet_telemetry

__all__ = ["close_dead_runs", "evaluation_of_run"]


def evaluation_of_run(config: RunConfig, run_id: str) -> tuple[str, Path, str] | None:
    """Name, folder and fingerprint of the evaluation that a run made; None where there is no such run.

    Args:
        config: Tells the tracking server.
        run_id: Of a pipeline or of its evaluate stage.

    Raises:
        EvaluationError: The run has no finished evaluation.
    """
    uri = tracking_uri(config)
    run = _run(uri, run_id)
    if run is None:
        return None
    from mlflow import MlflowClient

    children = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    stages = [run, *MlflowClient(uri).search_runs([run.info.experiment_id], children)]
    for stage in stages:
        if stage.data.tags.get("stage") == "evaluate" and "folder" in stage.data.tags:
            return str(run.info.run_name), Path(stage.data.tags["folder"]), stage.data.tags.get("fingerprint", "")
    raise EvaluationError(
        f"no finished evaluation belongs to run {run.info.run_id}", "run the evaluate stage of it first"
    )


def close_dead_runs(uri: str, is_over: Callable[[str], bool]) -> list[str]:
    """End runs as killed that are marked as running although nobody works on them; going on opens them again.

    Args:
        uri: Tracking server.
        is_over: Says of a Prefect flow run by its id that it does not run.

    Returns:
        The names of the runs that were ended.
    """
    quiet_telemetry()
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    ended = []
    for run in client.search_runs(experiments, "attributes.status = 'RUNNING'"):
        flow_run = run.data.tags.get("prefect.flow_run_id")
        if is_dead(run.data.tags.get("process", "")) or (flow_run and is_over(flow_run)):
            client.set_terminated(run.info.run_id, "KILLED")
            ended.append(str(run.info.run_name))
    return ended


def _run(uri: str, run_id: str) -> Any:
    """The run, or None; a database that does not exist is not made."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return None
    quiet_telemetry()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient(uri).get_run(run_id)
    except MlflowException:
        return None
