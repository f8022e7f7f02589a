"""Finished evaluations among the runs of a tracking server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sra_core.config import RunConfig
from sra_core.errors import EvaluationError
from sra_core.watch.mlflow.places import tracking_uri
from sra_core.watch.telemetry import quiet_telemetry

__all__ = ["evaluation_of_run"]


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
