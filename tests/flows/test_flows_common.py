"""Parameters, retry conditions and the shape of the forms."""

from __future__ import annotations

import errno

import httpx
import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel

from flows import adapt, cache, common, distill, evaluate, pipeline, prepare
from flows.form import settle
from flows.retries import is_passing
from sra_core.config import DistillConfig, LoraConfig, ObjectiveConfig, RunConfig
from sra_core.config.load import load_config, recipe_names
from sra_core.errors import AlignmentError, ConfigError, DataError, ModelError, ShardError, StorageError, TrainingError

FLOWS = [prepare.prepare, adapt.adapt, cache.cache, distill.distill, evaluate.evaluate, pipeline.pipeline]


def test_untouched_form_is_the_recipe() -> None:
    assert settle("smoke", RunConfig(), {}) == load_config("smoke")


def test_no_recipe_starts_from_the_defaults() -> None:
    assert settle("none", RunConfig(), {}) == load_config(None)


def test_touched_fields_win_over_the_recipe_and_leave_the_rest() -> None:
    form = RunConfig(name="mine", distill=DistillConfig(epochs=3, lora=LoraConfig(rank=2)))
    settled = settle("smoke", form, {})
    smoke = load_config("smoke")
    assert (settled.name, settled.distill.epochs, settled.distill.lora) == ("mine", 3, LoraConfig(rank=2))
    assert settled.distill.batch_size == smoke.distill.batch_size
    assert settled.teacher == smoke.teacher


def test_overrides_win_over_the_form_and_may_restore_a_default() -> None:
    form = RunConfig(distill=DistillConfig(epochs=3))
    assert settle("smoke", form, {"distill.epochs": 7, "seed": 4}).distill.epochs == 7
    default = RunConfig().alignment.max_length
    assert settle("smoke", form, {"alignment.max_length": default}).alignment.max_length == default


def test_list_of_layer_pairs_survives_the_form() -> None:
    form = RunConfig(objective=ObjectiveConfig(layers=[(2, 1), (-1, -1)]))
    assert settle("smoke", form, {}).objective.layers == [(2, 1), (-1, -1)]


@pytest.mark.parametrize(
    ("overrides", "named"), [({"distill.epoch": 1}, "distill.epoch"), ({"seed": -1}, "seed"), ({"bogus": 1}, "bogus")]
)
def test_a_bad_override_is_refused_by_name(overrides: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        settle("smoke", RunConfig(), overrides)


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ConfigError, match="smoek"):
        settle("smoek", RunConfig(), {})


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (ShardError("a", "b"), True),
        (StorageError("a", "b"), True),
        (ConnectionResetError("a"), True),
        (TimeoutError("a"), True),
        (OSError(errno.EIO, "a"), True),
        (httpx.ConnectError("a"), True),
        (_caused(ModelError("a", "b"), ConnectionError("a")), True),
        (_caused(TrainingError("a", "b"), ChildProcessError("killed")), True),
        (ConfigError("a", "b"), False),
        (DataError("a", "b"), False),
        (AlignmentError("a", "b"), False),
        (TrainingError("a", "b"), False),
        (_caused(ModelError("a", "b"), OSError("no such model")), False),
        (FileNotFoundError("a"), False),
        (PermissionError("a"), False),
        (ValueError("a"), False),
        (KeyboardInterrupt(), False),
        (None, False),
    ],
)
def test_only_passing_causes_are_worth_a_second_try(error: BaseException | None, passing: bool) -> None:
    assert is_passing(error) is passing


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_the_form_offers_recipes_and_every_field_with_its_description(flow: object) -> None:
    schema = parameter_schema(flow).model_dump()
    assert list(schema["properties"]) == ["recipe", "config", "overrides"]
    assert schema["properties"]["recipe"]["enum"] == ["none", *recipe_names()]
    assert schema["required"] == []
    definitions = schema["definitions"]
    for model in _parts(RunConfig):
        for name, field in model.model_fields.items():
            shown = definitions[model.__name__]["properties"][name]
            part = definitions.get(shown.get("$ref", "").rpartition("/")[2], {})
            assert shown.get("description", part.get("description")) == field.description
            assert "default" in shown, f"{model.__name__}.{name} shows blank in the form"


def _parts(model: type[BaseModel]) -> list[type[BaseModel]]:
    parts = [model]
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            parts += _parts(field.annotation)
    return parts


@pytest.mark.parametrize(
    ("error", "kind", "passing"),
    [
        (ConfigError("no access with correct-horse", "unset correct-horse"), ConfigError, False),
        (StorageError("correct-horse", "b"), StorageError, True),
        (_caused(ModelError("correct-horse", "b"), ConnectionError("correct-horse")), ModelError, True),
        (ConnectionResetError("correct-horse"), StorageError, True),
        (ValueError("correct-horse"), RuntimeError, False),
        (_caused(ModelError("***", "b"), ValueError("correct-horse")), ModelError, False),
    ],
)
def test_an_error_with_a_secret_gives_way_to_one_without(
    error: Exception, kind: type[Exception], passing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "correct-horse")
    hidden = common._without_secrets(error)
    assert type(hidden) is kind
    assert "***" in str(hidden)
    assert "correct-horse" not in f"{hidden!r} {hidden.__cause__!r}"
    assert is_passing(hidden) is passing


def test_an_error_without_a_secret_stays_itself() -> None:
    error = ConfigError("a", "b")
    assert common._without_secrets(error) is error
