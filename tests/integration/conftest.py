"""Real servers for a test session: Prefect, MLflow and one worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .servers import Stack, new_settings, running_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setenv("PREFECT_WORKER_QUERY_SECONDS", "1")
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "SRA_STORE"):
        patch.delenv(name, raising=False)
    with running_stack(new_settings(tmp_path_factory.mktemp("stack"))) as running:
        yield running
    patch.undo()
