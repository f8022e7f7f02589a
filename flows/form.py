"""The form of a deployment: its parameters, and the run config that they ask for."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from coolname.data import config as name_parts
from prefect.runtime import flow_run
from pydantic import MISSING, TypeAdapter, WithJsonSchema

from sra_core.config import MAIN_FIELDS, RunConfig, merged, nested
from sra_core.config.load import load_config, recipe_names
from sra_core.config.reference import field_of
from sra_core.config.secrets import NO_SECRETS

__all__ = ["NO_RECIPE", "asks_for_config", "described", "own_name", "settle"]

NO_RECIPE = "none"
SHORT = {name: name.removesuffix(".source").removesuffix(".name").rpartition(".")[2] for name in MAIN_FIELDS}
"""What the form calls the fields that it shows by themselves: the last word of each, `teacher` for `teacher.source`."""
EMPTY = (None, "", MISSING)
"""What a field of the form may hold that nobody filled in."""
_PINS = {"teacher": ("revision", "sha256"), "student": ("revision", "sha256"), "corpus": ("revision", "subset")}
"""What belongs to one source and makes no sense for another."""

_WITHOUT_SECRETS = {"if": {}, "then": NO_SECRETS}
"""Prefect keeps the parameters even of a run that fails at once: secrets are refused before there is a run. (The form
draws no box for what stands under `then`.)"""
_GREEK = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi|"
    "psi|omega"
)


def described(kind: Any, text: str, **schema: Any) -> WithJsonSchema:
    """The help of a type in the form. (Prefect drops the description of a pydantic ``Field``.)"""
    return WithJsonSchema({**TypeAdapter(kind).json_schema(), "description": text, **schema})


Recipe = Annotated[
    str,
    described(
        str,
        "Run config to start from; `none` starts from the defaults. The fields below change it; an empty one leaves "
        "what the recipe says.",
        enum=[NO_RECIPE, *recipe_names()],
    ),
]
Overrides = Annotated[
    dict[str, Any],
    described(
        dict[str, Any],
        'Any other field by its dotted name (docs/reference.md lists them), such as `{"distill.warmup": 0.2, '
        '"evaluate.generate": 50}`. Wins over everything else.',
        **_WITHOUT_SECRETS,
    ),
]


class _Sections:
    """Shows a mapping as a JSON box, while the server checks each field of the run config in it when a run is
    triggered: parts of a schema that stand under `patternProperties` count, but make no boxes."""

    def __init__(self, without: tuple[str, ...]) -> None:
        self.without = without

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        whole = handler.resolve_ref_schema(handler(RunConfig.__pydantic_core_schema__))
        parts = {name: dict(part) for name, part in whole["properties"].items() if name not in self.without}
        for part in parts.values():
            part.pop("default", None)
        return {
            "type": "object",
            "additionalProperties": False,
            "description": 'Sections of the run config as JSON, such as `{"distill": {"lora": {"rank": 8}}}`: a whole '
            "config of an earlier run, say. Wins over the recipe; the fields above win over it.",
            "patternProperties": {f"^{name}$": part for name, part in parts.items()},
            **_WITHOUT_SECRETS,
        }


def settle(
    recipe: str = NO_RECIPE,
    config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    **short: Any,
) -> RunConfig:
    """The run config that a form asks for: recipe < ``config`` < the fields shown by themselves < ``overrides``.

    Args:
        recipe: A recipe, or `NO_RECIPE`.
        config: Nested fields, as in a recipe.
        overrides: Dotted fields.
        short: Fields by the names in `SHORT`; None leaves what recipe and ``config`` say.

    Raises:
        ConfigError: Names the unknown recipe, or the field that is unknown or has a bad value.
    """
    wanted = dict(config or {})
    for dotted, name in SHORT.items():
        if short.get(name, MISSING) in EMPTY:
            continue
        pins = {f"{name}.{pin}": None for pin in _PINS.get(name, ())}
        wanted = merged(wanted, nested({**pins, dotted: short[name]}))
    wanted = merged(wanted, nested(overrides or {}))
    return load_config(None if recipe == NO_RECIPE else recipe, wanted, "form or overrides")


def asks_for_config(
    recipe: str = "quickstart", without: tuple[str, ...] = ("bench",)
) -> Callable[..., Callable[..., Any]]:
    """A decorator that gives a function of a run config the form's parameters in place of the config.

    Args:
        recipe: The one that is chosen at first.
        without: Fields that the form leaves out, dotted.
    """

    def decorate(work: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(work).parameters.values())[1:]
        signature = inspect.Signature([*_head(recipe, without), *own, *_tail(without)])

        @functools.wraps(work)
        def run(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            rest = {each.name: given.arguments.pop(each.name) for each in own}
            if given.arguments["name"] in EMPTY:
                given.arguments["name"] = own_name(flow_run.name)
            return work(settle(**given.arguments), **rest)

        run.__signature__ = signature  # type: ignore[attr-defined]
        del run.__wrapped__  # Prefect would take the parameters of what is wrapped
        return run

    return decorate


def _head(recipe: str, without: tuple[str, ...]) -> list[inspect.Parameter]:
    # MISSING leaves no default in the schema, which the form would send whatever the recipe says.
    shown = [_parameter(SHORT[name], _short(name), MISSING) for name in MAIN_FIELDS if name not in without]
    return [_parameter("recipe", Recipe, recipe), *shown]


def _tail(without: tuple[str, ...]) -> list[inspect.Parameter]:
    config = Annotated[dict[str, Any], _Sections(without)]
    return [_parameter("overrides", Overrides, {}), _parameter("config", config, {})]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)


def _short(dotted: str) -> Any:
    """Type of a field that may stay empty; shown as a plain box, not as a choice between a value and null."""
    field = field_of(dotted)
    kind: Any = Annotated[field.annotation, field]
    schema = TypeAdapter(kind).json_schema()
    box = next((each for each in schema.get("anyOf", ()) if each["type"] != "null"), schema)
    shown = {name: value for name, value in box.items() if name not in ("default", "fingerprint", "before")}
    shown["description"] = f"`{dotted}`: {field.description}"
    if shown["type"] == "string" and "enum" not in shown:
        shown |= _WITHOUT_SECRETS
    return Annotated[field.annotation | MISSING | None, WithJsonSchema(shown)]


def own_name(name: str | None) -> str | None:
    """What a person called a flow run; None where Prefect made the name up.

    A run that is started again bears its full name (`RunConfig.title`), whose end is the person's own.
    """
    if name is None:
        return None
    if titled := re.fullmatch(r".* · seeds? [\d, ]+(?: · (.+))?", name):
        return titled[1]
    # The UI makes names such as `phi983-acamar`; the server joins two words of coolname's lists.
    made_by_ui = re.fullmatch(rf"({_GREEK})\d{{1,4}}(-[a-z]+)+", name)
    made_by_server = len(name.split("-")) == 2 and set(name.split("-")) <= _random_words()
    return None if made_by_ui or made_by_server else name


@functools.cache
def _random_words() -> set[str]:
    """The words that Prefect makes names of."""
    parts: Mapping[str, Any] = name_parts
    return {word for part in parts.values() for word in part.get("words", ())}
