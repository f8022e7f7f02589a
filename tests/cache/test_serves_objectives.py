"""One cache with everything serves every objective: what reaches the objective is what the teacher computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sra_core.cache import capture_teacher, find_cache
from sra_core.config import RunConfig
from sra_core.models import (
    build_student,
    layer_count,
    load_head,
    load_model,
    load_tokenizer,
    resolve_layer,
)
from sra_core.objective import build_objective, student_layers
from sra_core.shards import Manifest, PreparedSet, TeacherSet
from sra_core.training.context import distill_data, objective_context
from sra_core.training.module import DistillModule
from sra_core.watch import Watcher
from tests.cache.make import cache_folder, make_config, make_prepared

ACROSS = ("sra", "uld", "mined", "dskd", "multilevel_ot", "alm")
SAME = ("fkl", "rkl", "js", "skl")


def everything(store: Path, student: str | None = None) -> tuple[RunConfig, Manifest]:
    """A prepared folder and one cache with all that any objective reads."""
    changes = {"student": {"source": student}} if student else {}
    config = make_config(store, cache={"token_states": True, "dtype": "float32", "check": 0}, **changes)
    prepared = make_prepared(config)
    capture_teacher(config, prepared, cache_folder(config, prepared), Watcher())
    return config, prepared


@pytest.fixture(scope="module")
def across(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Manifest]:
    return everything(tmp_path_factory.mktemp("across"))


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Manifest]:
    teacher = "random:llama?layers=3&width=32&heads=2&vocabulary=400&seed=1"
    return everything(tmp_path_factory.mktemp("same"), teacher)


def serving(config: RunConfig, prepared: Manifest) -> Manifest:
    """The cache that training under this config reads."""
    manifest = find_cache(cache_folder(config, prepared)).manifest()
    assert manifest is not None
    return manifest


def named(config: RunConfig, name: str) -> RunConfig:
    """The config with another objective, without asking for more than that needs."""
    cache = config.cache.model_copy(update={"token_states": False})
    return config.model_copy(update={"cache": cache, "objective": config.objective.model_copy(update={"name": name})})


@pytest.mark.parametrize("name", [*ACROSS, *SAME])
def test_every_objective_trains_from_it(name: str, request: pytest.FixtureRequest) -> None:
    config, prepared = request.getfixturevalue("same" if name in SAME else "across")
    config = named(config, name)
    cache = serving(config, prepared)
    torch.manual_seed(0)
    student = build_student(config, load_tokenizer(config.student), [])
    context = objective_context(config, Path(prepared.folder), Path(cache.folder), student)
    layers = [resolve_layer(layer_count(student), layer) for layer in student_layers(config.objective)]
    module = DistillModule(student, build_objective(config.objective, context), layers)
    data = distill_data(config, PreparedSet(prepared, "train"), TeacherSet(cache, "train"), context_layers(cache), 0)
    batch = data.batch(range(7), 0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss = module(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert set(batch.teacher) == ({2, 3} if name == "sra" else set())
    assert (batch.teacher_states is None) == (name == "sra")


def context_layers(cache: Manifest) -> int:
    return load_head(Path(cache.folder)).layers


def test_token_states_stand_where_they_predict(across: tuple[RunConfig, Manifest]) -> None:
    config, prepared = across
    config = named(config, "uld")
    rows = PreparedSet(prepared, "train")
    data = distill_data(config, rows, TeacherSet(serving(config, prepared), "train"), 3, 0)
    batch = data.batch([5, 2, 3], 0)
    model = load_model(config.teacher)
    with torch.no_grad():
        final = model.get_decoder()(
            input_ids=batch.teacher_ids, attention_mask=torch.ones_like(batch.teacher_ids)
        ).last_hidden_state
    states = batch.teacher_states[3]
    for place, index in enumerate([5, 2, 3]):
        row = rows[index]
        length, first = len(row.teacher_ids), row.teacher_response
        assert batch.teacher_ids[place, :length].tolist() == row.teacher_ids.tolist()
        assert batch.teacher_labels[place].tolist() == [
            *[-100] * first,
            *row.teacher_ids[first:].tolist(),
            *[-100] * (states.shape[1] - length),
        ]
        predicts = slice(first - 1, length - 1)
        torch.testing.assert_close(states[place, predicts], final[place, predicts], atol=1e-5, rtol=1e-4)
        assert not states[place, : first - 1].any()
        assert not states[place, length - 1 :].any()
    ranges = [tuple(pair) for index in (5, 2, 3) for pair in rows[index].teacher_spans.tolist()]
    assert [tuple(pair) for pair in batch.teacher_range.tolist()] == ranges


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", torch.bfloat16), ("int8", torch.float32)])
def test_centres_reach_the_objective_in_the_type_they_are_stored_in(
    dtype: str, kind: torch.dtype, tmp_path: Path
) -> None:
    config = make_config(tmp_path, cache={"dtype": dtype})
    prepared = make_prepared(config)
    cache = capture_teacher(config, prepared, cache_folder(config, prepared), Watcher())
    kept = TeacherSet(cache, "train")
    batch = distill_data(config, PreparedSet(prepared, "train"), kept, 3, 0).batch([4, 0], 0)
    assert batch.teacher[2].centers.dtype == kind
    expected = torch.cat([torch.from_numpy(kept[index].centers[2].copy()) for index in (4, 0)])
    assert torch.equal(batch.teacher[2].centers.float(), expected)
