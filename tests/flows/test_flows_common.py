"""Parameters, retry conditions and the shape of the forms."""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from huggingface_hub import errors as hub
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from pydantic import MISSING

from flows import adapt, benchmark, cache, common, distill, evaluate, generate, pipeline, prepare
from flows.form import SHORT, asks_for_config, own_name, settle
from flows.retries import is_passing
from sra_core.config import LoraConfig, RunConfig
from sra_core.config.load import load_config, recipe_names
from sra_core.config.reference import field_of
from sra_core.errors import AlignmentError, ConfigError, DataError, ModelError, ShardError, StorageError, TrainingError
from tests.config.test_secrets import ORDINARY, SECRETS

FLOWS = [
    prepare.prepare,
    adapt.adapt,
    cache.cache,
    distill.distill,
    evaluate.evaluate,
    generate.generate,
    pipeline.pipeline,
    benchmark.benchmark,
]


def test_untouched_form_is_the_recipe() -> None:
    assert settle("smoke") == load_config("smoke")
    assert settle("smoke", {}, {}, seed=None, name="", teacher=MISSING) == load_config("smoke")


def test_no_recipe_starts_from_the_defaults() -> None:
    assert settle("none") == load_config(None)


def test_each_part_of_the_form_wins_over_the_one_before() -> None:
    smoke = load_config("smoke")
    sections = {"name": "mine", "distill": {"epochs": 3, "batch_size": 2, "lora": {"rank": 2}}, "seed": 1}
    settled = settle("smoke", sections, {"distill.batch_size": 5}, batch_size=3, seed=0, objective="uld")
    assert (settled.name, settled.distill.epochs, settled.distill.lora) == ("mine", 3, LoraConfig(rank=2))
    assert (settled.distill.batch_size, settled.seed, settled.objective.name) == (5, 0, "uld")
    assert settled.objective.layers == smoke.objective.layers
    assert settled.teacher == smoke.teacher


def test_a_value_that_equals_its_default_wins_over_the_recipe_too() -> None:
    default = RunConfig().alignment.max_length
    assert load_config("smoke").alignment.max_length != default
    assert settle("smoke", {"alignment": {"max_length": default}}).alignment.max_length == default


def test_the_checksum_of_a_recipes_model_is_not_asked_of_another_one() -> None:
    assert load_config("quickstart").teacher.sha256
    settled = settle("quickstart", teacher="/models/mine")
    assert (settled.teacher.source, settled.teacher.sha256) == ("/models/mine", None)
    pinned = settle("quickstart", {}, {"teacher.sha256": "0" * 64}, teacher="/models/mine")
    assert pinned.teacher.sha256 == "0" * 64


@pytest.mark.parametrize(
    ("overrides", "named"), [({"distill.epoch": 1}, "distill.epoch"), ({"seed": -1}, "seed"), ({"bogus": 1}, "bogus")]
)
def test_a_bad_override_is_refused_by_name(overrides: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        settle("smoke", {}, overrides)


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ConfigError, match="smoek"):
        settle("smoek")


def test_names_that_prefect_makes_up_are_nobodys_own() -> None:
    from prefect.utilities.names import generate_slug

    assert {own_name(generate_slug(2)) for _ in range(300)} == {None}
    for made_up in ("phi983-acamar", "nu6-sasaki-terminus", "theta459-melina-d"):
        assert own_name(made_up) is None
    for typed in ("my sweep", "my-sweep", "run2-bigger", "exp-3", "alpha-sweep", "quickstart"):
        assert own_name(typed) == typed


def test_a_run_that_is_started_again_keeps_its_own_name_once() -> None:
    config = settle("smoke", name="my · sweep", seed=3)
    assert config.title == "smoke · sra · seed 3 · my · sweep"
    assert own_name(config.title) == "my · sweep"
    assert own_name(settle("smoke").title) is None
    assert settle("quality-smoke", name="mine").grid_title == "quality-smoke · 3 variants · seeds 1, 2 · mine"
    assert own_name(settle("quality-smoke", name="mine").grid_title) == "mine"


def _caused(*errors: Exception) -> Exception:
    """The first, caused by the second, and so on."""
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    return errors[0]


