"""MLflow watches: one parent run a pipeline, one child run a stage. The only room that imports mlflow, and lazily."""

from sra_core.tracking.comparison import track_comparison
from sra_core.tracking.lookup import find_evaluation
from sra_core.tracking.places import figure_path, tracking_uri, ui_command
from sra_core.tracking.runs import MlflowWatcher, PipelineRun, benchmark_run, cell_run, pipeline_run

__all__ = [
    "MlflowWatcher",
    "PipelineRun",
    "benchmark_run",
    "cell_run",
    "figure_path",
    "find_evaluation",
    "pipeline_run",
    "track_comparison",
    "tracking_uri",
    "ui_command",
]
