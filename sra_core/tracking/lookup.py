"""From a run in MLflow back to what it made in the store."""

from __future__ import annotations

from pathlib import Path

from sra_core.config import RunConfig
from sra_core.errors import EvaluationError
from sra_core.telemetry import quiet_telemetry
from sra_core.tracking.places import tracking_uri

__all__ = ["evaluation_of_run"]


def evaluation_of_run(config: RunConfig, run_id: str) -> tuple[str, Path]:
    """Name and evaluation folder of a pipeline's run or of an evaluate stage's run.

    Args:
        config: Tells the tracking server.
        run_id: MLflow run id.

    Raises:
        EvaluationError: There is no such run, or no finished evaluation belongs to it.
    """
    quiet_telemetry()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri(config))
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise EvaluationError(
            f"{run_id!r} is neither an evaluation folder nor a run in {tracking_uri(config)}",
            "give a folder below `evaluations`, or the run id that MLflow shows",
        ) from error
    stages = [run, *client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")]
    for stage in stages:
        if stage.data.tags.get("stage") == "evaluate" and "folder" in stage.data.tags:
            return f"{run.info.run_name}-{run_id[:6]}", Path(stage.data.tags["folder"])
    raise EvaluationError(f"no finished evaluation belongs to run {run_id}", "run the evaluate stage of it first")
