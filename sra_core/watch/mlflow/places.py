"""Where tracking data lies and how to look at it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sra_core.config import RunConfig

__all__ = ["file_name", "home", "spool", "tracking_uri", "ui_command"]


def tracking_uri(config: RunConfig) -> str:
    """Where runs go: ``tracking.uri``, else ``MLFLOW_TRACKING_URI``, else a SQLite database inside the store."""
    chosen = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return chosen or f"sqlite:///{home(config) / 'mlflow.db'}"


def ui_command(config: RunConfig, port: int = 5000, host: str = "127.0.0.1") -> list[str]:
    """The command line that opens the runs of ``config`` in a browser, on loopback unless told otherwise."""
    address = ["--host", host, "--port", str(port), "--workers", "1"]
    artifacts = ["--artifacts-destination", str(home(config) / "mlflow-artifacts")]
    return [
        # MLflow 3 runs jobs in processes of their own by default, which SIGTERM to the server would leave behind.
        *("env", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "MLFLOW_DISABLE_TELEMETRY=true"),
        *(sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracking_uri(config), *artifacts, *address),
    ]


def home(config: RunConfig) -> Path:
    """The local folder that holds tracking data: the store, or a folder beside the caller for a remote store."""
    return Path("sra-tracking" if "://" in config.store else config.store).expanduser().absolute()


def file_name(name: str) -> str:
    """The file name of a figure, table or report: slashes, which group names, would make folders of it."""
    return name.replace("/", "-")


def spool(config: RunConfig) -> Path:
    """The folder that keeps reports which the tracking server has not taken yet."""
    return home(config) / "mlflow-spool"
