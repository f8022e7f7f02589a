"""What training tells while it goes on: the last measurement, with the step that it was made after."""

from __future__ import annotations

from pathlib import Path

from sra_core.training import read_history
from sra_core.training.job import Job, read_lines

from .make import make_config, make_job
from .warm import finish


def told(job: Job) -> list[tuple[int, str]]:
    events, _ = read_lines(job.events)
    return [(event["done"], event["note"]) for event in events if event["kind"] == "progress"]


def measured(job: Job) -> dict[int, float]:
    name = "validation/bits_per_byte"
    return {row["step"]: row[name] for row in read_history(job.history) if name in row}


def test_the_last_line_shows_the_measurement_after_the_last_step(tmp_path: Path) -> None:
    job = make_job(tmp_path, make_config(max_steps=5, validate_every=3, learning_rate=1.0, min_learning_rate=1.0))
    finish(job)
    notes, values = told(job), measured(job)
    assert list(values) == [0, 3, 5]
    assert values[0] < min(values[3], values[5]), "such steps only do harm"
    assert notes[0] == (0, f"held out {values[0]:.4g} bits per byte")
    assert [step for step, _ in notes] == [0, 1, 2, 3, 4, 5]
    best = f"best {values[0]:.4g} before training"
    last = read_history(job.history)
    (ce,) = [row["train/ce"] for row in last if row["step"] == 5 and "train/ce" in row]
    assert notes[5][1].startswith(f"cross-entropy {ce:.4g} nats per token, held out ")
    assert notes[2][1].endswith(f", held out {values[0]:.4g} bits per byte before training")
    assert notes[4][1].endswith(f", held out {values[3]:.4g} bits per byte at step 3, {best}")
    assert notes[5][1].endswith(f", held out {values[5]:.4g} bits per byte, {best}")


def test_a_run_that_loses_patience_tells_the_step_that_it_ends_at(tmp_path: Path) -> None:
    job = make_job(tmp_path, make_config(max_steps=6, validate_every=1, log_every=5, patience=2, learning_rate=1.0))
    finish(job)
    last, values = max(measured(job)), measured(job)
    assert last < 6
    assert told(job)[-1][0] == last
    assert f"held out {values[last]:.4g} bits per byte, best " in told(job)[-1][1]
