"""Grids on the tiny models of recipe `smoke`, and cells that are finished without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sra_core.bench.grid import Bench, Cell
from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.runs import Run
from sra_core.shards import Manifest

EXAMPLES = 12
OBJECTIVES = ("sra", "sft", "uld")


def config(
    store: Path, names: tuple[str, ...] = OBJECTIVES, seeds: tuple[int, ...] = (1, 2), **bench: Any
) -> RunConfig:
    """A grid of objectives; ``bench`` replaces fields of its bench part."""
    variants = [{"name": name, "overrides": {"objective.name": name}} for name in names]
    reference = "sft" if "sft" in names else names[0]
    made = {"variants": variants, "seeds": list(seeds), "reference": reference, **bench}
    return load_config("smoke", {"store": str(store), "tracking": {"enabled": False}, "bench": made})


def bits(variant: str, seed: int) -> np.ndarray:
    """Bits of each example under a cell: a variant's own level, a seed's own noise."""
    level = {"sra": 1.0, "sft": 1.4, "uld": 1.2}[variant]
    return 10 * level + np.random.default_rng(seed).normal(size=EXAMPLES)


def sizes() -> np.ndarray:
    """Bytes of each example."""
    return np.arange(8, 8 + EXAMPLES)


def finish(cell: Cell, first_id: int = 0, datasets: int = 1) -> Manifest:
    """Put a training result and an evaluation of a cell into the store; examples go to data sets in turn."""
    trained = Run(cell.config).folder("distill")
    trained.path.mkdir(parents=True, exist_ok=True)
    curve = [{"step": step, "validation/bits_per_byte": 2.0 - step / 10 + cell.seed / 100} for step in (0, 3, 6)]
    (trained.path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    costs = {
        "best_step": 3.0 * cell.seed,
        "seconds": 100.0 * cell.seed,
        "seconds_per_step": 0.1 * cell.seed,
        "peak_memory_bytes": 2.0**30 * cell.seed,
    }
    made = trained.commit(
        files=[trained.entry("history.jsonl")], metrics={f"distill/{name}": value for name, value in costs.items()}
    )
    scores = Run(cell.config).folder("evaluate")
    scores.path.mkdir(parents=True, exist_ok=True)
    columns = {
        "dataset": [f"set-{number % datasets}" for number in range(EXAMPLES)],
        "id": [f"x{first_id + number}" for number in range(EXAMPLES)],
        "source": [""] * EXAMPLES,
        "nats": bits(cell.variant, cell.seed) * np.log(2),
        "bytes": sizes(),
    }
    name = f"likelihood-{cell.config.evaluate.test_name}-student.parquet"
    pq.write_table(pa.table(columns), scores.path / name)
    value = bits(cell.variant, cell.seed).sum() / sizes().sum()
    metrics = {"evaluate/student/bits_per_byte": value}
    return scores.commit(upstream=[made], files=[scores.entry(name)], metrics=metrics)


def grid(store: Path, **options: Any) -> Bench:
    """A grid on a store."""
    return Bench(config(store, **options))
