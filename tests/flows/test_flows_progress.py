"""What the progress artifact says, with the end in sight and without."""

from __future__ import annotations

import logging
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


def test_with_a_known_end_it_says_how_much_is_left(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "_EVERY", 0.0)
    watch = watcher.PrefectWatcher()
    watch.begin("distill", "f", RunConfig(), "plan", reused=False)
    watch.progress(0, 40, "steps")
    watch.progress(10, 40, "steps", "loss 2")
    percent, text = _progress(artifacts)[-1]
    assert percent == 25.0
    assert text.startswith("10 of 40 steps, ")
    assert "left, loss 2" in text


def test_an_image_is_linked_to_the_file_that_mlflow_keeps(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Mlflow:
        url = "http://mlflow:5000/#/runs/r1"
        run_id = "r1"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    watch = watcher.PrefectWatcher(Mlflow())  # type: ignore[arg-type]
    watch.begin("evaluate", "f", RunConfig(), "plan", reused=False)
    watch.figure("evaluate/scores", lambda: pytest.fail("nobody here keeps it"))
    watch.end(_manifest(tmp_path))
    (image,) = [data for kind, _, data, _ in artifacts.written if kind == "image"]
    assert image == "http://mlflow:5000/get-artifact?path=figures/evaluate-scores.png&run_uuid=r1"
