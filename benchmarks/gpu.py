"""Everything that only a GPU can show, in one command, within eight minutes.

    python -m benchmarks.gpu --out gpu-results [--teacher FILE.gguf] [--parts here correct capture step quality profile]
    python -m benchmarks.gpu --out dry --dry  # the same code with tiny shapes on the CPU

Each part runs in a process of its own under a time limit of its own; one that fails or runs out of time ends alone.
A part writes ``<part>.json`` after every figure, so that what it had is kept, and its output into ``<part>.log``;
``report.md`` is the table of all parts.  Exits with 1 where a part failed or an aim was missed.

- here: card, driver, versions; matmul rate in bfloat16 and copy bandwidth as measured, which later shares refer to.
- correct: tests marked ``gpu``, and tests of training that run on any device, here on the GPU.
- capture: tokens a second of the teacher cache, its share of the plain forward (aim 0.95), model FLOP utilisation (aim
  0.45 at 7B), bytes a span, peak memory.
- step: a training step of SRA against our SFT (aim 1.15 at most), padded plain SFT (0.65) and the paper's way (0.3).
- quality: with ``--teacher``, recipe `quality` with 2,000 texts and 1,500 steps: sra, sft, mined, strict_kl, in turn.
- profile: the ten longest operations of a step and of a capture, the time between kernels, waits of the host.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cache import forwards, made_up_rows
from benchmarks.objective import MODELS, StepBench, parameters, random_model
from benchmarks.stamp import machine

ROOT = Path(__file__).parents[1]
LIMITS = {"here": 30, "correct": 150, "capture": 80, "step": 110, "quality": 240, "profile": 50}
"""Seconds of each part.  ``quality`` gets what the others leave of ``--minutes``."""
TRAINING_TESTS = (
    "tests/training/test_faults.py::test_precisions_and_offload_learn_as_plain_training_does",
    "tests/training/test_faults.py::test_savings_of_memory_change_no_number",
    "tests/training/test_faults.py::test_lack_of_memory_is_reported_as_such",
    "tests/training/test_exactness.py::test_resuming_is_exact_after_one_kill_with_adapters_and_best_weights",
    "tests/training/test_exactness.py::test_compiled_layers_train_the_same",
)
AIMS = {
    "capture of plain forward": (">=", 0.95),
    "capture utilisation 7B": (">=", 0.45),
    "sra / sft": ("<=", 1.15),
    "sra / plain sft": ("<=", 0.65),
    "sra / paper": ("<=", 0.3),
}
WAYS = ("sra", "sft", "sra padded", "plain sft", "paper")


class Part:
    """What one part found, written after every figure."""

    def __init__(self, options: argparse.Namespace, name: str) -> None:
        self.dry, self.device = options.dry, "cpu" if options.dry else "cuda"
        self.teacher, self.seconds = options.teacher, options.seconds
        self.out, self.path = options.out, options.out / f"{name}.json"
        self.began = time.monotonic()
        self.found: dict[str, Any] = {}

    def left(self) -> float:
        """Seconds until this part is stopped."""
        return self.seconds - (time.monotonic() - self.began)

    def record(self, name: str, value: Any) -> None:
        """Keep a figure."""
        self.found[name] = value
        self.path.write_text(json.dumps(self.found, indent=2) + "\n")
        print(name, value, flush=True)

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds_of(self, run: Callable[[], object], repeats: int = 5) -> float:
        """Median seconds of ``run``, after one that warms up."""
        run()
        self.wait()
        taken = []
        for _ in range(1 if self.dry else repeats):
            began = time.perf_counter()
            run()
            self.wait()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def peak_gib(self, run: Callable[[], object]) -> float | None:
        """Highest memory of the allocator during ``run``; none without a GPU."""
        if self.device != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        run()
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)

    def free(self) -> None:
        """Give back what was dropped."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()


