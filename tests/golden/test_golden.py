"""What no change of structure may move: fingerprints, stored bytes, losses, names in MLflow.

The values lie in ``values.json``. A change that means to move one says so in CHANGELOG.md and writes the file anew:
``GOLDEN=write pytest tests/golden``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sra_core import stages
from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.runs import Run
from sra_core.shards import Manifest, TeacherSet
from sra_core.watch.mlflow import MlflowWatcher, pipeline_run, tracking_uri
from tests.golden.make import write_corpus, write_gpt2, write_llama

VALUES = Path(__file__).with_name("values.json")
WRITE = os.environ.get("GOLDEN") == "write"
LAYERS = {"objective": {"layers": [[2, 2], [3, 3]], "projector_start": "identity", "weighted_loss": True}}
STEPS = {"distill": {"max_steps": 10, "validate_every": 5, "checkpoint_every": 5}, "cache": {"dtype": "float32"}}
TERMS = ("train/loss", "train/ce", "train/cosine", "train/geometry", "train/logit", "train/gradient_norm")


@dataclass(frozen=True)
class Golden:
    """A finished run of recipe `smoke` on the golden models, and its MLflow database."""

    config: RunConfig
    results: dict[str, Manifest]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("golden")
    return {
        "store": str(folder / "store"),
        "teacher": {"source": str(write_llama(folder / "llama"))},
        "student": {"source": str(write_gpt2(folder / "gpt2"))},
        "corpus": {"source": str(write_corpus(folder / "corpus.jsonl")), "layout": "instruction"},
    }


@pytest.fixture(scope="module")
def golden(inputs: dict[str, Any]) -> Iterator[Golden]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        config = load_config("smoke", {**inputs, **LAYERS, **STEPS})
        with pipeline_run(config) as parent:
            results = stages.run(config, MlflowWatcher(config, parent))
        yield Golden(config, results)  # all that was to be told to MLflow is there


def check(name: str, found: Any) -> None:
    """Equal to the value of that name, or written in its place."""
    values = json.loads(VALUES.read_text()) if VALUES.exists() else {}
    if WRITE:
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted({**values, name: found}.items())]
        VALUES.write_text("{\n" + ",\n".join(lines) + "\n}\n")  # a line a value, for those who read the change
        return
    assert found == values[name]


def check_close(name: str, found: Any, rtol: float) -> None:
    """As `check`, for numbers that the processor rounds in its own way."""
    if WRITE:
        check(name, found)
    np.testing.assert_allclose(found, json.loads(VALUES.read_text())[name], rtol=rtol, atol=1e-6)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("smoke", LAYERS),
        ("smoke", {**LAYERS, "adapt": {"enabled": True}}),
        ("quality-smoke", {**LAYERS}),
        ("quality-smoke", {"objective": {"name": "uld"}}),
        ("quality-smoke", {"objective": {"name": "sft"}}),
        ("paper-qwen1.5-1.8b-gpt2-120m", {**LAYERS, "evaluate": {"datasets": []}}),
        ("smoke", {}),
    ],
)
def test_fingerprints(recipe: str, changes: dict[str, Any], inputs: dict[str, Any], request: Any) -> None:
    config = load_config(recipe, {**inputs, **changes})
    of = ("prepare", "adapt") if config.adapt.enabled else Run(config).stages
    found = {stage: Run(config).folder(stage).fingerprint for stage in of}
    check(request.node.name, found)


def test_bytes_of_prepared_shards(golden: Golden) -> None:
    folder = Path(golden.results["prepare"].folder)
    names = [shard.name for shard in golden.results["prepare"].shards]
    assert names
    check("prepared", {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names})


def test_values_of_teacher_shards(golden: Golden) -> None:
    rows = TeacherSet(golden.results["cache"], "train")
    found, spans = [], []
    for row in rows:
        for layer in sorted(row.centers):
            center = np.asarray(row.centers[layer], np.float64)
            mass = np.asarray(row.mass[layer], np.float64)
            place = np.cos(np.arange(center.size)).reshape(center.shape)  # tells every place from every other
            found.append([(center * place).sum(), np.abs(center).sum(), (mass * np.arange(len(mass))).sum()])
            spans.append(len(mass))
    names = [shard.name for shard in golden.results["cache"].shards]
    check("teacher shards", {"names": names, "ids": [row.id for row in rows], "spans": spans})
    check_close("teacher values", np.concatenate(found).tolist(), rtol=1e-4)


def losses(distilled: Manifest) -> dict[str, list[float]]:
    history = Path(distilled.folder, "history.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, history) if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 11))
    return {name: [row[name] for row in rows] for name in TERMS}


def test_losses_of_ten_steps(golden: Golden) -> None:
    assert golden.results["distill"].notes["layout"].startswith("flat")
    for name, values in losses(golden.results["distill"]).items():
        check_close(f"flat {name}", values, rtol=1e-4)


def test_losses_of_ten_steps_with_padded_batches(golden: Golden, tmp_path: Path) -> None:
    """The values from before texts were laid end to end; dropout, which draws by shape, tells them from flat ones."""
    store = shutil.copytree(golden.config.store, tmp_path / "store", ignore=shutil.ignore_patterns("students"))
    changes = {"store": str(store), "layout": "padded", "tracking": golden.config.tracking.model_copy()}
    config = golden.config.model_copy(update=changes)
    config.tracking.enabled = False
    distilled = stages.distill(config)
    assert distilled.notes["layout"].startswith("padded")
    for name, values in losses(distilled).items():
        check_close(name, values, rtol=1e-4)


def test_names_in_mlflow(golden: Golden) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(golden.config))
    experiment = client.get_experiment_by_name(golden.config.tracking.experiment)
    assert experiment is not None
    names: dict[str, Any] = {}
    for run in client.search_runs([experiment.experiment_id]):
        names[run.data.tags.get("stage", "pipeline")] = {
            "metrics": sorted(run.data.metrics),
            "parameters": sorted(run.data.params),
            "tags": sorted(run.data.tags),
            "artifacts": sorted(_files(client, run.info.run_id)),
        }
    check("mlflow", names)


def _files(client: Any, run_id: str, path: str = "") -> Iterator[str]:
    for entry in client.list_artifacts(run_id, path):
        if entry.is_dir:
            yield from _files(client, run_id, entry.path)
        else:
            yield entry.path
