"""Memory is bounded by digests, not by the text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "corpus_memory.py"


def measure(tmp_path, examples):
    command = [sys.executable, SCRIPT, "--examples", str(examples), "--json", tmp_path / "result.json"]
    subprocess.run(command, check=True, capture_output=True, cwd=SCRIPT.parents[1], env={"PYTHONPATH": "."})
    return json.loads((tmp_path / "result.json").read_text())


def test_the_benchmark_counts_every_example(tmp_path):
    result = measure(tmp_path, 2000)
    assert sum(result["counts"].values()) == 2000
    assert result["counts"]["duplicate"] == 2


@pytest.mark.slow
def test_a_million_short_examples_pass_under_two_gibibytes(tmp_path):
    result = measure(tmp_path, 1_000_000)
    assert sum(result["counts"].values()) == 1_000_000
    assert result["counts"]["train"] > 800_000
    assert result["peak_mib"] < 2048


def test_importing_the_room_stays_light():
    heavy = ("torch", "transformers", "datasets", "pyarrow")
    script = f"import sys, sra_core.corpus; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
