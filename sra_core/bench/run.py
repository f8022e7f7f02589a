"""Running a grid: shared stages first, then cell by cell, then the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from sra_core.bench.estimate import Predict, forecast, left
from sra_core.bench.grid import OWN, Bench, Cell
from sra_core.bench.report import Report, figure, markdown
from sra_core.bench.scores import collect, compare, held_out_bits
from sra_core.errors import first_line
from sra_core.runs import Run
from sra_core.shards import Manifest, StageFolder, atomic_write
from sra_core.watch import Watcher, duration, finite, watched
from sra_core.watch.mlflow import PipelineRun, cell_run

__all__ = ["RunStage", "bench_report", "run_cells"]

RunStage = Callable[[str, Run, PipelineRun | None, str], Manifest]
"""Runs a stage: its name, the run, the MLflow run that it belongs to, and what to call it."""
SUMMARY = "summary.md"
CURVES = "learning_curves.png"


def run_cells(bench: Bench, run_stage: RunStage, parent: PipelineRun | None, watch: Watcher, predict: Predict) -> None:
    """Run every selected cell that is not done and that no other process holds.

    A cell that fails is kept in ``bench.failed`` and the others go on; a stage that cells share raises.

    Args:
        bench: The grid.
        run_stage: Runs one stage.
        parent: The benchmark's run in MLflow.
        watch: Told of every cell that ends.
        predict: Predicts the seconds of a cell's stages, so that what the grid will take is told before it starts.
    """
    bench.check()
    watch.message(forecast(bench, predict, datetime.now()))
    for stage, run in bench.shared():
        run_stage(stage, run, parent, stage)
    total, started = len(bench.selected), time.monotonic()
    before = _done(bench)
    watch.progress(before, total, "cells", "done before" if before else "to run")
    for cell in bench.take():
        line = _run_cell(bench, cell, run_stage, parent)
        done = _done(bench)
        line += left(done - before, total - done - len(bench.failed), time.monotonic() - started)
        watch.progress(done, total, "cells", line)


def _run_cell(bench: Bench, cell: Cell, run_stage: RunStage, parent: PipelineRun | None) -> str:
    """Train and evaluate one cell; what came out, in a line."""
    started = time.monotonic()
    try:
        with cell_run(parent, cell.config, cell.name) as tracked:
            for stage in OWN:
                made = run_stage(stage, cell.run, tracked, f"{stage} {cell.name}")
            _report_curve(bench, cell, tracked)
    except Exception as error:  # what cancels is none, and ends the grid
        bench.failed[cell] = error
        return f"{cell.name} failed: {first_line(error)}"
    bits = held_out_bits(made)
    scored = f"{bits} bits per byte, " if bits else ""
    return f"{cell.name}: {scored}{duration(time.monotonic() - started)}"


def _done(bench: Bench) -> int:
    return sum(bench.scores(cell) is not None for cell in bench.selected)


def _report_curve(bench: Bench, cell: Cell, run: PipelineRun | None) -> None:
    """The learning curve on the cell's own run, so that cells can be laid over each other in MLflow."""
    if run is not None:
        (found,) = collect(bench, [cell])
        for step, value in found.curve:
            run.metrics({"validation/bits_per_byte": value}, step)


def bench_report(bench: Bench, watch: Watcher, parent: PipelineRun | None = None) -> Report:
    """Compare what is done so far, and write it to the store's folder ``benchmarks/<fingerprint>``.

    Args:
        bench: The grid; its whole grid counts, whatever was selected.
        watch: Gets tables, figure and Markdown.
        parent: The benchmark's run in MLflow; gets the scores.

    Raises:
        EvaluationError: Cells that were scored on other examples.
    """
    report = compare(bench, collect(bench, bench.cells))
    folder = bench.folder()
    plan = f"compare {len(report.done)} of {len(bench.cells)} cells"
    with folder.guard(), watched(watch, "benchmark", folder.fingerprint, bench.config, plan):
        # The grid's name does not say which cells are done: each report takes the last one's place.
        folder.reset()
        report.manifest = manifest = _write(report, folder)
        _show(report, manifest, watch)
        if parent is not None:
            # Steps count the cells that are done, so that MLflow shows how the scores settle.
            parent.metrics(manifest.metrics, len(report.done))
        watch.end(manifest)
    return report


def _write(report: Report, folder: StageFolder) -> Manifest:
    """All forms of the report; the manifest, last."""
    tables = {"cells": report.cells, "scores": report.scores, "differences": report.differences}
    for name, rows in tables.items():
        with atomic_write(folder.path / f"{name}.parquet") as file:
            pq.write_table(pa.Table.from_pylist(rows), pa.PythonFile(file, mode="w"))
    # JSON has no infinity, which one example alone can show, and readers but Python's refuse the file for it.
    results = finite({**tables, "notes": report.notes})
    _text(folder, "results.json", json.dumps(results, indent=2))
    _text(folder, SUMMARY, markdown(report))
    with atomic_write(folder.path / CURVES) as file:
        figure(report).savefig(cast(Any, file), format="png", dpi=120)
    names = [*(f"{name}.parquet" for name in tables), "results.json", SUMMARY, CURVES]
    counts = {"cells": len(report.done) + len(report.missing), "done": len(report.done), "missing": len(report.missing)}
    return folder.commit(files=[folder.entry(name) for name in names], counts=counts, metrics=report.tracked())


def _text(folder: StageFolder, name: str, text: str) -> None:
    with atomic_write(folder.path / name) as file:
        file.write(text.encode())


def _show(report: Report, manifest: Manifest, watch: Watcher) -> None:
    watch.metrics(manifest.metrics, len(report.done))
    watch.figure("learning_curves", partial(figure, report))
    for name, rows in (("scores", report.scores), ("differences", report.differences), ("cells", report.cells)):
        if rows:
            watch.table(f"benchmark/{name}", rows)
    watch.markdown("benchmark", markdown(report))
