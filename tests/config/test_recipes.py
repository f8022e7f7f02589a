"""How a config is put together, rule by rule: flag > environment > recipe > default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import sra_core
from sra_core.config import RunConfig
from sra_core.config.load import OTHER_VARIABLES, load_config, parse_overrides, recipe_names, recipe_path
from sra_core.errors import ConfigError


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndistill:\n  batch_size: 3\n  epochs: 7\n")
    return str(path)


def test_recipe_beats_default(recipe: str) -> None:
    assert RunConfig().distill.batch_size != 3
    assert load_config(recipe).distill.batch_size == 3


def test_environment_beats_recipe(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRA_DISTILL__BATCH_SIZE", "5")
    assert load_config(recipe).distill.batch_size == 5


def test_flag_beats_environment(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRA_DISTILL__BATCH_SIZE", "5")
    assert load_config(recipe, {"distill": {"batch_size": 6}}).distill.batch_size == 6


def test_each_source_sets_only_its_own_fields(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRA_DISTILL__CLIP", "0.5")
    distill = load_config(recipe, {"distill": {"warmup": 0.2}}).distill
    assert (distill.batch_size, distill.epochs, distill.clip, distill.warmup) == (3, 7, 0.5, 0.2)
    assert distill.accumulation == RunConfig().distill.accumulation


def test_lists_come_from_the_environment_as_json(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRA_OBJECTIVE__LAYERS", "[[3, 2], [4, 4]]")
    assert load_config(recipe).objective.layers == [(3, 2), (4, 4)]


def test_a_list_that_is_not_json_names_the_environment(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRA_OBJECTIVE__LAYERS", "3-2")
    with pytest.raises(ConfigError, match="environment variable SRA_OBJECTIVE__LAYERS: '3-2' cannot be read"):
        load_config(recipe)


def test_an_unknown_section_in_the_environment_is_refused(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRA_DISTIL__EPOCHS", "2")
    with pytest.raises(ConfigError, match=r"SRA_DISTIL__EPOCHS.*did you mean 'distill'"):
        load_config(recipe)


@pytest.mark.parametrize(
    ("variable", "hint"), [("SRA_STOER", "did you mean 'store'"), ("SRA_FOO", "known are name, recipe, store")]
)
def test_an_unknown_variable_is_refused(recipe: str, monkeypatch: pytest.MonkeyPatch, variable: str, hint: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ConfigError, match=f"environment variable {variable}: no field .*{hint}"):
        load_config(recipe)


def test_variables_that_stand_for_no_field_are_let_through(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OTHER_VARIABLES:
        monkeypatch.setenv(name, "x")
    assert load_config(recipe).name == "mine"


def test_every_variable_that_the_project_reads_is_a_field_or_let_through() -> None:
    root = Path(sra_core.__file__).parent.parent
    files = [path for folder in ("sra_core", "flows", "deploy", "docker") for path in (root / folder).rglob("*.*")]
    texts = [path.read_text() for path in files if path.suffix in (".py", ".yaml", ".json", ".env", ".Dockerfile")]
    named = {name for text in texts for name in re.findall(r"\bSRA_[A-Z]+(?:_[A-Z]+)*\b(?!_)", text)}
    sections = {f"SRA_{name.upper()}" for name in RunConfig.model_fields}
    assert {"SRA_STORE", "SRA_CACHE_HOME"} <= named
    assert named - sections <= OTHER_VARIABLES


def test_an_unknown_key_names_the_nearest_field(recipe: str) -> None:
    with pytest.raises(ConfigError, match=r"distill\.epoch: unknown field; did you mean 'epochs'"):
        load_config(recipe, {"distill": {"epoch": 1}})


def test_a_bad_value_names_its_field(recipe: str) -> None:
    problem = _text(recipe, {"distill": {"epochs": "many"}})
    assert problem == "distill.epochs: must be a number, not 'many' (from --set)"


def _text(recipe: str, overrides: dict[str, Any] | None = None, source: str = "--set") -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides, source)
    return caught.value.problem


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("seed", "x", "seed: must be an integer, not 'x'"),
        ("seed", -1, "seed: must be greater than or equal to 0, not -1"),
        ("objective.cosine", "w", "objective.cosine: must be a number or a list, not 'w'"),
        ("objective.layers", [[1]], "objective.layers.0.1: is missing"),
        ("objective.layers", [[0, 1]], "objective.layers: [0, 1] is not a pair of layers; count from 1, or -1 for"),
        ("distill.micro_batch", "x", "distill.micro_batch: must be an integer or 'auto', not 'x'"),
        ("distill.lora", 3, "distill.lora: must be a mapping of fields, not 3"),
        ("objective.layers", [[3, 2], [2, 1]], "objective.layers: [2, 1] stands after a pair of the teacher's layer 3"),
        (
            "objective.layers",
            [[-1, -1], [2, 1]],
            "objective.layers: [2, 1] stands after a pair of the teacher's layer -1",
        ),
        (
            "objective.mass_power",
            0.5,
            "objective.mass_power: spans are weighed by no mass; set objective.weighted_loss",
        ),
        ("distill.keep_adapter", True, "distill.keep_adapter: all weights are trained and there is none"),
        ("distill.keep_best", "x", "distill.keep_best: must be true or false, not 'x'"),
        ("cache.dtype", "int9", "cache.dtype: must be one of 'bfloat16', 'float32', 'int8' or 'fp8', not 'int9'"),
        ("name", 1, "name: must be text, not 1"),
    ],
)
def test_problems_are_said_in_plain_words(recipe: str, field: str, value: Any, said: str) -> None:
    nested: Any = value
    for key in reversed(field.split(".")):
        nested = {key: nested}
    assert _text(recipe, nested).startswith(said)


def test_the_source_of_a_bad_value_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("distill:\n  epochs: many\n  offload: true\n")
    assert f"epochs: must be a number, not 'many' (from recipe '{path}')" in _text(str(path))
    monkeypatch.setenv("SRA_DISTILL__EPOCHS", "more")
    assert "not 'more' (from environment variable SRA_DISTILL__EPOCHS)" in _text(str(path))
    assert "not 'most' (from form)" in _text(str(path), {"distill": {"epochs": "most"}}, "form")
    monkeypatch.setenv("SRA_DISTILL__EPOCHS", "3")
    contradiction = _text(str(path), {"distill": {"zero_stage": 0}})
    assert contradiction.startswith("distill.offload: there is nothing")
    assert contradiction.endswith(f"(from recipe '{path}')")


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'quickstrat'.*\n.*did you mean 'quickstart'"):
        load_config("quickstrat")


@pytest.mark.parametrize("text", ["just words", "- a\n- list", "a: [unclosed"])
def test_a_recipe_that_is_no_mapping_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_config(str(path))


@pytest.mark.parametrize(
    "text", ["distill:\n  epochs: 2\nseed: 1\ndistill:\n  clip: 2\n", "distill: {clip: 1, clip: 2}"]
)
def test_a_key_that_stands_twice_is_refused_not_read_as_its_last(tmp_path: Path, text: str) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"twice\.yaml.*'(distill|clip)' stands here and in line 1; write it once"):
        load_config(str(path))


def test_a_section_that_merges_another_may_say_its_fields_anew(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text("adapt: &steps\n  epochs: 2\n  clip: 3\ndistill:\n  <<: *steps\n  clip: 2\n")
    assert load_config(str(path)).distill.clip == 2


def test_a_section_set_whole_keeps_what_was_set_of_it_before() -> None:
    made = parse_overrides(["distill.epochs=2", "distill={clip: 2}", "distill.lora.rank=4", "distill.lora=null"])
    assert made == {"distill": {"epochs": 2, "clip": 2, "lora": None}}


def test_overrides_are_nested_and_read_as_yaml() -> None:
    made = parse_overrides(["distill.epochs=2", "objective.layers=[[1, 2]]", "distill.lora.rank=4", "name=a=b"])
    assert made == {
        "distill": {"epochs": 2, "lora": {"rank": 4}},
        "objective": {"layers": [[1, 2]]},
        "name": "a=b",
    }


@pytest.mark.parametrize("assignment", ["distill.epochs", "=2", "distill..epochs=2", "name=[1"])
def test_a_malformed_override_says_how_to_write_it(assignment: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_overrides([assignment])


def test_contradicting_overrides_are_refused() -> None:
    with pytest.raises(ConfigError, match="contradicts"):
        parse_overrides(["distill=1", "distill.epochs=2"])


def test_every_shipped_recipe_loads_and_says_what_it_is_for() -> None:
    assert {"quickstart", "smoke"} <= set(recipe_names())
    for name in recipe_names():
        load_config(name)
        assert recipe_path(name).read_text().startswith("# ")


def test_a_recipe_can_extend_another(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("distill: {batch_size: 3, epochs: 7}\ncorpus: {columns: {instruction: q}}\n")
    child = tmp_path / "child.yaml"
    child.write_text(f"extends: {base}\ndistill: {{epochs: 8}}\ncorpus: {{columns: {{response: a}}}}\n")
    config = load_config(str(child))
    assert (config.distill.batch_size, config.distill.epochs) == (3, 8)
    assert config.corpus.columns == {"instruction": "q", "response": "a"}


def test_a_recipe_that_extends_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text(f"extends: {path}\n")
    with pytest.raises(ConfigError, match="extends itself"):
        load_config(str(path))


def test_pairs_of_the_paper_share_its_settings() -> None:
    medium = load_config("paper-qwen1.5-1.8b-gpt2-340m")
    assert medium.distill.lora is None
    assert medium.objective.temperature == 5
    assert medium.objective.layers == [(22, 22), (24, 24)]
    small = load_config("paper-qwen1.5-1.8b-gpt2-120m")
    assert small.distill.lora is not None
    assert small.distill.lora.rank == 16
    assert small.distill.batch_size * small.distill.accumulation == 64
    weights = small.objective
    assert (weights.alpha, weights.cosine, weights.geometry, weights.logit) == (0.5, 1, 50, 1)
    assert (weights.logit_reduction, weights.annealing, weights.weighted_loss) == ("sum", 0, True)
