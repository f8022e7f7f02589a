"""The flows of prepare and cache on a Dask cluster of two worker processes: the same bytes as in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.cache import cache
from flows.prepare import prepare
from sra_core import stages
from sra_core.config.load import load_config
from sra_core.shards import Manifest, StageFolder

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.slow]


def test_flows_make_their_shards_on_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra `dask` is not installed")
    settings: dict[str, Any] = {"tracking.enabled": False, "alignment.examples_per_shard": 4}
    config = load_config(
        "smoke",
        {"store": str(tmp_path / "alone"), "tracking": {"enabled": False}, "alignment": {"examples_per_shard": 4}},
    )
    alone = [stages.prepare(config), stages.cache(config)]
    monkeypatch.setattr(StageFolder, "write_shard", None)  # this process makes none
    options: dict[str, Any] = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(n_workers=2, **options) as cluster:
        settings |= {"store": str(tmp_path / "spread"), "dask": cluster.scheduler_address}
        spread: list[Manifest] = [flow(recipe="smoke", overrides=settings) for flow in (prepare, cache)]
    assert [manifest.content for manifest in spread] == [manifest.content for manifest in alone]
    assert all(len(manifest.shards) >= 6 for manifest in spread)
