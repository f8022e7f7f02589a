"""A teacher that is split between main memory and disk gives the very bytes of one that is whole."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from sra_core.cache import capture_teacher
from sra_core.config import ModelRef, RunConfig
from sra_core.doctor import examine
from sra_core.errors import ModelError
from sra_core.models import lm_head, load_model, spread
from sra_core.models.structure import input_device, input_embeddings
from sra_core.plan import plan_run
from sra_core.shards import Manifest
from sra_core.watch import Watcher
from tests.cache.make import cache_folder, make_config, make_prepared

SIZES = "layers=4&width=64&heads=4&vocabulary=400&seed=1"
BOTH = r"cpu \(\d+ parts\), disk \(\d+ parts\)"
SOME, NONE = 600_000, 1
"""Bytes of main memory that hold some of a teacher's layers, and none."""


class Messages(Watcher):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)

    def of(self, start: str) -> str:
        return next((text for text in self.texts if text.startswith(start)), "")


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda size: monkeypatch.setattr(spread, "_ROOM", {"cpu": size})


def captured(config: RunConfig, prepared: Manifest, device: str, watch: Messages) -> dict[str, str]:
    """Checksums of a cache's files; the folder of the cache made before is another one's, as the store is."""
    config = config.model_copy(update={"cache": config.cache.model_copy(update={"device": device})})
    manifest = capture_teacher(config, prepared, cache_folder(config, prepared), watch)
    return {entry.name: entry.sha256 for entry in (*manifest.shards, *manifest.files)}


@pytest.mark.parametrize(
    ("teacher", "layout", "size", "where"),
    [
        ("llama", "flat", SOME, BOTH),
        ("llama", "padded", SOME, BOTH),
        ("gpt2", "flat", NONE, r"disk \(1 parts\)"),  # its head is tied to the embeddings
        ("mixtral", "flat", 4 * SOME, BOTH),  # its experts are stacked when they are loaded, and written anew
    ],
)
def test_the_same_bytes_wherever_the_layers_lie(
    teacher: str, layout: str, size: int, where: str, tmp_path: Path, room: Any
) -> None:
    room(size)
    made = []
    for device in ("cpu", "spread"):
        config = make_config(
            tmp_path / device,
            layout=layout if layout == "padded" else "auto",
            teacher={"source": f"random:{teacher}?{SIZES}"},
            cache={"layers": [1, 2, 3, 4], "token_states": True},
        )
        watch = Messages()
        made.append(captured(config, make_prepared(config), device, watch))
        assert watch.of("the teacher reads batches").startswith(f"the teacher reads batches {layout}")
    assert made[0] == made[1]
    assert re.fullmatch(f"the teacher is spread over {where}", watch.of("the teacher is spread"))


def test_weights_that_lie_on_disk_are_read_as_they_are(room: Any) -> None:
    ref = ModelRef(source=f"random:gpt2?{SIZES}")
    whole = load_model(ref)
    room(NONE)
    model = load_model(ref, device="spread")
    assert model.device.type == "meta"
    assert input_device(model).type == "cpu"
    torch.testing.assert_close(input_embeddings(model), input_embeddings(whole), rtol=0, atol=0)
    torch.testing.assert_close(lm_head(model).weight, lm_head(whole).weight, rtol=0, atol=0)
    weights = dict(spread.every_weight(model))
    for name, weight in whole.named_parameters():
        assert torch.equal(weights[name], weight), name


def test_what_was_written_for_it_goes_with_the_model(
    tmp_path: Path, room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread.tempfile, "tempdir", str(tmp_path))
    room(NONE)
    model = load_model(ModelRef(source=f"random:mixtral?{SIZES}"), device="spread")
    assert any(tmp_path.rglob("*.safetensors"))
    del model
    gc.collect()
    assert not any(tmp_path.iterdir())


def test_numbers_that_are_none_are_found_on_disk_too(
    tmp_path: Path, room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(ModelRef(source=f"random:llama?{SIZES}"))
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 3] = float("nan")
    model.save_pretrained(tmp_path)
    monkeypatch.setattr("sra_core.models.loading.check_folder", lambda folder, ref: None)  # large ones get a glance
    room(NONE)
    with pytest.raises(ModelError, match=r"infinite weights in model\.layers\.2\.mlp\.down_proj\.weight"):
        load_model(ModelRef(source=str(tmp_path)), device="spread")


def test_one_that_fits_is_on_one_device() -> None:
    model = load_model(ModelRef(source=f"random:llama?{SIZES}"), device="spread")
    assert spread.spread_over(model) == ""
    assert model.device == input_device(model)


@pytest.mark.parametrize(("changes", "field"), [({"workers": 2}, "workers"), ({"compile": True}, "compile")])
def test_what_does_not_go_with_it_is_refused_when_the_config_is_built(
    changes: dict[str, Any], field: str, tmp_path: Path
) -> None:
    config = make_config(tmp_path)
    with pytest.raises(ValidationError, match=f"{field}: .* set {field} to"):
        type(config.cache).model_validate({"device": "spread", **changes})


def test_doctor_and_plan_know_it(tmp_path: Path, room: Any) -> None:
    room(SOME)
    config = make_config(tmp_path, cache={"device": "spread"}, teacher={"source": f"random:llama?{SIZES}"})
    told = [finding for finding in examine(config) if "spread" in finding.text]
    assert [finding.level for finding in told] == ["slow"]
    assert "over 0 GPUs" in told[0].text
    plan = plan_run(config, samples=8)
    assert plan.devices["cache"] == "spread"
    assert plan.seconds["cache"] > 0
