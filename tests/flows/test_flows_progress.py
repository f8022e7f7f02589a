"""What the progress artifact says, with the end in sight and without."""

from __future__ import annotations

import base64
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from flows import watcher
from sra_core.config import RunConfig
from sra_core.shards import Manifest


class Artifacts:
    """Keeps what would be sent to Prefect."""

    def __init__(self) -> None:
        self.written: list[tuple[str, str, Any, str | None]] = []

    def write(self, kind: str, key: str, data: Any, description: str | None = None) -> None:
        self.written.append((kind, key, data, description))


@pytest.fixture
def artifacts(monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    kept = Artifacts()
    monkeypatch.setattr(watcher, "ArtifactWriter", lambda: kept)
    monkeypatch.setattr(watcher, "get_run_logger", lambda: logging.getLogger("test"))
    return kept


def _progress(artifacts: Artifacts) -> list[tuple[float, str]]:
    return [(data, str(text)) for kind, _, data, text in artifacts.written if kind == "progress"]


def _manifest(folder: Path) -> Manifest:
    return Manifest(
        stage="prepare", fingerprint="f", identity={}, created="2026-01-01T00:00:00+00:00", folder=str(folder)
    )


def test_without_a_known_end_it_counts_and_is_whole_at_the_end(artifacts: Artifacts, tmp_path: Path) -> None:
    watch = watcher.PrefectWatcher()
    watch.begin("prepare", "f", RunConfig(), "plan", reused=False)
    watch.progress(12, 0, "examples")
    assert _progress(artifacts)[0][0] == 0.0
    assert _progress(artifacts)[0][1] == "12 examples"
    watch.end(_manifest(tmp_path))
    assert _progress(artifacts)[-1] == (100.0, _progress(artifacts)[0][1])


def test_without_a_known_end_not_every_count_is_written_and_the_last_one_is_shown(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    watch = watcher.PrefectWatcher()
    watch.begin("prepare", "f", RunConfig(), "plan", reused=False)
    for count in range(1, 50):
        watch.progress(count, 0, "examples")
    assert [text for _, text in _progress(artifacts)] == ["1 examples"]
    watch.end(_manifest(tmp_path))
    assert _progress(artifacts)[-1][1].startswith("49 examples")


def test_with_a_known_end_it_says_how_much_is_left(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "_EVERY", 0.0)
    watch = watcher.PrefectWatcher()
    watch.begin("distill", "f", RunConfig(), "plan", reused=False)
    watch.progress(0, 40, "steps")
    watch.progress(10, 40, "steps")
    assert _progress(artifacts)[-1][1] == "10 of 40 steps", "what arrives at once has no rate"
    time.sleep(0.02)
    watch.progress(10, 40, "steps", "loss 2")
    percent, text = _progress(artifacts)[-1]
    assert percent == 25.0
    assert text.startswith("10 of 40 steps, ")
    assert "left, loss 2" in text


def test_a_new_phase_begins_a_new_count_and_no_rate_is_negative(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "_EVERY", 0.0)
    watch = watcher.PrefectWatcher()
    watch.begin("evaluate", "f", RunConfig(), "plan", reused=False)
    for done, total, unit in (
        (6, 6, "texts"),
        (0, 2, "answers"),
        (2, 2, "answers"),
        (1, 2, "answers"),
        (2, 2, "answers"),
    ):
        watch.progress(done, total, unit)
    told = [text for _, text in _progress(artifacts)]
    assert told[1] == "0 of 2 answers"
    assert len(told) == 5
    assert not any("-" in text for text in told)


def test_a_figure_is_embedded_under_a_key_of_its_own(artifacts: Artifacts, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    def draw() -> Figure:
        figure = Figure()
        figure.subplots().plot([1, 2])
        return figure

    watch = watcher.PrefectWatcher(cell="sra, seed 1")
    watch.begin("evaluate", "f", RunConfig(), "plan", reused=False)
    watch.table("evaluate/scores", [{"model": "student"}])
    watch.figure("evaluate/scores", draw)
    watch.end(_manifest(tmp_path))
    ((_, table, _, _),) = [each for each in artifacts.written if each[0] == "table"]
    ((_, figure, address, _),) = [each for each in artifacts.written if each[0] == "image"]
    assert (table, figure) == ("sra-seed-1-evaluate-evaluate-scores", "sra-seed-1-evaluate-evaluate-scores-figure")
    kind, _, content = address.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content).startswith(b"\x89PNG")


def test_a_figure_too_large_for_a_page_is_left_to_mlflow(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    monkeypatch.setattr(watcher, "_LARGEST_FIGURE", 10)
    watch = watcher.PrefectWatcher()
    watch.begin("evaluate", "f", RunConfig(), "plan", reused=False)
    watch.figure("evaluate/scores", Figure)
    assert artifacts.written == []


def test_a_reused_training_shows_the_numbers_that_it_told_when_it_was_made(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    (tmp_path / "history.jsonl").write_text('{"step": 1, "train/loss": 3.0}\n{"step": 2, "train/loss": 2.0}\n')
    watch = watcher.PrefectWatcher()
    watch.begin("distill", "f", RunConfig(), "plan", reused=True)
    watch.end(_manifest(tmp_path))
    live = [json.loads(data) for _, key, data, _ in artifacts.written if key == "distill-live"]
    assert live[-1] == [{"step": 2, "train/loss": 2.0}, {"step": 1, "train/loss": 3.0}]


def test_what_corpora_and_models_bring_is_not_rendered_in_cells(artifacts: Artifacts) -> None:
    watch = watcher.PrefectWatcher()
    watch.begin("evaluate", "f", RunConfig(), "plan", reused=False)
    watch.table("answers", [{"answer": "![x](http://evil.example/a.png)", "score": 0.5}])
    watch.progress(1, 2, "answers", "<img src=x>")
    (table,) = [data for kind, _, data, _ in artifacts.written if kind == "table"]
    assert json.loads(table) == [{"answer": "!\\[x\\](http\\://evil.example/a.png)", "score": 0.5}]
    assert _progress(artifacts)[0][1].endswith("\\<img src=x\\>")
