"""Capture gives what the method's formulas give, whatever the batches, and the stage keeps it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sra_core.cache import capture_teacher, identity, load_teacher, make_capture
from sra_core.config import ModelRef, RunConfig
from sra_core.errors import ConfigError, ModelError, ShardError
from sra_core.models import TeacherCapture, choose_layout, load_head, load_model, predicting, resolve, token_batches
from sra_core.shards import Manifest, PreparedRow, PreparedSet, StageFolder, TeacherSet
from sra_core.watch import Watcher
from tests.cache.make import TEXTS, cache_folder, make_config, make_prepared, run_over
from tests.cache.plain import plain_row

TEACHERS = {
    "llama": "random:llama?layers=3&width=32&heads=2&vocabulary=400&seed=1",
    "gpt2": "random:gpt2?layers=3&width=32&heads=2&vocabulary=400&seed=1",
    "qwen2": "random:qwen2?layers=3&width=32&heads=4&kv_heads=2&vocabulary=400&seed=1",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return make_config(tmp_path_factory.mktemp("capture"))


@pytest.fixture(scope="module")
def prepared(config: RunConfig) -> Manifest:
    return make_prepared(config)


@pytest.fixture(scope="module")
def rows(prepared: Manifest) -> list[PreparedRow]:
    return list(PreparedSet(prepared, "train"))


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", TEACHERS)
def test_capture_equals_the_formulas_of_the_method(name: str, weighted: bool, rows: list[PreparedRow]) -> None:
    ref = ModelRef(source=TEACHERS[name])
    eager = AutoModelForCausalLM.from_pretrained(resolve(ref), attn_implementation="eager").eval()
    capture = TeacherCapture(load_model(ref), [1, 2, 3], 4096, weighted, token_states=True)
    for row, kept in zip(rows, capture(rows), strict=True):
        centers, mass, states = plain_row(eager, row, [1, 2, 3], weighted)
        assert kept.id == row.id
        for layer in (1, 2, 3):
            np.testing.assert_allclose(kept.centers[layer], centers[layer], rtol=2e-5, atol=2e-5)
            np.testing.assert_allclose(kept.mass[layer], mass[layer], atol=2e-6)
            assert 0 < kept.mass[layer].sum() < 1  # the prompt and the end of text hold the rest
        np.testing.assert_allclose(kept.states, states[predicting(row)], rtol=2e-5, atol=2e-5)
        assert len(kept.states) == len(row.teacher_ids) - row.teacher_response


def test_a_teacher_without_attention_gives_plain_means(rows: list[PreparedRow]) -> None:
    model = load_model(ModelRef(source="random:mamba?layers=2&width=16&vocabulary=400"))
    capture = TeacherCapture(model, [1, 2], 4096, weighted_pooling=False, attention=False)
    for row, kept in zip(rows, capture(rows), strict=True):
        ids = torch.tensor(np.asarray(row.teacher_ids))[None]
        first, _, final = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        for layer, states in ((1, first), (2, final)):
            means = [states[0, begin:end].mean(0) for begin, end in row.teacher_spans.tolist()]
            np.testing.assert_allclose(kept.centers[layer], torch.stack(means).detach(), rtol=2e-5, atol=2e-5)


def test_capture_does_not_depend_on_batches_or_order(rows: list[PreparedRow]) -> None:
    model = load_model(ModelRef(source=TEACHERS["llama"]))

    def captured(budget: int, order: list[int]) -> dict:
        made = TeacherCapture(model, [2, 3], budget, token_states=True)([rows[k] for k in order])
        return {row.id: row for row in made}

    forward = list(range(len(rows)))
    alone = captured(1, forward)
    for budget, order in ((130, forward), (4096, forward), (4096, forward[::-1]), (300, [3, 1, 6, 0, 5, 2, 4])):
        other = captured(budget, order)
        for name, row in alone.items():
            for layer in (2, 3):
                np.testing.assert_allclose(other[name].centers[layer], row.centers[layer], atol=1e-5)
                np.testing.assert_allclose(other[name].mass[layer], row.mass[layer], atol=1e-5)
            np.testing.assert_allclose(other[name].states, row.states, atol=1e-5)


def test_the_lm_head_is_never_run(rows: list[PreparedRow]) -> None:
    model = load_model(ModelRef(source=TEACHERS["llama"]))
    ran = []
    model.get_output_embeddings().register_forward_hook(lambda *_: ran.append(1))
    TeacherCapture(model, [3], 4096, token_states=True)(rows)
    assert ran == []


def test_states_that_are_no_numbers_are_not_kept(rows: list[PreparedRow]) -> None:
    model = load_model(ModelRef(source=TEACHERS["llama"]))
    choose_layout(model)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.inf
    with pytest.raises(ModelError, match=r"computes of example e\d holds NaN or infinity \(layer 3\)\n  -> set cac"):
        TeacherCapture(model, [2, 3], 4096)(rows)
    with pytest.raises(ModelError, match=r"\(the last states\)"):
        TeacherCapture(model, [], 1, token_states=True)(rows)


def test_batches_stay_within_the_budget_and_lose_nothing() -> None:
    rng = np.random.default_rng(0)
    for budget in (1, 50, 333, 10**6):
        lengths = rng.integers(1, 100, 57).tolist()
        batches = list(token_batches(lengths, budget))
        assert sorted(index for batch in batches for index in batch) == list(range(57))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
    assert list(token_batches([], 10)) == []
    assert list(token_batches([5, 9, 9, 1], 18)) == [[1, 2], [0, 3]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "fp8"])
def test_the_stage_keeps_every_example_in_the_order_of_the_prepared_ones(
    dtype: str, config: RunConfig, prepared: Manifest, rows: list[PreparedRow]
) -> None:
    config = with_cache(config, dtype=dtype, token_states=True, compression="zstd" if dtype == "int8" else "none")
    folder = cache_folder(config, prepared)
    manifest = capture_teacher(config, prepared, folder, Watcher())
    kept = TeacherSet(manifest, "train")
    live = make_capture(config, folder, load_model(config.teacher))(rows)
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 4e-2, "fp8": 1e-1}[dtype]
    for row, back in zip(live, kept, strict=True):
        assert back.id == row.id
        for layer in (2, 3):
            np.testing.assert_allclose(back.centers[layer], row.centers[layer], atol=tolerance)
            np.testing.assert_allclose(back.mass[layer], row.mass[layer], atol=1e-5)
        np.testing.assert_allclose(back.states, row.states, atol=tolerance)
    assert manifest.notes["layout"].startswith("flat: states differ by")
    assert manifest.counts["examples"] == len(rows)
    assert manifest.counts["spans"] == sum(len(row.teacher_spans) for row in rows)
    assert manifest.counts["states"] == sum(len(row.states) for row in live)
    assert 0 <= manifest.metrics["cache/center_error_mean"] <= manifest.metrics["cache/center_error_max"] < tolerance
    assert (manifest.metrics["cache/center_error_max"] > 1e-4) == (dtype != "float32")


def test_the_head_that_is_kept_gives_the_teachers_logits(config: RunConfig, prepared: Manifest) -> None:
    config = with_cache(config, token_states=True)
    folder = cache_folder(config, prepared)
    kept = load_head(Path(capture_teacher(config, prepared, folder, Watcher()).folder))
    model = load_model(config.teacher)
    states = torch.randn(5, kept.width)
    logits = model.get_output_embeddings()(states)
    torch.testing.assert_close(kept.full.logits(states), logits)
    torch.testing.assert_close(kept.head.logits(states), logits[:, kept.teacher_ids])
    assert torch.equal(kept.embedding, model.get_input_embeddings().weight)
    assert (kept.layers, kept.width) == (3, 32)


def test_without_token_states_only_the_shared_rows_are_kept(config: RunConfig, prepared: Manifest) -> None:
    manifest = capture_teacher(config, prepared, cache_folder(config, prepared), Watcher())
    kept = load_head(Path(manifest.folder))
    assert kept.full is None
    assert kept.embedding is None
    assert not TeacherSet(manifest, "train").states
    assert manifest.counts["shared_vocabulary"] == len(kept.teacher_ids) == len(kept.head.weight)


def test_a_finished_shard_is_not_made_again_and_a_damaged_one_is(config: RunConfig, prepared: Manifest) -> None:
    config = with_cache(config, dtype="float32")
    folder = cache_folder(config, prepared)
    first = capture_teacher(config, prepared, folder, Watcher())
    times = shard_times(folder)
    data = bytearray((folder.path / "train-00001.arrow").read_bytes())
    data[len(data) // 2] ^= 1
    (folder.path / "train-00001.arrow").write_bytes(data)
    folder.reset()
    second = capture_teacher(config, prepared, folder, Watcher())
    assert second.content == first.content
    changed = {name for name, when in shard_times(folder).items() if when != times[name]}
    assert changed == {"train-00001.arrow"}


def shard_times(folder: StageFolder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.path.glob("*.arrow")}


def test_storing_too_coarsely_fails_the_stage(config: RunConfig, prepared: Manifest) -> None:
    config = with_cache(config, dtype="int8", max_center_error=1e-4)
    folder = cache_folder(config, prepared)
    with pytest.raises(ShardError, match=r"center_error_max is .* past 0\.0001") as caught:
        capture_teacher(config, prepared, folder, Watcher())
    assert "cache.dtype" in caught.value.remedy
    assert folder.manifest() is None


def test_an_objective_for_one_tokenizer_is_refused_before_the_teacher_runs(
    config: RunConfig, prepared: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sra_core.cache.teacher.load_model", lambda *_: pytest.fail("the teacher was loaded"))
    config = config.model_copy(update={"objective": config.objective.model_copy(update={"name": "fkl"})})
    with pytest.raises(ConfigError, match="same tokenizer"):
        capture_teacher(config, prepared, cache_folder(config, prepared), Watcher())


def test_progress_ends_at_the_number_of_examples(config: RunConfig, prepared: Manifest) -> None:
    class Meter(Watcher):
        def __init__(self) -> None:
            self.seen: list[tuple[int, int]] = []

        def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
            self.seen.append((done, total))

    config = with_cache(config, dtype="int8", compression="zstd", tokens_per_batch=200)
    meter = Meter()
    capture_teacher(config, prepared, cache_folder(config, prepared), meter)
    assert meter.seen[-1] == (len(TEXTS), len(TEXTS))
    assert [done for done, _ in meter.seen] == sorted(done for done, _ in meter.seen)


@pytest.mark.slow
def test_compiled_layers_give_the_same(config: RunConfig, rows: list[PreparedRow]) -> None:
    plain = make_capture(config, folder_of(config), load_teacher(config))(rows)
    compiled = make_capture(config, folder_of(config), load_teacher(with_cache(config, compile=True)))(rows)
    for row, other in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(other.centers[3], row.centers[3], atol=1e-5)
        np.testing.assert_allclose(other.mass[2], row.mass[2], atol=1e-5)


def folder_of(config: RunConfig) -> StageFolder:
    return StageFolder(config.store, "cache", identity(run_over(config, {})))


def with_cache(config: RunConfig, **values: object) -> RunConfig:
    return config.model_copy(update={"cache": config.cache.model_copy(update=values)})
