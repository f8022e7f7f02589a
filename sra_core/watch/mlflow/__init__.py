"""MLflow watches: one parent run a pipeline, one child run a stage. The only importer of mlflow, and lazily."""

from sra_core.watch.mlflow.describe import config_text
from sra_core.watch.mlflow.lookup import evaluation_of_run
from sra_core.watch.mlflow.places import home, tracking_uri, ui_command
from sra_core.watch.mlflow.runs import MlflowWatcher, PipelineRun, benchmark_run, cell_run, pipeline_run

__all__ = [
    "MlflowWatcher",
    "PipelineRun",
    "benchmark_run",
    "cell_run",
    "config_text",
    "evaluation_of_run",
    "home",
    "pipeline_run",
    "tracking_uri",
    "ui_command",
]
