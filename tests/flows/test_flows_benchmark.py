"""The benchmark flow against a Prefect server, with cells that finish at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flows.benchmark import benchmark
from sra_core.bench.grid import Bench
from sra_core.config.load import load_config
from sra_core.errors import TrainingError
from sra_core.runs import ORDER, Run
from sra_core.shards import Manifest
from sra_core.watch import Watcher, watched
from tests.bench import make
from tests.flows.test_flows_run import _artifacts

pytestmark = pytest.mark.usefixtures("prefect_server")


class QuickStages:
    """Stages of recipe `quality-smoke` that put finished results into the store; ``fails`` names one that can't."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.calls, self.fails = bench, [], ""

    def work(self, stage: str, run: Run, watch: Watcher) -> Manifest:
        config = run.config
        self.calls.append((stage, config.objective.name, config.seed))
        folder = run.folder(stage)
        with watched(watch, stage, folder.fingerprint, config, "at once"):
            if stage == "distill" and config.objective.name == self.fails:
                raise TrainingError("the loss is not a number", "lower the rate")
            if stage == "evaluate":
                (cell,) = [cell for cell in self.bench.cells if cell.config == config]
                manifest = make.finish(cell)
            else:
                folder.path.mkdir(parents=True, exist_ok=True)
                manifest = folder.commit()
            watch.end(manifest)
            return manifest


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {"store": str(tmp_path / "store"), "tracking.enabled": False}


@pytest.fixture
def quick(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> QuickStages:
    config = load_config("quality-smoke", {"store": settings["store"], "tracking": {"enabled": False}})
    quick = QuickStages(Bench(config))
    monkeypatch.setattr("flows.common.STAGES", {stage: partial(quick.work, stage) for stage in ORDER})
    return quick


def test_cells_run_as_tasks_and_the_report_is_shown(quick: QuickStages, settings: dict[str, Any]) -> None:
    state = benchmark(recipe="quality-smoke", overrides=settings, return_state=True)
    assert state.is_completed(), state.message
    own = [(name, seed) for stage, name, seed in quick.calls if stage == "evaluate"]
    assert own == [(name, seed) for seed in (1, 2) for name in ("sra", "sft", "uld")]
    assert [stage for stage, _, _ in quick.calls].count("prepare") == 1
    assert state.result().counts == {"cells": 6, "done": 6, "missing": 0}
    shown = _artifacts(state)
    assert shown["benchmark-progress"].data == 100.0
    assert "| sra - uld* |" in shown["benchmark-benchmark"].data
    assert {"benchmark-benchmark-scores", "benchmark-benchmark-differences"} <= set(shown)
    results = {
        f"{name}-seed-{seed}-{stage}-result" for _, name, seed in quick.calls for stage in ("distill", "evaluate")
    }
    assert results <= set(shown), "each cell's artifacts have keys of their own"
    assert "| sra - uld* |" in shown["summary"].data
    assert "bench:" in shown["summary"].data


def test_a_subset_runs_and_says_what_is_missing(quick: QuickStages, settings: dict[str, Any]) -> None:
    state = benchmark(recipe="quality-smoke", overrides=settings, cells=["sft"], seeds=[2], return_state=True)
    assert [call[1:] for call in quick.calls] == [("sft", 2)] * 3
    assert state.result().counts["missing"] == 5
    assert "5 of 6 cells are missing" in _artifacts(state)["benchmark-benchmark"].data


def test_a_failed_cell_fails_the_run_after_the_others_are_done(quick: QuickStages, settings: dict[str, Any]) -> None:
    quick.fails = "sft"
    asked = {"recipe": "quality-smoke", "overrides": settings, "seeds": [1], "return_state": True}
    state = benchmark(**asked)
    assert state.is_failed()
    assert "1 cell failed (sft, seed 1)" in (state.message or "")
    assert [call[1:] for call in quick.calls if call[0] == "evaluate"] == [("sra", 1), ("uld", 1)]
    quick.fails = ""
    quick.calls.clear()
    assert benchmark(**asked).is_completed()
    assert {call[1] for call in quick.calls if call[0] == "evaluate"} == {"sft"}
