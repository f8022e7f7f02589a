"""Shared by every test: no network, no telemetry, quiet libraries, and one finished run of recipe `smoke`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),  # tests run side by side
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="true",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW="ignore",
    CUDA_VISIBLE_DEVICES=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
)

from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.shards import Manifest


@pytest.fixture(scope="session")
def device() -> str:
    """Where tests marked ``gpu`` run: CUDA, or what TEST_DEVICE names."""
    import torch

    name = os.environ.get("TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "")
    return name or pytest.skip("no CUDA device")


@dataclass(frozen=True)
class SmokeRun:
    """A finished run of recipe `smoke`; tests read it and leave it as it is (copy the store to change it)."""

    config: RunConfig
    store: Path
    results: dict[str, Manifest]


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    from sra_core import stages

    store = tmp_path_factory.mktemp("smoke") / "store"
    config = load_config("smoke", {"store": str(store), "tracking": {"enabled": False}})
    return SmokeRun(config, store, stages.run(config))
