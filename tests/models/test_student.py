"""How a student starts."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3Config, PreTrainedModel

from sra_core.config import ModelRef, RunConfig, StudentConfig, TeacherConfig
from sra_core.errors import ModelError
from sra_core.models import (
    build_student,
    layer_count,
    load_model,
    load_tokenizer,
    resolve,
    tokenizer_identity,
    train_tokenizer,
)
from sra_core.models.importance import layer_importance
from sra_core.models.student import spread_layers
from tests.models import walk

TEACHER = "random:llama?layers=6&width=32&heads=4&kv_heads=2&vocabulary=400"
SMALLER = train_tokenizer(["a student has a tokenizer of its own, with its own merges"] * 3, 280)
SAMPLE = ["the span of a text", "def span(text): return text"]


def run_config(teacher: str = TEACHER, seed: int = 0, **student: Any) -> RunConfig:
    return RunConfig(teacher=TeacherConfig(source=teacher), student=StudentConfig(**student), seed=seed)


def source_tokenizer(source: str = TEACHER):
    return load_tokenizer(ModelRef(source=source))


def same(left: PreTrainedModel, right: PreTrainedModel) -> bool:
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


# Which layers


@pytest.mark.parametrize(
    ("count", "keep", "layers"),
    [
        (30, 8, [0, 4, 8, 12, 17, 21, 25, 29]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (6, 2, [0, 5]),
        (6, 1, [0]),
        (5, 3, [0, 2, 4]),
    ],
)
def test_spread_layers(count: int, keep: int, layers: list[int]) -> None:
    assert spread_layers(count, keep) == layers


@given(st.integers(2, 100).flatmap(lambda count: st.tuples(st.just(count), st.integers(2, count))))
def test_layers_are_spread_evenly(case: tuple[int, int]) -> None:
    count, keep = case
    layers = spread_layers(count, keep)
    gaps = [b - a for a, b in pairwise(layers)]
    assert (layers[0], layers[-1], len(layers)) == (0, count - 1, keep)
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_more_layers_than_there_are() -> None:
    with pytest.raises(ModelError, match=r"cannot keep 7 of 6 layers\n  -> set student.keep_layers to 6 or less"):
        build_student(run_config(keep_layers=7), source_tokenizer())


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "phi", "mistral", "gemma2", "qwen2"])
def test_a_pruned_student_computes_what_the_kept_layers_compute(name: str) -> None:
    source = f"random:{name}?layers=5&heads=4"
    student = build_student(run_config(source, keep_layers=3), source_tokenizer(source))
    by_hand = load_model(ModelRef(source=source))
    layers = next(child for child in by_hand.get_decoder().children() if isinstance(child, torch.nn.ModuleList))
    del layers[3], layers[1]
    by_hand.config.num_hidden_layers = 3
    if getattr(by_hand.config, "layer_types", None):
        by_hand.config.layer_types = [by_hand.config.layer_types[i] for i in (0, 2, 4)]
        assert student.config.layer_types == by_hand.config.layer_types
    ids = torch.randint(1, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(student(ids, use_cache=False).logits, by_hand(ids, use_cache=False).logits)
    assert layer_count(student) == 3


def test_all_layers_are_kept_by_default() -> None:
    assert same(build_student(run_config(), source_tokenizer()), load_model(ModelRef(source=TEACHER)))


def test_a_student_of_its_own_source() -> None:
    own = "random:gpt2?layers=3&vocabulary=300"
    student = build_student(run_config(source=own, keep_layers=2), source_tokenizer(own))
    assert student.config.model_type == "gpt2"
    assert layer_count(student) == 2


def test_importance_drops_the_layers_that_do_least(monkeypatch: pytest.MonkeyPatch) -> None:
    from sra_core.models import student as module

    def with_two_idle_layers(ref: ModelRef) -> PreTrainedModel:
        model = load_model(ref)
        with torch.no_grad():
            for number, layer in enumerate(model.model.layers):
                scale = 0 if number in (1, 3) else 20
                layer.self_attn.o_proj.weight.mul_(scale)
                layer.mlp.down_proj.weight.mul_(scale)
        return model

    monkeypatch.setattr(module, "load_model", with_two_idle_layers)
    scores = layer_importance(with_two_idle_layers(ModelRef(source=TEACHER)), source_tokenizer(), SAMPLE)
    assert scores[1] == pytest.approx(0, abs=1e-6)
    assert scores[3] == pytest.approx(0, abs=1e-6)
    assert min(scores[i] for i in (0, 2, 4, 5)) > 0.001
    config = run_config(keep_layers=4, layer_choice="importance")
    student = build_student(config, source_tokenizer(), SAMPLE)
    source = with_two_idle_layers(ModelRef(source=TEACHER))
    for mine, theirs in enumerate((0, 2, 4, 5)):
        assert torch.equal(
            student.model.layers[mine].mlp.down_proj.weight, source.model.layers[theirs].mlp.down_proj.weight
        )


def test_importance_is_one_minus_the_cosine_of_input_and_output() -> None:
    model, tokenizer = load_model(ModelRef(source=TEACHER)), source_tokenizer()
    expected, tokens = [0.0] * 6, 0
    raw: list[torch.Tensor] = []
    for layer in model.model.layers:  # output_hidden_states gives the last state after the norm: take it before
        layer.register_forward_hook(lambda *call: raw.append(call[2]))
    for text in SAMPLE:
        raw.clear()
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            model(ids)
        states = [state.detach() for state in (model.model.embed_tokens(ids), *raw)]
        for index in range(6):
            for a, b in zip(states[index][0], states[index + 1][0], strict=True):
                expected[index] += float(1 - a @ b / (a.norm() * b.norm()))
        tokens += ids.shape[1]
    assert layer_importance(model, tokenizer, SAMPLE) == pytest.approx([x / tokens for x in expected], rel=1e-3)


def test_importance_needs_a_sample() -> None:
    with pytest.raises(ModelError, match="no text to measure the layers on"):
        build_student(run_config(keep_layers=2, layer_choice="importance"), source_tokenizer())


# Which weights


def test_random_weights_have_the_sources_shape_and_nothing_of_its_weights() -> None:
    student = build_student(run_config(keep_layers=3, initial_weights="random"), source_tokenizer())
    source = load_model(ModelRef(source=TEACHER))
    assert layer_count(student) == 3
    assert student.lm_head.weight.shape == source.lm_head.weight.shape
    assert not torch.equal(student.lm_head.weight, source.lm_head.weight)
    assert not torch.equal(student.model.layers[0].mlp.up_proj.weight, source.model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("fields", [{"initial_weights": "random"}, {"embeddings": "random"}, {}])
def test_the_seed_alone_decides_and_the_global_generator_is_left_alone(fields: dict[str, str]) -> None:
    students = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        students.append(build_student(run_config(tokenizer="train", keep_layers=2, **fields), SMALLER))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(*students)
    other = build_student(run_config(tokenizer="train", keep_layers=2, seed=1, **fields), SMALLER)
    assert same(students[0], other) == (not fields)


# The tokenizer


@pytest.mark.parametrize("weights", ["source", "random"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "gpt_neox"])
def test_a_new_tokenizer_saved_and_loaded_with_no_code_of_ours(name: str, weights: str, tmp_path: Path) -> None:
    config = run_config(f"random:{name}?layers=3", keep_layers=2, tokenizer="train", initial_weights=weights)
    student = build_student(config, SMALLER)
    assert student.dtype == torch.float32
    assert student.get_input_embeddings().weight.shape[0] == student.config.vocab_size == 280
    assert student.get_output_embeddings().weight.shape[0] == 280
    student.save_pretrained(tmp_path)
    SMALLER.save_pretrained(tmp_path)
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert same(student, loaded)
    assert tokenizer_identity(tokenizer) == tokenizer_identity(SMALLER)
    for settings in (loaded.config, loaded.generation_config):
        assert (settings.eos_token_id, settings.pad_token_id, settings.bos_token_id) == (0, 0, None)
    ids = tokenizer("a student", return_tensors="pt")
    assert loaded.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] <= ids["input_ids"].shape[1] + 3


def test_the_sources_own_tokenizer_under_another_name_changes_nothing() -> None:
    student = build_student(run_config(tokenizer=TEACHER), source_tokenizer())
    assert same(student, load_model(ModelRef(source=TEACHER)))


@pytest.mark.parametrize(
    "student",
    [
        {"tokenizer": "source"},
        {"tokenizer": "source", "initial_weights": "random"},
        {"tokenizer": "source", "keep_layers": 2, "layer_choice": "importance"},
        {"tokenizer": "FOLDER"},
        {"tokenizer": "train"},
        {"tokenizer": "train", "initial_weights": "random"},
    ],
)
def test_tokens_that_the_source_has_no_embeddings_for(
    student: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = resolve(ModelRef(source="random:llama?layers=3"))
    shutil.copytree(source, tmp_path / "model")
    own = load_tokenizer(ModelRef(source=source))
    own.add_tokens(["distillation", "tokenizer"])
    own.save_pretrained(tmp_path / "model")
    student = student | {"tokenizer": student["tokenizer"].replace("FOLDER", str(tmp_path / "model"))}
    tokenizer = SMALLER if student["tokenizer"] == "train" else own
    model = build_student(run_config(str(tmp_path / "model"), **student), tokenizer, ["distillation of a tokenizer"])
    rows = len(tokenizer)
    assert len(model.get_input_embeddings().weight) == len(model.get_output_embeddings().weight) == rows
    assert model.config.vocab_size == rows
    model(**tokenizer("distillation of a tokenizer", return_tensors="pt"))
    if student != {"tokenizer": "train", "initial_weights": "random"}:
        assert "has 2 tokens beyond the 300 embeddings of its model" in caplog.text
    if student == {"tokenizer": "source"}:
        old = load_model(ModelRef(source=source)).get_input_embeddings().weight
        new = model.get_input_embeddings().weight
        assert torch.equal(new[:300], old)
        assert (new[300:] - old.mean(0)).norm(dim=-1).max() < 2 * old.std() * old.shape[1] ** 0.5


def test_a_composite_model_with_a_new_tokenizer(tmp_path: Path) -> None:
    """Gemma 3 with its vision part: sizes and special tokens stand in the config of its text part."""
    model = walk.tiny_model("gemma3")
    model.save_pretrained(tmp_path)
    source_tokenizer("random:llama").save_pretrained(tmp_path)
    for weights in ("source", "random"):
        config = run_config(str(tmp_path), tokenizer="train", initial_weights=weights)
        student = build_student(config, SMALLER)
        assert student.config.get_text_config().vocab_size == len(student.get_input_embeddings().weight) == 280
        student.save_pretrained(tmp_path / weights)
        assert same(student, load_model(ModelRef(source=str(tmp_path / weights))))


def test_a_model_that_does_not_exist() -> None:
    for fields in ({}, {"initial_weights": "random"}):
        with pytest.raises(ModelError, match="there is no folder"):
            build_student(run_config("/no/such/folder", **fields), SMALLER)


def test_fresh_weights_need_a_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no readable config"):
        build_student(run_config(str(tmp_path), initial_weights="random"), SMALLER)


def test_fresh_weights_of_an_encoder() -> None:
    with pytest.raises(ModelError, match="it is an encoder"):
        build_student(run_config("random:bert", initial_weights="random"), source_tokenizer("random:bert"))


def test_layers_that_differ_cannot_be_pruned(tmp_path: Path) -> None:
    config = DeepseekV3Config(
        vocab_size=60, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=3, q_lora_rank=4, kv_lora_rank=4, qk_rope_head_dim=4,
        qk_nope_head_dim=4, v_head_dim=4,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"the layers of .* are not alike"):
        build_student(run_config(str(tmp_path), keep_layers=2), SMALLER)
