"""`sra compare` as a person types it: how runs are named and found, where the page goes, what MLflow gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sra_core.cli import app
from sra_core.compare import find_evaluation
from sra_core.config import RunConfig
from sra_core.errors import EvaluationError
from sra_core.watch.mlflow import tracking_uri
from tests.compare.store import write_run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def folders(store: Path) -> list[Path]:
    return [
        write_run(store, {"teacher": 0.1, "student": wrong}, objective=name, examples=12, datasets=("test", "talks"))
        for name, wrong in (("sra", 0.3), ("sft", 0.6))
    ]


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return lambda *arguments: CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "80"})


def test_runs_are_named_by_their_objective_and_so_is_the_page(compare: Any, folders: list[Path], tmp_path: Path):
    shown = compare(*folders)
    assert shown.exit_code == 0, shown.exception
    assert "sra against sft: sra is better." in shown.output
    assert "bits per byte by data set" in shown.output
    assert "detectable" in shown.output
    assert "cut at token limit" in shown.output
    assert "initial" not in shown.output
    assert [path.name for path in tmp_path.iterdir()] == ["comparison-sra-sft.html"]
    assert "in place of" not in shown.output
    assert "in place of the one that was there" in compare(*folders).output


def test_own_names_and_own_page(compare: Any, folders: list[Path], tmp_path: Path):
    shown = compare(f"good={folders[0]}", f"bad={folders[1]}", "--output", tmp_path / "mine.html")
    assert "good against bad: good is better." in shown.output
    assert (tmp_path / "mine.html").exists()


def test_the_beginning_of_a_fingerprint_is_enough_where_the_store_is_named(
    compare: Any, folders: list[Path], store: Path
):
    shown = compare(*(path.name[:8] for path in folders), "--set", f"store={store}")
    assert "sra against sft" in shown.output
    with pytest.raises(EvaluationError, match="begins the names of 2 evaluations"):
        find_evaluation(RunConfig(store=str(store)), "")


def test_evaluations_on_object_storage_are_found_with_what_they_rest_on(
    compare: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    """Made on one machine, compared on another that has nothing but the address."""
    place = tmp_path_factory.mktemp("bucket")
    monkeypatch.setenv("SRA_CACHE_HOME", str(place / "maker"))
    url = f"file://{place}/store"
    made = [
        write_run(url, {"teacher": 0.1, "student": wrong}, objective=name, examples=12)
        for name, wrong in (("sra", 0.3), ("sft", 0.6))
    ]
    monkeypatch.setenv("SRA_CACHE_HOME", str(place / "reader"))
    shown = compare(*(path.name[:8] for path in made), "--set", f"store={url}")
    assert shown.exit_code == 0, shown.exception
    assert "sra against sft: sra is better." in shown.output
    assert "distill.learning_rate" in Path("comparison-sra-sft.html").read_text(), "the lineage came along"
    _, folder = find_evaluation(RunConfig(store=url), made[0].name)
    assert folder.is_relative_to(place / "reader")
    with pytest.raises(EvaluationError, match=f"nor an evaluation in {url}/evaluations"):
        find_evaluation(RunConfig(store=url), "0123")


def test_what_is_not_found_says_where_it_was_looked_for(compare: Any, tmp_path: Path, store: Path):
    shown = compare("0123abcd")
    assert isinstance(shown.exception, EvaluationError)
    assert f"{tmp_path}/sra-store/evaluations" in shown.exception.problem
    assert f"sqlite:///{tmp_path}/sra-store/mlflow.db" in shown.exception.problem
    assert "SRA_STORE" in shown.exception.remedy
    assert list(tmp_path.iterdir()) == [], "asking makes no store"


def test_a_comparison_is_tracked_where_that_is_asked_for(compare: Any, folders: list[Path], tmp_path: Path):
    from mlflow import MlflowClient

    place = f"store={tmp_path / 'own'}"
    shown = compare(*folders, "--track", "--set", place)
    assert shown.exit_code == 0, shown.exception
    client = MlflowClient(tracking_uri(RunConfig(store=str(tmp_path / "own"))))
    (run,) = client.search_runs([client.get_experiment_by_name("sra").experiment_id])
    assert (run.info.run_name, run.info.status) == ("sra / sft · compare", "FINISHED")
    assert {"compare/sra/rougeL", "compare/teacher/bits_per_byte"} <= set(run.data.metrics)
    names = {
        item.path for folder in ("tables", "figures", "") for item in client.list_artifacts(run.info.run_id, folder)
    }
    assert {"tables/evaluate-scores.json", "tables/evaluate-differences.json", "tables/evaluate-answers.json"} <= names
    assert {"figures/evaluate-scores.png", "figures/evaluate-learning_curves.png", "comparison-sra-sft.html"} <= names
