"""Where shards are made: here, on the caller's executor, or on the Dask cluster that the config names."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows.retries import is_passing
from sra_core import stages
from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.errors import StorageError
from sra_core.processes import cluster
from sra_core.shards import StageFolder

distributed = pytest.importorskip("distributed", reason="the extra `dask` is not installed")


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a cluster of two worker processes."""
    options: dict[str, Any] = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(n_workers=2, **options) as running:
        yield running.scheduler_address


def _config(store: Path, **parts: Any) -> RunConfig:
    settings = {"store": str(store), "tracking": {"enabled": False}, "alignment": {"examples_per_shard": 4}}
    return load_config("smoke", settings | parts)


@pytest.mark.slow
def test_the_cluster_of_the_config_makes_the_shards_and_the_same_bytes(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(tmp_path / "alone")
    alone = [stages.prepare(config), stages.cache(config)]
    monkeypatch.setattr(StageFolder, "write_shard", None)  # this process makes none
    config = _config(tmp_path / "spread", dask=scheduler)
    spread = [stages.prepare(config), stages.cache(config)]
    assert [manifest.content for manifest in spread] == [manifest.content for manifest in alone]
    assert [manifest.fingerprint for manifest in spread] == [manifest.fingerprint for manifest in alone]


def test_the_callers_executor_comes_first_and_none_is_none() -> None:
    with ThreadPoolExecutor() as own, cluster.shard_executor(RunConfig(dask="tcp://127.0.0.1:1"), own) as chosen:
        assert chosen is own
    with cluster.shard_executor(RunConfig()) as chosen:
        assert chosen is None


def test_a_scheduler_that_is_away_is_named_and_worth_a_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE", 1)
    with (
        pytest.raises(StorageError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1") as caught,
        cluster.shard_executor(RunConfig(dask="tcp://127.0.0.1:1")),
    ):
        pass
    assert is_passing(caught.value)


def test_a_cluster_without_workers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE", 1)
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty,
        pytest.raises(StorageError, match="has no worker"),
        cluster.shard_executor(RunConfig(dask=empty.scheduler_address)),
    ):
        pass