def _answered(status: int) -> Exception:
    """What the hub's client raises for an answer."""
    return hub.HfHubHTTPError("a", response=Mock(status_code=status))


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
        (_caused(ModelError("a", "b"), hub.LocalEntryNotFoundError("a"), hub.HTTPError("no route")), True),
        (_caused(DataError("a", "b"), OSError(errno.EIO, "PlaceError: payload"), Exception("payload")), True),
        (_caused(ModelError("a", "b"), _answered(503)), True),
        (_caused(ModelError("a", "b"), _answered(404)), False),
        (_caused(ModelError("a", "b"), hub.LocalEntryNotFoundError("a"), hub.OfflineModeIsEnabled("a")), False),
        (_caused(DataError("a", "b"), hub.OfflineModeIsEnabled("a")), False),
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
def test_the_form_shows_a_dozen_empty_fields_and_no_global_default(flow: Any) -> None:
    schema = parameter_schema(flow).model_dump()
    shown = schema["properties"]
    own = ["cells", "seeds"] if flow is benchmark.benchmark else []
    main = [name for name in SHORT.values() if flow is not benchmark.benchmark or name != "seed"]
    assert list(shown) == ["recipe", *main, *own, "overrides", "config"]
    assert [field["position"] for field in shown.values()] == list(range(len(shown)))
    assert len({field["title"] for field in shown.values()}) == len(shown)
    assert shown["recipe"]["enum"] == ["none", *recipe_names()]
    assert schema["required"] == []
    for name in main:
        assert "default" not in shown[name], "the form would send it, whatever the recipe says"
        assert shown[name]["type"] in ("string", "integer", "number"), "a plain box"
        (dotted,) = [dotted for dotted, short in SHORT.items() if short == name]
        assert shown[name]["description"] == f"`{dotted}`: {field_of(dotted).description}"
    assert not any("Args:" in field["description"] for field in shown.values())


def _errors(flow: Any, **parameters: Any) -> str:
    schema = parameter_schema(flow).model_dump_for_openapi()
    return " ".join(f"{error.json_path} {error.message}" for error in validate(parameters, schema))


def test_bad_values_are_refused_when_a_run_is_triggered() -> None:
    for parameters, named in (
        ({"config": {"distill": {"epochs": -1}}}, "$.config.distill.epochs"),
        ({"config": {"distill": {"epoch": 1}}}, "'epoch' was unexpected"),
        ({"config": {"distil": {}}}, "'distil' does not match"),
        ({"config": {"bench": {"seeds": [1]}}}, "'bench' does not match"),
        ({"seed": -1}, "$.seed"),
        ({"objective": "sgd"}, "'sgd' is not one of"),
    ):
        assert named in _errors(pipeline.pipeline, **parameters)
    assert _errors(benchmark.benchmark, config={"bench": {"seeds": [1]}}) == ""
    whole = load_config("paper").model_dump(mode="json", exclude={"bench"})
    assert _errors(pipeline.pipeline, recipe="smoke", config=whole, seed=None, epochs=2) == ""


def _dotted(values: dict[str, Any]) -> dict[str, Any]:
    ((section, part),) = values.items()
    return {f"{section}.{name}": value for name, value in part.items()} if isinstance(part, dict) else values


@pytest.mark.parametrize("values", [values for values, _, _ in SECRETS])
def test_secrets_are_refused_when_a_run_is_triggered_and_not_repeated(values: dict[str, Any]) -> None:
    for parameters in ({"config": values}, {"overrides": _dotted(values)}, {"overrides": values}):
        refused = _errors(pipeline.pipeline, **parameters)
        assert "text without a password, key or token" in refused
        assert not any(secret in refused for secret in ("SE/CR", "ET@", "pw@", "ghtoken", "sig=", "abc", "hf_A"))


def test_a_secret_is_refused_in_the_fields_shown_by_themselves() -> None:
    for flow in FLOWS:
        for name in ("name", "teacher", "student", "corpus"):
            assert f"$.{name} 'text without" in _errors(flow, **{name: "https://ann:pw@host/x"})
            assert _errors(flow, **{name: "https://host/x"}) == ""


@pytest.mark.parametrize("values", ORDINARY)
def test_ordinary_values_are_taken_when_a_run_is_triggered(values: dict[str, Any]) -> None:
    for parameters in ({"config": values}, {"overrides": _dotted(values)}):
        assert _errors(pipeline.pipeline, **parameters) == ""


def test_empty_fields_reach_the_work_as_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    work = asks_for_config("smoke")(lambda config: seen.append(config))
    work()
    work(seed=4, objective="sft")
    work("quality-smoke", overrides={"seed": 5})
    assert [(config.recipe, config.seed, config.objective.name) for config in seen] == [
        ("smoke", 0, "sra"),
        ("smoke", 4, "sft"),
        ("quality-smoke", 5, "sra"),
    ]


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
