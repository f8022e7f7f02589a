"""What a grid is said to take before it starts."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

from sra_core.bench.estimate import forecast
from sra_core.config import RunConfig
from tests.bench.make import finish, grid

NOON = datetime(2026, 5, 1, 12, 0)


def unasked(config: RunConfig) -> dict[str, float]:
    raise AssertionError("cells that are done say it better")


def test_a_grid_without_a_cell_goes_by_a_plan_of_its_first_and_makes_what_cells_share_once(tmp_path: Path) -> None:
    asked = []

    def predict(config: RunConfig) -> dict[str, float]:
        asked.append((config.objective.name, config.seed))
        return {"cache": 600.0, "distill": 1000.0, "evaluate": 100.0}

    told = forecast(grid(tmp_path), predict, NOON)
    assert asked == [("sra", 1)]
    assert told.startswith("6 of 6 cells to run: about 2 h 0 min by a plan of sra, seed 1")  # 600 + 6 x 1100
    assert told.endswith("done at 14:00 on 01 May")


def test_cells_that_are_done_say_what_the_others_take_each_variant_by_its_own(tmp_path: Path) -> None:
    bench = grid(tmp_path)
    for cell in bench.cells:
        if (cell.variant, cell.seed) in (("sra", 1), ("sft", 2)):
            finish(cell)  # trains for 100 s a seed, and is scored at once
    told = forecast(bench, unasked, NOON)
    # sra 100, sft 200, and the two of uld the median of both
    assert told.startswith("4 of 6 cells to run: about 10 min ")
    assert told.endswith("by the 2 cells that are done, done at 12:10 on 01 May")


def test_a_copied_store_goes_on_with_the_cells_that_it_holds(tmp_path: Path) -> None:
    here = grid(tmp_path / "here")
    for cell in here.cells[:4]:
        finish(cell)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = grid(tmp_path / "there")
    assert [there.state(cell) for cell in there.cells] == ["done"] * 4 + ["waiting"] * 2
    for cell in there.take():
        finish(cell)
    assert forecast(there, unasked, NOON) == "all 6 cells are done"
