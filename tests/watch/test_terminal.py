"""What a person sees: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sra_core.bench import BenchLines
from sra_core.config import RunConfig
from sra_core.shards import Manifest
from sra_core.watch import TerminalWatcher

CONTROLS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


def tell(watch: TerminalWatcher, folder: Path) -> None:
    """A stage of two phases, the second one with a note."""
    watch.begin("distill", "0123456789abcdef", RunConfig(), "train", reused=False)
    watch.progress(1, 2, "batches")
    watch.message("a message between")
    watch.progress(2, 2, "batches")
    for step in range(4):
        watch.progress(step, 3, "steps", f"loss {3 - step}")
    made = {"stage": "distill", "fingerprint": "f", "identity": {}, "created": "2026-01-01T00:00:00+00:00"}
    watch.end(Manifest(folder=str(folder), counts={"steps": 3}, **made))


def test_a_log_has_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(TerminalWatcher(), tmp_path)
    lines = [re.sub(r", \S+ per second", "", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [
        "distill 0123456789abcdef  train",
        "  1/2 batches",
        "  a message between",
        "  2/2 batches",
    ]
    assert lines[-2] == "  3/3 steps  loss 0"
    assert re.fullmatch(r"  done in [\d.]+ s: 3 steps", lines[-1])
    assert len(lines) < 9, "a line of progress comes every so often, and at the end"


def test_a_terminal_has_bars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    tell(TerminalWatcher(), tmp_path)
    shown = CONTROLS.sub("", capsys.readouterr().out)
    assert re.search(r"batches ━+ 2/2 \d:\d\d:\d\d", shown)
    assert re.search(r"steps ━+ 3/3 \d:\d\d:\d\d loss 0", shown)
    assert shown.index("a message between") < shown.rindex("batches")
    assert re.search(r"⠋ distill 0:00:00", shown), "where nothing says how far it is, a spinner shows that it works"


@pytest.mark.parametrize("terminal", [False, True])
def test_brackets_of_messages_are_no_markup(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    if terminal:
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
    told = "a [/INST] of evaluate.datasets[talks]:bug:"
    watch, lines = TerminalWatcher(), BenchLines()
    watch.begin("evaluate", "0123456789abcdef", RunConfig(), told, reused=False)
    watch.message(told)
    watch.progress(1, 1, "steps", told)
    lines.progress(1, 2, "cells", told)
    assert CONTROLS.sub("", capsys.readouterr().out).count(told) >= 4


def test_a_stage_that_fails_takes_its_bar_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    watch = TerminalWatcher()
    watch.begin("cache", "f", RunConfig(), "capture", reused=False)
    watch.progress(1, 2, "examples")
    watch.failed(ValueError("no"))
    written = capsys.readouterr().out
    assert written.rstrip().endswith("cache stopped\x1b[0m")
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h"), "the cursor is shown again"
