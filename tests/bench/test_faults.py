"""A grid that is killed and made by several processes is the grid that one process makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sra_core.bench.grid import Bench
from sra_core.config.load import load_config
from sra_core.shards import read_manifest

SETTINGS = ("tracking.enabled=false", "distill.max_steps=3", "evaluate.generate=0")
COMMAND = [sys.executable, "-m", "sra_core.cli", "bench", "quality", "quality-smoke"]


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts processes on one store, each with a log of its own; none outlives the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(name: str, *options: str) -> subprocess.Popen[bytes]:
        started.append(_start(tmp_path / "store", tmp_path / f"{name}.log", *options))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.wait()


def _start(store: Path, log: Path, *options: str) -> subprocess.Popen[bytes]:
    settings = [part for setting in (*SETTINGS, f"store={store}") for part in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        return subprocess.Popen(
            [*COMMAND, *settings, *options], stdout=output, stderr=subprocess.STDOUT, env=environment
        )


def wait(for_what: Callable[[], bool], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not for_what():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)


@pytest.mark.integration
@pytest.mark.timeout(1500)
def test_two_processes_share_a_grid_and_a_killed_one_leaves_no_gap(tmp_path: Path, start: Start) -> None:
    store = tmp_path / "store"
    seeds = ("--cells", "sra,sft")
    first, second = (start(name, *seeds) for name in ("first", "second"))
    students = store / "students"
    wait(lambda: len(list(students.glob("*/work/job.json"))) == 2)  # each holds a cell
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.wait(timeout=500) == 0, (tmp_path / "second.log").read_text()
    again = start("again", *seeds)
    assert again.wait(timeout=500) == 0, (tmp_path / "again.log").read_text()
    config = load_config(
        "quality-smoke", {"store": str(store), "distill": {"max_steps": 3}, "evaluate": {"generate": 0}}
    )
    bench = Bench(config, ["sra", "sft"])
    assert [bench.state(cell) for cell in bench.selected] == ["done"] * 4
    assert len(list(students.glob("*/manifest.json"))) == 4
    assert len(list((store / "teacher").glob("*/manifest.json"))) == 1
    assert len(list((store / "prepared").glob("*/manifest.json"))) == 1
    (report,) = (store / "benchmarks").glob("*/manifest.json")
    assert read_manifest(report.parent).counts == {"cells": 6, "done": 4, "missing": 2}
    assert (
        "2 of 6 cells are missing: uld, seed 1 (waiting); uld, seed 2 (waiting)."
        in (tmp_path / "again.log").read_text()
    )
