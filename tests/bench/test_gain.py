"""`benchmarks/gain.py`: what it draws are the grid's own differences."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import gain
from sra_core.bench.run import bench_report
from sra_core.runs import Run
from sra_core.watch import Watcher
from tests.bench.make import finish, grid


def test_gains_are_the_differences_to_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = grid(tmp_path)
    for cell in bench.cells:
        finish(cell)
    prepared = Run(bench.cells[0].config).folder("prepare")
    prepared.path.mkdir(parents=True)
    prepared.commit()
    monkeypatch.setattr(gain, "load_config", lambda recipe, settings: bench.config)
    monkeypatch.setattr(gain, "audit_of", lambda manifest: SimpleNamespace(overall=SimpleNamespace(one_to_one=0.5)))
    rows: list[dict[str, Any]] = gain.points("any", None)
    wanted = [
        row
        for row in bench_report(bench, Watcher()).differences
        if (row["metric"], row["second"]) == ("bits_per_byte", "sft")
    ]
    assert [(row["first"], row["difference"], row["share"]) for row in rows] == [
        (row["first"], row["difference"], 0.5) for row in wanted
    ]
    gain.draw(rows, tmp_path / "gain.svg")
    assert (tmp_path / "gain.svg").stat().st_size > 1000


def test_a_grid_that_was_never_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gain, "load_config", lambda recipe, settings: grid(tmp_path).config)
    with pytest.raises(SystemExit, match=r"nothing is prepared in .* run `sra bench quality mine` first"):
        gain.points("mine", None)
