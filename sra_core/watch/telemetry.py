"""Nothing phones home: usage reporting of the libraries is off unless the user turned it on."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from types import MappingProxyType

__all__ = ["QUIET", "quiet_telemetry"]

QUIET: Mapping[str, str] = MappingProxyType(
    {
        "DO_NOT_TRACK": "true",  # the word: MLflow does not take "1"
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }
)
"""Environment that turns usage reporting off. DeepSpeed reports nothing by itself; its monitors are off by default."""


def quiet_telemetry(environment: MutableMapping[str, str] | None = None) -> None:
    """Turn usage reporting off for this process and its children, keeping every choice that the user made.

    Must run before Prefect, MLflow or the hub client is imported: they read these variables once.
    """
    environment = os.environ if environment is None else environment
    for name, value in QUIET.items():
        environment.setdefault(name, value)
