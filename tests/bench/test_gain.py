"""`benchmarks/gain.py`: what it draws are the grid's own differences."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import gain
from sra_core.bench.grid import Bench
from sra_core.bench.report import Report
from sra_core.bench.run import bench_report
from sra_core.config import RunConfig
from sra_core.runs import Run
from sra_core.watch import Watcher
from tests.bench.make import config, finish, grid


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A finished grid, half of whose spans are one token to one, whatever recipe is asked for."""
    bench = grid(tmp_path)
    for cell in bench.cells:
        finish(cell)
    prepared = Run(bench.cells[0].config).folder("prepare")
    prepared.path.mkdir(parents=True)
    prepared.commit()

    def load(recipe: str, settings: dict[str, dict[str, str]]) -> RunConfig:
        return config(tmp_path, **settings.get("bench", {}))

    monkeypatch.setattr(gain, "load_config", load)
    monkeypatch.setattr(gain, "audit_of", lambda manifest: SimpleNamespace(overall=SimpleNamespace(one_to_one=0.5)))
    return bench


def test_gains_are_the_differences_to_the_reference(done: Bench, tmp_path: Path) -> None:
    report, share = gain.grid("any", None, "")
    rows = gain.rows_of(report, share, ["bits_per_byte"], ["uld", "sra"])
    wanted = {row["first"]: row for row in bench_report(done, Watcher()).differences if row["second"] == "sft"}
    assert [(row["first"], row["difference"], row["share"]) for row in rows] == [
        (name, wanted[name]["difference"], 0.5) for name in ("uld", "sra")
    ]
    sra = wanted["sra"]
    better, (below, above) = gain._gain(rows[1])
    assert (better, better - below, better + above) == pytest.approx((-sra["difference"], -sra["high"], -sra["low"]))
    assert gain._gain({"higher": True, "difference": 3.0, "low": 1.0, "high": 7.0}) == (3.0, (2.0, 4.0))
    assert gain._gain({"higher": False, "difference": 3.0, "low": 1.0, "high": 7.0}) == (-3.0, (4.0, 2.0))


def test_another_reference_is_compared_with(done: Bench) -> None:
    report, share = gain.grid("any", None, "uld")
    rows = gain.rows_of(report, share, ["bits_per_byte"], [])
    assert {(row["first"], row["second"]) for row in rows} == {("sra", "uld"), ("sft", "uld")}


def test_curves_are_gains_at_the_same_step_of_the_same_seed() -> None:
    curves = {("sra", 1): [(0, 9.0), (5, 2.0), (10, 1.0)], ("sft", 1): [(0, 8.0), (5, 2.5), (10, 1.75)]}
    curves |= {("sra", 2): [(0, 9.0), (5, 3.0)], ("sft", 2): [(0, 8.0), (5, 3.25)], ("sra", 3): [(5, 1.0)]}
    report = Report("any", "sft", ["sra", "sft"], [], [], [], curves=curves)
    (line,) = [line for line in gain.draw_curves(report, []).axes[0].lines if line.get_marker() == "."]
    assert line.get_xydata().tolist() == [[5, 0.375]]  # seed 2 was not at 10, seed 3 has nothing to compare with


def test_figures_are_written(done: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, asked in enumerate((["one"], ["one", "two"], ["one", "--curves"])):
        file = tmp_path / f"{place}.svg"
        monkeypatch.setattr("sys.argv", ["gain", *asked, "--figure", str(file)])
        gain.main()
        assert file.stat().st_size > 1000


def test_a_grid_that_was_never_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gain, "load_config", lambda recipe, settings: grid(tmp_path).config)
    with pytest.raises(SystemExit, match=r"nothing is prepared in .* run `sra bench quality mine` first"):
        gain.grid("mine", None, "")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["one", "--metrics", "bits_per_byte", "top1"], r"no pair to show for top1: .* \['bits_per_byte'\]"),
        (["one", "--variants", "nobody"], "no pair to show for bits_per_byte"),
        (["one", "two", "--metrics", "bits_per_byte", "rougeL", "--figure", "x.svg"], "several grids by one metric"),
        (["one", "two", "--curves", "--figure", "x.svg"], "several grids by one metric"),
        (["one", "--reference", "nobody"], "reference: 'nobody' is not one of the variants"),
    ],
)
def test_what_cannot_be_shown_is_told(
    asked: list[str], told: str, done: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["gain", *asked])
    with pytest.raises(SystemExit, match=told):
        gain.main()
