"""What a grid shows, against plain computations; and that what is missing is said."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from sra_core.bench.grid import Bench, Cell
from sra_core.bench.lines import listing
from sra_core.bench.report import figure, markdown, terminal
from sra_core.bench.run import bench_report, run_cells
from sra_core.bench.scores import compare
from sra_core.compare import interval, paired
from sra_core.config import RunConfig
from sra_core.errors import EvaluationError, TrainingError
from sra_core.runs import Run
from sra_core.shards import Manifest, read_manifest
from sra_core.watch import Watcher
from tests.bench.make import EXAMPLES, bits, finish, grid, sizes


class Told(Watcher):
    def __init__(self) -> None:
        self.lines: list[tuple[int, int, str]] = []
        self.messages: list[str] = []
        self.tables: dict[str, list[dict]] = {}
        self.reports: dict[str, str] = {}

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        self.lines.append((done, total, note))

    def message(self, text: str) -> None:
        self.messages.append(text)

    def table(self, name: str, rows: list[dict]) -> None:
        self.tables[name] = rows

    def markdown(self, name: str, text: str) -> None:
        self.reports[name] = text


@pytest.fixture
def done(tmp_path: Path) -> Bench:
    bench = grid(tmp_path)
    for cell in bench.cells:
        finish(cell)
    return bench


def row(rows: list[dict], **wanted: object) -> dict:
    (found,) = [each for each in rows if all(each[name] == value for name, value in wanted.items())]
    return found


def table(variant: str, seeds: tuple[int, ...] = (1, 2)) -> np.ndarray:
    return np.stack([bits(variant, seed) for seed in seeds], 1)


def test_scores_are_means_over_examples_and_seeds_with_their_interval(done: Bench) -> None:
    report = bench_report(done, Watcher())
    for variant in ("sra", "sft", "uld"):
        found, plain = row(report.scores, variant=variant), interval(table(variant), sizes())
        mean = sum(bits(variant, seed).sum() for seed in (1, 2)) / 2 / sizes().sum()
        assert found["score"] == pytest.approx(mean)
        assert (found["low"], found["high"]) == pytest.approx((plain.low, plain.high))
        assert (found["examples"], found["seeds"]) == (12, 2)
        assert found["best_step"] == pytest.approx(4.5)
        assert found["seconds_per_step"] == pytest.approx(0.15)
        assert found["peak_memory_bytes"] == 2**31


def test_every_variant_is_paired_with_the_reference_and_sra_with_the_best_baseline(done: Bench) -> None:
    report = bench_report(done, Watcher())
    assert {(each["first"], each["second"]) for each in report.differences} == {
        ("sra", "sft"),
        ("uld", "sft"),
        ("sra", "uld"),
    }
    found, plain = row(report.differences, first="sra", second="uld"), paired(table("sra"), table("uld"), sizes())
    assert found["difference"] == pytest.approx(-2.0 * 12 / sizes().sum())
    assert found["detectable"] == pytest.approx(plain.detectable)
    assert (found["better"], found["ties"], found["worse"]) == (12, 0, 0)
    assert found["best_baseline"]
    assert not row(report.differences, first="sra", second="sft")["best_baseline"]
    assert found["p"] >= plain.p_value


def score_more(cell: Cell) -> None:
    """Agreement with the teacher, and a task of lm-eval."""
    folder = Run(cell.config).folder("evaluate").path
    same = np.arange(EXAMPLES) % 3 if cell.variant == "sra" else np.zeros(EXAMPLES)
    agreement = {
        "dataset": ["set-0"] * EXAMPLES,
        "id": [f"x{number}" for number in range(EXAMPLES)],
        "kl": same * 0.1,
        "same": same,
        "spans": [4] * EXAMPLES,
    }
    pq.write_table(pa.table(agreement), folder / "agreement-test-student.parquet")
    right = [float(cell.variant == "sra" and number % 2 == 0) for number in range(10)]
    named = {"task": ["arc"] * 10, "id": [str(number) for number in range(10)], "metric": ["acc"] * 10}
    pq.write_table(pa.table({**named, "value": right, "higher": [True] * 10}), folder / "tasks-student.parquet")


def test_what_every_cell_was_scored_by_is_compared(done: Bench) -> None:
    for cell in (done.cells[0], done.cells[-1]):
        score_more(cell)
    partly = bench_report(done, Watcher())
    assert {each["metric"] for each in partly.scores} == {"bits_per_byte"}
    assert "arc acc was measured in 2 of 6 cells that are done, and is not compared." in partly.notes
    for cell in done.cells[1:-1]:
        score_more(cell)
    report = bench_report(done, Watcher())
    assert [metric.name for metric in report.metrics] == ["bits_per_byte", "top1", "lm_eval/arc/acc"]
    found = row(report.differences, first="sra", second="sft", metric="top1")
    assert found["difference"] == pytest.approx(25.0)  # of 4 spans 0, 1 or 2
    assert (found["better"], found["ties"], found["worse"]) == (8, 4, 0)
    assert row(report.scores, variant="sra", metric="lm_eval/arc/acc")["score"] == pytest.approx(0.5)
    text = markdown(report)
    assert "| variant | bits/byte ↓ | agrees with teacher ↑ | best step | s/step | GiB | seeds |" in text
    assert "| variant | arc acc ↑ | seeds |" in text
    assert "| sra | 0.500 [0.200, 0.800] | 2 |" in text
    assert "top-1 agreement with teacher (%), on the same examples:" in text
    shown = Console(width=80, file=io.StringIO(), color_system=None)
    shown.print(*terminal(report))
    assert max(map(len, shown.file.getvalue().splitlines())) <= 80
    assert "…" not in shown.file.getvalue()


def test_no_pair_is_tested_twice_where_sra_is_the_reference(tmp_path: Path) -> None:
    bench = grid(tmp_path, reference="sra")
    for cell in bench.cells:
        finish(cell)
    report = bench_report(bench, Watcher())
    assert [(each["first"], each["second"]) for each in report.differences] == [("sft", "sra"), ("uld", "sra")]


def test_results_lie_in_the_store_whole(done: Bench) -> None:
    report = bench_report(done, Watcher())
    folder = Path(report.manifest.folder)
    manifest = read_manifest(folder)
    assert folder.parent.name == "benchmarks"
    assert manifest.counts == {"cells": 6, "done": 6, "missing": 0}
    assert manifest.metrics["benchmark/sra_minus_sft/bits_per_byte"] == pytest.approx(-4.0 * 12 / sizes().sum())
    assert {entry.name for entry in manifest.files} == {
        "cells.parquet",
        "scores.parquet",
        "differences.parquet",
        "results.json",
        "summary.md",
        "learning_curves.png",
    }
    assert pq.read_table(folder / "scores.parquet").to_pylist() == report.scores
    assert json.loads((folder / "results.json").read_text())["cells"] == report.cells
    assert (folder / "learning_curves.png").read_bytes()[:4] == b"\x89PNG"


def test_results_are_json_for_every_reader(done: Bench) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    for cell in done.cells:
        task = {"task": ["one"], "id": ["0"], "metric": ["acc"], "value": [1.0], "higher": [True]}
        pq.write_table(pa.table(task), Run(cell.config).folder("evaluate").path / "tasks-student.parquet")
    report = bench_report(done, Watcher())
    text = (Path(report.manifest.folder) / "results.json").read_text()
    found = json.loads(text, parse_constant=refuse)["differences"]
    # A single example shows no spread: no difference is too large to be missed.
    assert [each["detectable"] for each in found if each["metric"] == "lm_eval/one/acc"] == [None, None]


def test_what_is_missing_is_said_and_pairs_take_the_seeds_that_both_have(tmp_path: Path) -> None:
    bench = grid(tmp_path)
    for cell in bench.cells[:4]:  # both seeds of sra, one of sft and of uld
        finish(cell)
    told = Told()
    report = bench_report(bench, told)
    assert report.missing == [("sft, seed 2", "waiting"), ("uld, seed 2", "waiting")]
    assert "2 of 6 cells are missing: sft, seed 2 (waiting); uld, seed 2 (waiting)." in told.reports["benchmark"]
    assert row(report.scores, variant="sra")["seeds"] == 2
    found = row(report.differences, first="sra", second="sft")
    assert found["seeds"] == 1
    assert found["difference"] == pytest.approx(paired(bits("sra", 1), bits("sft", 1), sizes()).difference.estimate)
    assert any("different numbers of seeds" in note for note in report.notes)
    finish(bench.cells[4])
    finish(bench.cells[5])
    assert bench_report(bench, Watcher()).missing == []


def test_a_cell_whose_student_was_deleted_keeps_its_scores(done: Bench) -> None:
    whole = bench_report(done, Watcher())
    for cell in done.cells[:2]:
        shutil.rmtree(Run(cell.config).folder("distill").path)
    report = bench_report(done, Watcher())
    assert report.missing == []
    assert report.differences == whole.differences


def test_a_grid_without_any_finished_cell_says_so(tmp_path: Path) -> None:
    report = bench_report(grid(tmp_path), Watcher())
    assert report.scores == report.differences == []
    assert "6 of 6 cells are missing" in markdown(report)
    assert "| sra | missing |" in markdown(report)


def test_a_reference_that_is_not_done_is_named(tmp_path: Path) -> None:
    bench = grid(tmp_path)
    finish(bench.cells[0])
    assert any("Nothing of the reference sft is done" in note for note in bench_report(bench, Watcher()).notes)


def test_cells_are_compared_on_the_examples_that_all_were_scored_on(tmp_path: Path) -> None:
    bench = grid(tmp_path, seeds=(1,))
    for number, cell in enumerate(bench.cells):
        finish(cell, first_id=number)  # the first two of sra's examples, and the last two of uld's, are its own
    score_of_all = Run(bench.cells[0].config).folder("evaluate").path
    shutil.copy(score_of_all / "likelihood-test-student.parquet", score_of_all / "likelihood-test-teacher.parquet")
    with pytest.raises(EvaluationError, match="sft, seed 1 was scored on other texts than the first cell"):
        bench_report(bench, Watcher())

    for number, cell in enumerate(bench.cells):  # the same name is the same text now
        path = Run(cell.config).folder("evaluate").path / "likelihood-test-student.parquet"
        table = pq.read_table(path)
        sized = pa.array(np.arange(8, 8 + EXAMPLES) + number)
        pq.write_table(table.set_column(table.schema.get_field_index("bytes"), "bytes", sized), path)
    report = bench_report(bench, Watcher())
    plain = paired(bits("sra", 1)[2:], bits("sft", 1)[1:-1], sizes()[2:])
    assert row(report.differences, first="sra", second="sft")["difference"] == pytest.approx(plain.difference.estimate)
    shown = row(report.scores, variant="sra")
    assert shown["examples"] == EXAMPLES - 2
    assert shown["score"] == pytest.approx(bits("sra", 1)[2:].sum() / sizes()[2:].sum())
    assert row(report.scores, variant="(teacher)")["score"] == pytest.approx(shown["score"])
    assert "4 examples that only some cells were scored on (bits per byte) are left out" in markdown(report)


def test_cells_without_a_common_example_are_refused(tmp_path: Path) -> None:
    bench = grid(tmp_path)
    finish(bench.cells[0])
    finish(bench.cells[1], first_id=EXAMPLES)
    with pytest.raises(EvaluationError, match="no test example in common"):
        bench_report(bench, Watcher())


def test_data_sets_weigh_alike_whatever_their_size(tmp_path: Path) -> None:
    bench = grid(tmp_path)
    for cell in bench.cells:
        finish(cell, datasets=2)
    report = bench_report(bench, Watcher())
    first, second = bits("sra", 1), bits("sra", 2)
    ratios = [
        (first[part].sum() + second[part].sum()) / 2 / sizes()[part].sum()
        for part in (slice(0, None, 2), slice(1, None, 2))
    ]
    assert row(report.scores, variant="sra")["score"] == pytest.approx(np.mean(ratios))
    assert row(report.cells, variant="sra", seed=1)["bits_per_byte"] == pytest.approx(
        np.mean([first[part].sum() / sizes()[part].sum() for part in (slice(0, None, 2), slice(1, None, 2))])
    )


def test_curves_are_a_line_for_each_variant_and_a_band_over_its_seeds(done: Bench) -> None:
    (axes,) = figure(bench_report(done, Watcher())).axes
    assert [line.get_label() for line in axes.lines] == ["sra", "sft", "uld"]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 2.015], [3, 1.715], [6, 1.415]])
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(1.41)
    assert band[:, 1].max() == pytest.approx(2.02)


def test_the_terminal_and_the_markdown_show_the_same_figures(done: Bench) -> None:
    report = bench_report(done, Watcher())
    console = Console(width=120, record=True, file=io.StringIO())
    for part in terminal(report):
        console.print(part)
    shown, text = console.export_text(), markdown(report)
    gap = row(report.differences, first="sra", second="sft")
    for figure_ in (f"{gap['difference']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]", "sra - uld*", "12/0/0"):
        assert figure_ in shown
        assert figure_ in text


def run_stage(stage: str, run: Run, parent: object, name: str) -> Manifest:
    """Stages that finish at once."""
    folder = run.folder(stage)
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder.manifest() or folder.commit(metrics={"evaluate/student/bits_per_byte": 1.5})


def predicted(config: RunConfig) -> dict[str, float]:
    return {"cache": 60.0, "distill": 300.0}


def test_shared_stages_run_once_and_a_finished_grid_runs_nothing(tmp_path: Path) -> None:
    called: list[str] = []

    def counted(stage: str, run: Run, parent: object, name: str) -> Manifest:
        called.append(name)
        return run_stage(stage, run, parent, name)

    told = Told()
    run_cells(grid(tmp_path), counted, None, told, predicted)
    assert called[:4] == ["prepare", "cache", "distill sra, seed 1", "evaluate sra, seed 1"]
    assert len(called) == 2 + 2 * 6
    assert [(done, total) for done, total, _ in told.lines] == [(number, 6) for number in range(7)]
    assert re.match(r"sra, seed 1: 1\.5000 bits per byte, \d+ s, about", told.lines[1][2])
    assert "left" not in told.lines[-1][2]
    assert told.messages[0].startswith("6 of 6 cells to run: about 31 min 0 s by a plan of sra, seed 1 (")
    called.clear()
    run_cells(grid(tmp_path), counted, None, Watcher(), predicted)
    assert called == ["prepare", "cache"]


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ({"talks/student": 1.5}, "1.5000 bits per byte, "),
        ({"talks/student": 1.0, "songs/student": 2.0, "average/student": 1.5}, "1.5000 bits per byte, "),
        ({"student": 1.5, "talks/student": 1.0, "average/student": 1.25}, "1.5000 bits per byte, "),
        ({}, ""),
    ],
)
def test_cells_may_be_scored_on_other_sets_than_the_corpuss_own(
    tmp_path: Path, metrics: dict[str, float], shown: str
) -> None:
    def scored(stage: str, run: Run, parent: object, name: str) -> Manifest:
        folder = run.folder(stage)
        folder.path.mkdir(parents=True, exist_ok=True)
        named = {f"evaluate/{model}/bits_per_byte": value for model, value in metrics.items()}
        return folder.manifest() or folder.commit(metrics=named)

    bench, told = grid(tmp_path), Told()
    run_cells(bench, scored, None, told, predicted)
    assert re.fullmatch(rf"{bench.cells[-1].name}: {shown}\d+ s", told.lines[-1][2])
    assert list(listing(bench).columns[-1].cells) == [shown.partition(" ")[0]] * 6


def test_a_cell_that_fails_without_a_word_does_not_end_the_grid(tmp_path: Path) -> None:
    def failing(stage: str, run: Run, parent: object, name: str) -> Manifest:
        if name == "distill sft, seed 1":
            raise MemoryError
        return run_stage(stage, run, parent, name)

    bench, told = grid(tmp_path), Told()
    run_cells(bench, failing, None, told, predicted)
    assert any(note.startswith("sft, seed 1 failed: MemoryError") for _, _, note in told.lines)
    assert ("sft, seed 1", "failed: MemoryError") in compare(bench, []).missing


def test_a_cell_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    def failing(stage: str, run: Run, parent: object, name: str) -> Manifest:
        if name == "distill sft, seed 1":
            raise TrainingError("the loss is not a number", "lower the rate")
        return run_stage(stage, run, parent, name)

    bench, told = grid(tmp_path), Told()
    run_cells(bench, failing, None, told, predicted)
    assert [cell.name for cell in bench.failed] == ["sft, seed 1"]
    assert any(note.startswith("sft, seed 1 failed: the loss is not a number") for _, _, note in told.lines)
    assert [cell.name for cell in bench.cells if bench.scores(cell) is None] == ["sft, seed 1"]
    with pytest.raises(TrainingError, match=r"1 cell failed \(sft, seed 1\) with: the loss") as raised:
        bench.require_all_ran()
    assert raised.value.remedy == "lower the rate"


def test_several_cells_that_failed_are_all_named(tmp_path: Path) -> None:
    bench = grid(tmp_path)
    bench.failed = {cell: OSError("no space left") for cell in bench.cells[:2]}
    named = "; ".join(cell.name for cell in bench.cells[:2])
    with pytest.raises(TrainingError, match=rf"^2 cells failed \({named}\), the first with: OSError: no space left"):
        bench.require_all_ran()


def test_a_shared_stage_that_fails_stops_everything(tmp_path: Path) -> None:
    def failing(stage: str, run: Run, parent: object, name: str) -> Manifest:
        raise TrainingError("no corpus", "bring one")

    with pytest.raises(TrainingError):
        run_cells(grid(tmp_path), failing, None, Watcher(), predicted)
