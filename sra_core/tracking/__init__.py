"""MLflow watches: one parent run a pipeline, one child run a stage. The only room that imports mlflow, and lazily."""

from sra_core.tracking.lookup import evaluation_of_run
from sra_core.tracking.places import tracking_uri, ui_command
from sra_core.tracking.runs import MlflowWatcher, PipelineRun, benchmark_run, cell_run, pipeline_run

__all__ = [
    "MlflowWatcher",
    "PipelineRun",
    "benchmark_run",
    "cell_run",
    "evaluation_of_run",
    "pipeline_run",
    "tracking_uri",
    "ui_command",
]
