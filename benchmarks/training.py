"""The engine's tokens a second against a bare loop in plain torch: same student, objective, batches and device.

Also the shares of time that training waits for data and tells its metrics at every step, and how one and two
processes compare. Runs alternate, so that what else the machine does hits both sides; the ratio is the median over
pairs. Prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.stamp import write_json
from sra_core import stages
from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.models import initial_student
from sra_core.shards import PreparedSet, TeacherSet, read_manifest
from sra_core.training import DistillData, Job, Order, launch, learning_rate, quiet_libraries
from sra_core.training.build import build_module
from sra_core.training.job import Lines
from sra_core.training.module import parameter_groups
from sra_core.training.runtime import make_optimizer
from sra_core.watch.mlflow import MlflowWatcher


def make_job(folder: Path, steps: int, shape: str, batch: int) -> Job:
    """A job on recipe `smoke`'s data with a larger student; prepared and captured."""
    never = 10**6
    distill = {
        "max_steps": steps,
        "epochs": never,
        "batch_size": batch,
        "log_every": 1,
        "validate_every": never,
        "checkpoint_every": never,
        "keep_best": False,
    }
    student = {"source": f"random:{shape}&vocabulary=300&seed=2&positions=512"}
    config: RunConfig = load_config(
        "smoke",
        {
            "store": str(folder / "store"),
            "student": student,
            "corpus": {"max_train": 96, "validation_share": 0.0},
            "objective": {"layers": [[2, 1], [3, -1]]},
            "distill": distill,
        },
    )
    prepared, cache = stages.prepare(config), stages.cache(config)
    model, _ = initial_student(config, prepared)
    model.save_pretrained(folder / "initial")
    return Job(
        config=config,
        prepared=Path(prepared.folder),
        teacher=Path(cache.folder),
        initial=folder / "initial",
        folder=folder / "work",
    )


def bare_loop(job: Job) -> float:
    """Tokens a second of forward, backward, clipping and AdamW on batches that were made before."""
    training = job.training
    module = build_module(job)
    prepared = PreparedSet(read_manifest(job.prepared), "train")
    teacher = TeacherSet(read_manifest(job.teacher), "train") if job.teacher else None
    data = DistillData(prepared, teacher)
    order = Order(len(prepared), job.config.seed, job.micro, 1, 1)
    total = int(training.max_steps or 0)
    batches = [data.batch(order.step(step), float(data.supervised(order.step(step)))) for step in range(total)]
    groups = parameter_groups(module, training.learning_rate, job.projector_rate, training.weight_decay)
    optimizer = make_optimizer(groups)
    rates = []
    for step, batch in enumerate(batches):
        started = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, group["peak"], step, total)
        module(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], training.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rates.append(len(batch.input_ids) / (time.monotonic() - started))
    return statistics.median(rates[2:])


def telling(job: Job, repeats: int = 300) -> float:
    """Seconds for which a training process stops to tell one step's metrics: all that MLflow costs it.

    The lines that it appends are read, and sent to MLflow, by the process that started it.
    """
    values = json.loads(job.history.read_text().splitlines()[-1])
    events, history = Lines(job.folder / "again.jsonl"), Lines(job.folder / "again-history.jsonl")
    seconds = []
    for step in range(repeats):
        started = time.perf_counter()
        history.append(**{**values, "step": step})
        events.append(kind="progress", done=step, total=repeats, note="loss 1.234, held out 1.234 bits a byte")
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def engine(job: Job, folder: Path, processes: int) -> Mapping[str, float]:
    """Median tokens a second, share of waiting and of logging, and seconds a step, all processes together.

    ``relay_share`` is the CPU time of this process, which writes every step to MLflow (SQLite), over the time of the
    training: it runs beside the training, not in it.
    """
    config = job.config.model_copy(deep=True)
    config.distill.processes = processes
    folder.mkdir()
    job = job.model_copy(update={"config": config, "folder": folder})
    watch = MlflowWatcher(config)
    watch.begin("distill", folder.name, config, "benchmark", reused=False)
    busy, started = time.process_time(), time.monotonic()
    launch(job, watch)
    relay = (time.process_time() - busy) / (time.monotonic() - started)
    watch.failed(InterruptedError("only measured"))
    lines = [json.loads(line) for line in job.history.read_text().splitlines()][2:]
    names = ("tokens_per_second", "data_wait_share", "seconds_per_step")
    figures = {name: statistics.median(line[f"train/{name}"] for line in lines) for name in names}
    return {**figures, "logging_share": telling(job) / figures["seconds_per_step"], "relay_share": relay}


def measure(repeats: int, steps: int, shape: str, batch: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = make_job(folder, steps, shape, batch)
        pairs, two = [], []
        for number in range(repeats):
            bare = bare_loop(job)
            pairs.append((bare, engine(job, folder / f"one-{number}", 1)))
            two.append(engine(job, folder / f"two-{number}", 2))
    median = statistics.median
    return {
        "bare_tokens_per_second": median(bare for bare, _ in pairs),
        "engine_tokens_per_second": median(one["tokens_per_second"] for _, one in pairs),
        "engine_over_bare": median(one["tokens_per_second"] / bare for bare, one in pairs),
        "pairs": [round(one["tokens_per_second"] / bare, 3) for bare, one in pairs],
        "data_wait_share": median(one["data_wait_share"] for _, one in pairs),
        "logging_share": median(one["logging_share"] for _, one in pairs),
        "relay_share": median(one["relay_share"] for _, one in pairs),
        "two_processes_tokens_per_second": median(each["tokens_per_second"] for each in two),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shape", default="llama?layers=6&width=256&heads=4", help="student: architecture and sizes")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    figures = measure(options.repeats, options.steps, options.shape, options.batch)
    figures |= {"threads": torch.get_num_threads(), "student": options.shape, "batch": options.batch}
    for name, value in figures.items():
        print(f"{name:34} {value:.4g}" if isinstance(value, float) else f"{name:34} {value}")
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
