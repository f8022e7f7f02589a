"""Claims about the teacher cache, each as a ratio to a plain implementation in the same run.

    python -m benchmarks.cache [--model SOURCE] [--json FILE] [--quick]

- capture runs at 0.9 or more of the tokens a second of the plain SDPA forward of the same batches;
- against eager attention with output_attentions: time and peak memory at 1,024 tokens;
- bytes a span and a token for each stored type, beside DistillKit's published 114 to 312 bytes a token for logits;
- training-time reads run at 0.8 or more of a raw copy of the same bytes out of a memory map.

Peak memory is the highest resident size of a process of its own, above what it held after loading the model; on a GPU,
the allocator's peak. Exits with 1 when a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.stamp import write_json
from sra_core.config import ModelRef
from sra_core.models import TeacherCapture, layer_count, load_model, token_batches
from sra_core.shards import PreparedRow, StageFolder, TeacherRow, TeacherSet, teacher_batches, teacher_schema

MODEL = "random:llama?layers=6&width=384&heads=6&vocabulary=1000&positions=2048&seed=1"
GPU_MODEL = "random:llama?layers=4&width=4096&heads=32&kv_heads=8&vocabulary=1000&positions=2048&seed=1"
DISTILLKIT = (114, 312)
CAPTURE, READS = 0.9, 0.8
TOKENS_PER_SPAN = 1.3


def made_up_rows(count: int, length: int, seed: int = 0) -> list[PreparedRow]:
    """Texts of about ``length`` teacher tokens, the last three quarters of them cut into spans."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        tokens = int(length * rng.uniform(0.7, 1.0)) if count > 1 else length
        first = tokens // 4
        cuts = np.unique(
            np.sort(rng.choice(np.arange(first, tokens), int((tokens - first) / TOKENS_PER_SPAN), replace=False))
        )
        spans = np.stack([cuts[:-1], cuts[1:]], 1).astype(np.int32)
        ids = rng.integers(0, 900, tokens).astype(np.int32)
        rows.append(PreparedRow(f"row-{number}", ids, ids, spans, spans, first, first, "", "", ""))
    return rows


def best(run: Callable[[], object], repeats: int) -> float:
    """Shortest of several durations, after one that warms up."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def in_turns(plain: Callable[[], object], ours: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Shortest durations of two ways, measured in turns, so that what else the machine does meets both alike."""
    pairs = [(best(plain, 1), best(ours, 1)) for _ in range(rounds)]
    return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


def resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def forwards(model: Any, rows: list[PreparedRow], budget: int, **options: bool) -> Callable[[], None]:
    """The plain forward of the base model over the batches that a capture makes."""

    @torch.inference_mode()
    def run() -> None:
        for batch in token_batches([len(row.teacher_ids) for row in rows], budget):
            width = max(len(rows[index].teacher_ids) for index in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, index in enumerate(batch):
                ids[place, : len(rows[index].teacher_ids)] = torch.from_numpy(rows[index].teacher_ids.astype(np.int64))
                mask[place, : len(rows[index].teacher_ids)] = 1
            model.get_decoder()(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False, **options
            )

    return run


def measure_rate(source: str, dtype: str, quick: bool) -> dict[str, Any]:
    """Tokens a second of capture and of the plain forward, in turns."""
    model = load_model(ModelRef(source=source), dtype, "auto")
    count = layer_count(model)
    rows, budget = made_up_rows(8 if quick else 32, 256), 2048
    capture = TeacherCapture(model, [count // 2, count], budget)
    tokens = sum(len(row.teacher_ids) for row in rows)
    plain, ours = in_turns(forwards(model, rows, budget), lambda: capture(rows), 4 if quick else 10)
    return {"tokens_per_second": round(tokens / ours), "of_plain_forward": round(plain / ours, 3)}


def measure_once(source: str, dtype: str, way: str, length: int) -> dict[str, float]:
    """Time and peak memory of one text of ``length`` tokens, in this process."""
    from transformers import AutoModelForCausalLM

    from sra_core.models import pick_device, resolve

    implementation = "eager" if way == "eager" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(
        resolve(ModelRef(source=source)), attn_implementation=implementation, dtype=getattr(torch, dtype)
    ).eval()
    model.to(pick_device("auto"))
    rows, count = made_up_rows(1, length), layer_count(model)
    if way == "eager":
        run: Callable[[], object] = forwards(model, rows, length, output_attentions=True)
    else:
        capture = TeacherCapture(model, [count // 2, count], length)
        run = lambda: capture(rows)  # noqa: E731
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return {"peak": torch.cuda.max_memory_allocated() - before, "seconds": best(run, 5)}
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is held now
    before = resident("VmRSS")
    run()
    peak = resident("VmHWM") - before
    return {"peak": peak, "seconds": best(run, 3)}


def measure_eager(source: str, dtype: str, length: int) -> dict[str, Any]:
    """Capture against eager attention with output_attentions, each in a process of its own."""
    found = {}
    for way in ("capture", "eager"):
        options = ["--model", source, "--dtype", dtype, "--once", way, str(length)]
        command, root = [sys.executable, "-m", "benchmarks.cache", *options], Path(__file__).parents[1]
        answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
        found[way] = json.loads(answer.stdout.splitlines()[-1])
    return {
        "tokens": length,
        "seconds": found["capture"]["seconds"],
        "eager_seconds": found["eager"]["seconds"],
        "peak_mib": found["capture"]["peak"] / 2**20,
        "eager_peak_mib": found["eager"]["peak"] / 2**20,
        "time_ratio": found["eager"]["seconds"] / found["capture"]["seconds"],
        "memory_ratio": found["eager"]["peak"] / max(1, found["capture"]["peak"]),
    }


def teacher_rows(rows: list[PreparedRow], width: int, layers: list[int], seed: int = 0) -> list[TeacherRow]:
    """Random centres and masses of these texts."""
    rng = np.random.default_rng(seed)
    return [
        TeacherRow(
            row.id,
            {layer: rng.standard_normal((len(row.teacher_spans), width), np.float32) for layer in layers},
            {layer: rng.random(len(row.teacher_spans), np.float32) for layer in layers},
        )
        for row in rows
    ]


def write(folder: StageFolder, rows: list[TeacherRow], dtype: str, compression: str | None, layers: list[int]) -> Any:
    """A committed cache of these rows, 64 a shard."""
    width = rows[0].centers[layers[0]].shape[1]
    schema = teacher_schema(layers, dtype, width, compressed=compression is not None)
    shards = [
        folder.write_shard(
            f"train-{start:05d}.arrow",
            "train",
            teacher_batches(rows[start : start + 64], schema),
            schema,
            compression=compression,
        )
        for start in range(0, len(rows), 64)
    ]
    return folder.commit(shards=shards)


def measure_bytes(store: Path, width: int) -> list[dict[str, Any]]:
    """Bytes of one layer's centres and masses for each stored type."""
    prepared = made_up_rows(64, 256)
    rows = teacher_rows(prepared, width, [1])
    spans = sum(len(row.teacher_spans) for row in prepared)
    tokens = sum(len(row.teacher_ids) - row.teacher_response for row in prepared)
    table = []
    for dtype in ("float32", "bfloat16", "int8", "fp8"):
        for compression in (None, "zstd"):
            manifest = write(StageFolder(store, "cache", {"b": [dtype, compression]}), rows, dtype, compression, [1])
            size = sum(shard.bytes for shard in manifest.shards)
            table.append(
                {
                    "stored": dtype + (" zstd" if compression else ""),
                    "width": width,
                    "bytes_per_span": round(size / spans, 1),
                    "bytes_per_token": round(size / tokens, 1),
                }
            )
    return table


def measure_reads(store: Path, width: int, quick: bool) -> dict[str, Any]:
    """Random batches through `TeacherSet.gather` against copies of the same bytes out of a raw memory map."""
    count, batch = (256, 16) if quick else (1024, 16)
    rows = teacher_rows(made_up_rows(count, 256), width, [1])
    manifest = write(StageFolder(store, "cache", {"reads": width}), rows, "bfloat16", None, [1])
    sizes = [row.centers[1].size * 2 for row in rows]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    flat = store / "flat.bin"
    flat.write_bytes(os.urandom(int(starts[-1])))
    order = np.random.default_rng(0).permutation(count).reshape(-1, batch)
    kept = TeacherSet(manifest, "train")

    def ours() -> None:
        for indices in order:
            kept.gather(indices)

    with flat.open("rb") as file:
        view = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def raw() -> None:
        for indices in order:
            np.concatenate([view[starts[index] : starts[index + 1]] for index in indices])

    plain, own = in_turns(raw, ours, 15 if quick else 30)
    return {
        "width": width,
        "gigabytes_per_second": round(int(starts[-1]) / own / 1e9, 2),
        "raw_gigabytes_per_second": round(int(starts[-1]) / plain / 1e9, 2),
        "of_raw_copy": round(plain / own, 3),
    }


def show(result: dict[str, Any]) -> None:
    """Print the figures as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=140)
    for name, values in result.items():
        rows = values if isinstance(values, list) else [values]
        table = Table(*rows[0], title=name, box=None)
        for row in rows:
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
        console.print(table)
    console.print(f"DistillKit publishes {DISTILLKIT[0]} to {DISTILLKIT[1]} bytes a token for compressed logits")


def main() -> int:
    """Measure, print, and write JSON when asked to."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=GPU_MODEL if gpu else MODEL)
    parser.add_argument("--dtype", default="bfloat16" if gpu else "float32")
    parser.add_argument("--width", type=int, default=2048, help="teacher width of the size and read figures")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--once", nargs=2, metavar=("WAY", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measure_once(options.model, options.dtype, options.once[0], int(options.once[1]))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "capture": {"model": options.model, **measure_rate(options.model, options.dtype, options.quick)},
            "against eager attention": measure_eager(options.model, options.dtype, 1024),
            "size": measure_bytes(Path(folder), options.width),
            "reads": [measure_reads(Path(folder), width, options.quick) for width in sorted({576, options.width})],
        }
    show(result)
    claims = {
        f"capture at least {CAPTURE} of the plain forward": result["capture"]["of_plain_forward"] >= CAPTURE,
        **{
            f"reads at width {row['width']} at least {READS} of a raw copy": row["of_raw_copy"] >= READS
            for row in result["reads"]
        },
    }
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    write_json(options.json, {**result, "claims": claims})
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
