"""MLflow watches: one parent run a pipeline, one child run a stage. The only importer of mlflow, and lazily."""

from sra_core.watch.mlflow.describe import config_text, is_dead, process_name
from sra_core.watch.mlflow.lookup import close_dead_runs, evaluation_of_run
from sra_core.watch.mlflow.places import home, tracking_uri, ui_command
from sra_core.watch.mlflow.runs import MlflowWatcher, PipelineRun, benchmark_run, cell_run, pipeline_run

__all__ = [
    "MlflowWatcher",
    "PipelineRun",
    "benchmark_run",
    "cell_run",
    "close_dead_runs",
    "config_text",
    "evaluation_of_run",
    "home",
    "is_dead",
    "pipeline_run",
    "process_name",
    "tracking_uri",
    "ui_command",
]
