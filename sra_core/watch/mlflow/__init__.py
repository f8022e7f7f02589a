"""MLflow watches: one parent run a pipeline, one child run a stage. The only importer of mlflow, and lazily."""

from sra_core.watch.mlflow.lookup import evaluation_of_run
from sra_core.watch.mlflow.places import figure_path, home, tracking_uri, ui_command
from sra_core.watch.mlflow.runs import MlflowWatcher, PipelineRun, benchmark_run, cell_run, pipeline_run

__all__ = [
    "MlflowWatcher",
    "PipelineRun",
    "benchmark_run",
    "cell_run",
    "evaluation_of_run",
    "figure_path",
    "home",
    "pipeline_run",
    "tracking_uri",
    "ui_command",
]
