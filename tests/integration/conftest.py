"""Real servers for a test session: Prefect, MLflow and one worker."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .servers import Stack, new_settings, running_stack, services


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if "TEST_STACK" in os.environ:  # services that run already, found by the variables of deploy/services.py
        yield Stack(services.Settings.from_environment(os.environ))
        return
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setenv("PREFECT_WORKER_QUERY_SECONDS", "1")
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "SRA_STORE"):
        patch.delenv(name, raising=False)
    with running_stack(new_settings(tmp_path_factory.mktemp("stack"))) as running:
        yield running
    patch.undo()
