"""From what a person names to a finished evaluation: a fingerprint in the store, or a run in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sra_core.config import RunConfig
from sra_core.errors import EvaluationError
from sra_core.shards import StageFolder
from sra_core.telemetry import quiet_telemetry
from sra_core.tracking.places import home, tracking_uri

__all__ = ["find_evaluation"]


def find_evaluation(config: RunConfig, name: str) -> tuple[str | None, Path]:
    """Name, if it has one, and folder of an evaluation.

    Args:
        config: Tells store and tracking server.
        name: The fingerprint of an evaluation or its beginning, or the MLflow run id of a pipeline or of its evaluate
            stage.

    Raises:
        EvaluationError: There is no such thing; says where it was looked for.
    """
    room = home(config) / StageFolder.ROOMS["evaluate"]
    found = [path.parent for path in sorted(room.glob("*/manifest.json")) if path.parent.name.startswith(name)]
    if len(found) == 1:
        return None, found[0]
    if found:
        raise EvaluationError(
            f"{name!r} begins the names of {len(found)} evaluations in {room}", "give more of the name"
        )
    uri = tracking_uri(config)
    run = _run(uri, name)
    if run is None:
        raise EvaluationError(
            f"{name!r} is no folder, no evaluation in {room} and no run in {uri}",
            "give a folder below `evaluations`, or say where the runs are: `--set store=FOLDER` or SRA_STORE (and "
            "`--set tracking.uri=ADDRESS` for a tracking server)",
        )
    return _evaluated(run, uri)


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


def _evaluated(run: Any, uri: str) -> tuple[str, Path]:
    """Name of a pipeline or stage and the folder of its evaluation."""
    from mlflow import MlflowClient

    children = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    stages = [run, *MlflowClient(uri).search_runs([run.info.experiment_id], children)]
    for stage in stages:
        if stage.data.tags.get("stage") == "evaluate" and "folder" in stage.data.tags:
            return str(run.info.run_name), Path(stage.data.tags["folder"])
    raise EvaluationError(
        f"no finished evaluation belongs to run {run.info.run_id}", "run the evaluate stage of it first"
    )
