"""`benchmarks/gpu.py` on the CPU, so that the minutes on a GPU are not spent on mending it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

ROOT = Path(__file__).parents[2]


def dry(out: Path, *parts: str) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--out", str(out), "--parts", *parts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return (out / "report.md").read_text()


def test_every_figure_is_there(tmp_path: Path) -> None:
    text = dry(tmp_path, "here", "capture", "step", "profile")
    names = ("here", "capture", "step", "profile")
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in names}
    assert found["here"]["matmul TFLOP/s"] > 0
    assert found["capture"]["tiny"]["of plain forward"] > 0
    assert found["step"]["tiny of tiny"].keys() >= {"sra / sft", "sra / plain sft", "sra / paper", "sra / sra padded"}
    assert len(found["profile"]["step"]["longest"]) == 10
    assert "| sra / paper, tiny of tiny | <= 0.3 |" in text


@pytest.mark.slow
def test_all_of_it(tmp_path: Path) -> None:
    text = dry(tmp_path, *gpu.PARTS)
    assert text.count(": done in") == len(gpu.PARTS)
    assert len(json.loads((tmp_path / "quality.json").read_text())["cells"]) == 4


def test_a_part_that_fails_or_hangs_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = gpu.argparse.Namespace(parts=["here", "capture"], dry=True, out=tmp_path, teacher=None, minutes=8.0)
    monkeypatch.setitem(gpu.LIMITS, "here", 0.1)
    (tmp_path / "capture.json").mkdir()  # the part cannot write there
    ended = gpu.conduct(options)
    assert ended["here"].startswith("stopped at its limit")
    assert ended["capture"].startswith("FAILED with 1")
    (tmp_path / "capture.json").rmdir()
    text, good, _ = gpu.report(tmp_path, ended)
    assert not good
    assert "see capture.log" in text
