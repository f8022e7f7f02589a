"""Nothing phones home unless the user turned it on."""

from __future__ import annotations

import os
import subprocess
import sys

from sra_core.watch import QUIET, quiet_telemetry


def test_defaults_are_set_and_choices_kept() -> None:
    environment = {"MLFLOW_DISABLE_TELEMETRY": "false", "PATH": "/bin"}
    quiet_telemetry(environment)
    assert environment == {**QUIET, "MLFLOW_DISABLE_TELEMETRY": "false", "PATH": "/bin"}


def test_libraries_take_the_defaults() -> None:
    code = (
        "import flows\n"
        "from prefect.settings import get_current_settings\n"
        "from prefect._internal.analytics.enabled import is_telemetry_enabled\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled\n"
        "from huggingface_hub import constants\n"
        "print(get_current_settings().server.analytics_enabled, is_telemetry_enabled(),\n"
        "      not is_telemetry_disabled(), not constants.HF_HUB_DISABLE_TELEMETRY)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in QUIET and name != "CI"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 4
