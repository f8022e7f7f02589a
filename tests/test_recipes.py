"""How a config is put together, rule by rule: flag > environment > recipe > default."""

from __future__ import annotations

from pathlib import Path

import pytest

from sra_core.config import RunConfig
from sra_core.errors import ConfigError
from sra_core.recipes import load_config, parse_overrides, recipe_names, recipe_path


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
    with pytest.raises(ConfigError, match="environment"):
        load_config(recipe)


def test_an_unknown_section_in_the_environment_is_refused(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRA_DISTIL__EPOCHS", "2")
    with pytest.raises(ConfigError, match=r"SRA_DISTIL__EPOCHS.*did you mean 'distill'"):
        load_config(recipe)


def test_an_unknown_key_names_the_nearest_field(recipe: str) -> None:
    with pytest.raises(ConfigError, match=r"distill\.epoch: unknown field; did you mean 'epochs'"):
        load_config(recipe, {"distill": {"epoch": 1}})


def test_a_bad_value_names_its_field(recipe: str) -> None:
    with pytest.raises(ConfigError, match=r"distill\.epochs: Input should be a valid number"):
        load_config(recipe, {"distill": {"epochs": "many"}})


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'quickstrat'.*\n.*did you mean 'quickstart'"):
        load_config("quickstrat")


@pytest.mark.parametrize("text", ["just words", "- a\n- list", "a: [unclosed"])
def test_a_recipe_that_is_no_mapping_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_config(str(path))


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
    assert small.objective.logit_reduction == "sum"