def here(part: Part) -> None:
    """The machine, and its two ceilings as measured."""
    part.record("machine", machine())
    if part.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        part.record("card", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, driver {driver}")
    size = 256 if part.dry else 8192
    left, right = (torch.randn(size, size, device=part.device, dtype=torch.bfloat16) for _ in range(2))
    part.record("matmul TFLOP/s", 2 * size**3 / part.seconds_of(lambda: left @ right, 20) / 1e12)
    source = torch.randn(1 << (20 if part.dry else 30), device=part.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    part.record("copy TB/s", moved / part.seconds_of(lambda: target.copy_(source), 20) / 1e12)


def correct(part: Part) -> None:
    """The tests; what failed is named."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "" if part.dry else "0"}
    if part.dry:
        environment["TEST_DEVICE"] = "cpu"
    groups: dict[str, list[str]] = {"gpu": ["-m", "gpu", "tests"], "training": ["-m", "", *TRAINING_TESTS]}
    for name, arguments in groups.items():
        collect = ["--collect-only"] if part.dry and name == "training" else []
        report = part.out / f"{name}.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x" if part.dry else "-q",
            "-n",
            "0",
            "-p",
            "no:cacheprovider",
        ]
        done = subprocess.run(
            [*command, *collect, f"--junitxml={report}", *arguments], cwd=ROOT, env=environment, check=False
        )
        part.record(name, {"exit": done.returncode, **_counts(report)})
        if done.returncode:
            part.record("failed", True)


def _counts(report: Path) -> dict[str, Any]:
    """Tests, failures and skips, and the names of those that failed."""
    from xml.etree import ElementTree

    if not report.exists():
        return {}
    suite = next(ElementTree.parse(report).iter("testsuite"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None
    ]
    return {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")} | {"names": failed}


def capture(part: Part) -> None:
    """The teacher cache against the plain forward of the same batches."""
    from sra_core.models import TeacherCapture, layer_count

    ceiling = _ceiling(part)
    for name in ("tiny",) if part.dry else ("1.8B", "7B"):
        model: Any = random_model(name, "sdpa", part.device, torch.bfloat16).eval()
        rows = made_up_rows(8 if part.dry else 128, 64 if part.dry else 256)
        tokens, budget = sum(len(row.teacher_ids) for row in rows), 512 if part.dry else 16384
        spans = sum(len(row.teacher_spans) for row in rows)
        layers = [layer_count(model) // 2 or 1, layer_count(model)]
        made = TeacherCapture(model, layers, budget)
        plain = part.seconds_of(forwards(model, rows, budget), 3)
        ours = part.seconds_of(lambda made=made, rows=rows: made(rows), 3)
        rate = 2 * parameters(name) * tokens / ours
        part.record(
            name,
            {
                "tokens/s": round(tokens / ours),
                "of plain forward": round(plain / ours, 3),
                "utilisation": round(rate / ceiling, 3),
                "bytes/span": len(layers) * (2 * MODELS[name]["width"] + 4),
                "spans": spans,
                "peak GiB": part.peak_gib(lambda made=made, rows=rows: made(rows)),
            },
        )
        del model, made
        part.free()


def step(part: Part) -> None:
    """Training steps, 16 ragged texts of at most 320 tokens, and four of them in accumulation."""
    ceiling = _ceiling(part)
    pairs = (("tiny", "tiny"),) if part.dry else (("120M", "1.8B"), ("1.1B", "7B"))
    for student, teacher in pairs:
        shape = argparse.Namespace(student=student, teacher=teacher, device=part.device, ragged=True)
        found: dict[str, Any] = {}
        for way in WAYS:
            try:
                bench = StepBench(shape, way, 4 if part.dry else 16, 64 if part.dry else 320)
                seconds = part.seconds_of(bench.step)
                tokens = len(bench.batch.input_ids)
                found[way] = {
                    "s/step": seconds,
                    "s/step of 64 texts": part.seconds_of(lambda bench=bench: _accumulated(bench), 3),
                    "tokens/s": round(tokens / seconds),
                    "utilisation": round(6 * parameters(student) * tokens / seconds / ceiling, 3),
                    "peak GiB": part.peak_gib(bench.step),
                }
                del bench
            except torch.OutOfMemoryError:
                found[way] = {"left out": "out of memory"}
            part.free()
            part.record(f"{student} of {teacher}", found | _ratios(found))


def _accumulated(bench: StepBench) -> None:
    bench.optimizer.zero_grad(set_to_none=True)
    for _ in range(4):
        (bench.run() / 4).backward()
    bench.optimizer.step()


def _ratios(found: dict[str, Any]) -> dict[str, float]:
    own = found.get("sra", {}).get("s/step")
    others = {way: values["s/step"] for way, values in found.items() if way != "sra" and "s/step" in values}
    return {f"sra / {way}": round(own / seconds, 3) for way, seconds in others.items()} if own else {}


def quality(part: Part) -> None:
    """Recipe `quality` with more text and steps; a cell after the other, as time allows."""
    from sra_core import stages
    from sra_core.config.load import load_config

    changes: dict[str, Any] = {"store": str(part.out / "store"), "tracking": {"enabled": False}}
    if part.dry:
        recipe = "smoke"
        changes |= {
            "distill": {"max_steps": 2, "validate_every": 2, "checkpoint_every": 2},
            "cache": {"token_states": True},
        }
    else:
        recipe = "quality"
        changes |= {
            "teacher": {"source": str(part.teacher), "sha256": None},
            "corpus": {"max_train": 2000, "max_validation": 100, "max_test": 300},
            "distill": {"max_steps": 1500, "epochs": 10, "validate_every": 150, "checkpoint_every": 1500},
            "evaluate": {"generate": 300},
        }
    cells: dict[str, Any] = {}
    longest = 0.0
    for seed in (1,) if part.dry else (1, 2, 3):
        for name in ("sra", "sft", "mined", "strict_kl"):
            if part.left() < 1.2 * longest:
                return
            began = time.monotonic()
            results = stages.run(load_config(recipe, {**changes, "objective": {"name": name}, "seed": seed}))
            longest = max(longest, time.monotonic() - began)
            cells[f"{name} seed {seed}"] = dict(results["evaluate"].metrics)
            part.record("cells", cells)


def profile(part: Part) -> None:
    """Where a step's and a capture's time goes."""
    from sra_core.models import TeacherCapture, layer_count

    shape = argparse.Namespace(
        student="tiny" if part.dry else "120M", teacher="tiny" if part.dry else "1.8B", device=part.device, ragged=True
    )
    bench = StepBench(shape, "sra", 4 if part.dry else 16, 64 if part.dry else 320)
    part.record("step", _profiled(part, bench.step))
    del bench
    part.free()
    model: Any = random_model(shape.teacher, "sdpa", part.device, torch.bfloat16).eval()
    rows = made_up_rows(4 if part.dry else 64, 64 if part.dry else 256)
    made = TeacherCapture(model, [layer_count(model)], 16384)
    part.record("capture", _profiled(part, lambda: made(rows)))


def _profiled(part: Part, run: Callable[[], object]) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    run()
    part.wait()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if part.device == "cuda" else [])]
    with profiler(activities=kinds) as seen:
        began = time.perf_counter()
        run()
        part.wait()
        wall = time.perf_counter() - began
    field = "self_device_time_total" if part.device == "cuda" else "self_cpu_time_total"
    events = sorted(seen.key_averages(), key=lambda event: -getattr(event, field))
    busy = sum(event.self_device_time_total for event in events) / 1e6
    waits = sum(
        event.count
        for event in events
        if "Synchronize" in event.key or event.key in ("aten::item", "aten::_local_scalar_dense")
    )
    return {
        "wall ms": round(1e3 * wall, 2),
        "device busy": round(busy / wall, 3),
        "waits of the host": waits,
        "longest": [[event.key[:80], event.count, round(getattr(event, field) / 1e3, 3)] for event in events[:10]],
    }


def _ceiling(part: Part) -> float:
    """FLOP a second of a matrix product, as part ``here`` measured it; without that, measured now."""
    path = part.out / "here.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if "matmul TFLOP/s" not in found:
        size = 256 if part.dry else 8192
        left = torch.randn(size, size, device=part.device, dtype=torch.bfloat16)
        return 2 * size**3 / part.seconds_of(lambda: left @ left, 20)
    return float(found["matmul TFLOP/s"]) * 1e12


PARTS: dict[str, Callable[[Part], None]] = {
    "here": here,
    "correct": correct,
    "capture": capture,
    "step": step,
    "quality": quality,
    "profile": profile,
}


def conduct(options: argparse.Namespace) -> dict[str, str]:
    """Run the parts in order; how each ended."""
    ended: dict[str, str] = {}
    began = time.monotonic()
    for name in options.parts:
        if name == "quality" and not (options.dry or options.teacher):
            ended[name] = "left out: no --teacher"
            continue
        limit = float(LIMITS[name])
        if name == "quality":
            after = sum(LIMITS[each] for each in options.parts[options.parts.index(name) + 1 :])
            limit = 60 * options.minutes - (time.monotonic() - began) - after
        ended[name] = _in_process(options, name, limit)
        print(f"{name}: {ended[name]}", flush=True)
    return ended


def _in_process(options: argparse.Namespace, name: str, limit: float) -> str:
    """One part in a process group of its own, which a limit ends whole."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--out",
        str(options.out),
        "--part",
        name,
        "--seconds",
        str(limit),
    ]
    command += ["--dry"] if options.dry else []
    command += ["--teacher", str(options.teacher)] if options.teacher else []
    began = time.monotonic()
    with (options.out / f"{name}.log").open("w") as log:
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return f"stopped at its limit of {limit:.0f} s"
    taken = time.monotonic() - began
    return f"done in {taken:.0f} s" if code == 0 else f"FAILED with {code} after {taken:.0f} s: see {name}.log"


def report(out: Path, ended: dict[str, str]) -> tuple[str, bool, bool]:
    """The table of all parts as Markdown, whether no part failed, and whether every aim that was measured is met."""
    lines, good, met_all = ["# On this GPU", ""], True, True
    figures: dict[str, float] = {}
    for name, how in ended.items():
        lines += [f"## {name}: {how}", ""]
        path = out / f"{name}.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        good = good and not how.startswith("FAILED") and not found.get("failed")
        lines += ["| what | found |", "|---|---|"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in found.items()] + [""]
        figures |= _figures(name, found)
    lines += ["## Aims", "", "| figure | aim | found | |", "|---|---|---|---|"]
    for figure, value in figures.items():
        sign, aim = next(each for name, each in AIMS.items() if figure.startswith(name))
        met = value >= aim if sign == ">=" else value <= aim
        met_all = met_all and met
        lines.append(f"| {figure} | {sign} {aim} | {value:.3g} | {'met' if met else 'MISSED'} |")
    return "\n".join(lines) + "\n", good, met_all


def _figures(part: str, found: dict[str, Any]) -> dict[str, float]:
    """The figures of a part that an aim is set for."""
    figures: dict[str, float] = {}
    for name, values in found.items():
        if part == "capture":
            figures[f"capture of plain forward, {name}"] = values["of plain forward"]
            if name == "7B":
                figures["capture utilisation 7B"] = values["utilisation"]
        if part == "step":
            figures |= {f"{key}, {name}": value for key, value in values.items() if key in AIMS}
    return figures


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "<br>".join(f"{key}: {_cell(each)}" for key, each in value.items())
    if isinstance(value, list):
        return "<br>".join(" ".join(map(str, each)) if isinstance(each, list) else str(each) for each in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--teacher", type=Path, help="the quickstart's teacher, a GGUF file: part `quality` needs it")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=3600.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out = options.out.absolute()
    return options


def main() -> int:
    """Run the parts, or the one that a parent asks for."""
    options = parse()
    if options.part:
        PARTS[options.part](Part(options, options.part))
        return 0
    if not options.dry and not torch.cuda.is_available():
        print("torch sees no GPU here; --dry runs the same code with tiny shapes on the CPU")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    ended = conduct(options)
    text, good, met_all = report(options.out, ended)
    (options.out / "report.md").write_text(text)
    print(text)
    return 0 if good and (met_all or options.dry) else 1


if __name__ == "__main__":
    raise SystemExit(main())
