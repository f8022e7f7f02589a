"""What training wrote down step by step, and what its steps took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

__all__ = ["read_history", "step_costs"]


def read_history(path: Path) -> list[dict[str, float]]:
    """The metrics of a training, a report at a time."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def step_costs(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Usual seconds of a step and most bytes of a process, over every session that training took."""
    seconds = [row["train/seconds_per_step"] for row in history if "train/seconds_per_step" in row]
    memory = [row["train/peak_memory_bytes"] for row in history if "train/peak_memory_bytes" in row]
    return {"seconds_per_step": median(seconds), "peak_memory_bytes": max(memory)} if seconds and memory else {}
