"""A Prefect of its own for these tests, and stages that finish at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prefect-")
os.environ.pop("PREFECT_API_URL", None)

from sra_core.config import RunConfig
from sra_core.runs import Run
from sra_core.shards import Manifest
from sra_core.watch import Watcher, watched

METRICS = {"bits_per_byte": 1.5}
STAGES = ("prepare", "cache", "distill", "evaluate")


class StubStages:
    """Stages that record their calls; ``fail[stage]`` holds errors to raise first, one a call."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.configs: list[RunConfig] = []
        self.fail: dict[str, list[BaseException]] = {}
        self.done: set[str] = set()
        self.missing: list[Exception] = []

    def check_tools(self, config: RunConfig) -> None:
        if self.missing:
            raise self.missing[0]

    def _stage(self, stage: str) -> Callable[..., Manifest]:
        def run(settled: Run, watch: Watcher) -> Manifest:
            config = settled.config
            self.calls.append(stage)
            self.configs.append(config)
            reused = stage in self.done
            with watched(watch, stage, f"{stage}-fp", config, "four steps", reused=reused):
                if not reused:
                    self._work(stage, watch)
                self.done.add(stage)
                manifest = _manifest(stage, config)
                watch.end(manifest)
                return manifest

        return run

    def _work(self, stage: str, watch: Watcher) -> None:
        if self.fail.get(stage):
            raise self.fail[stage].pop(0)
        for step in range(1, 5):
            watch.metrics({"loss": 1.0 / step}, step)
            watch.progress(step, 4, "steps", f"loss {1 / step:.2f}")
        watch.table("samples", [{"question": "a", "answer": "c"}, {"question": "b", "answer": "d"}])
        watch.markdown("audit", "# fine")


def _manifest(stage: str, config: RunConfig) -> Manifest:
    return Manifest(
        stage=stage,
        fingerprint=f"{stage}-fp",
        identity={"corpus": {"source": "x"}},
        counts={"kept": 3},
        metrics=METRICS,
        created="2026-01-01T00:00:00+00:00",
        folder=str(Path(config.store) / stage),
    )


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=600),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture
def stub_stages(monkeypatch: pytest.MonkeyPatch) -> StubStages:
    stages = StubStages()
    monkeypatch.setattr("flows.common.STAGES", {stage: stages._stage(stage) for stage in STAGES})
    monkeypatch.setattr("flows.common.check_tools", stages.check_tools)
    monkeypatch.setattr("flows.common.check_models", lambda config: None)  # stages that run no model need none
    monkeypatch.setattr("flows.common.check_layers", lambda config: None)
    return stages
