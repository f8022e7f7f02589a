"""The form of a deployment: its parameters, and the run config that they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

from sra_core.config import RunConfig, merged, nested
from sra_core.config.load import load_config, recipe_names

__all__ = ["NO_RECIPE", "Overrides", "Recipe", "settle"]

NO_RECIPE = "none"
Recipe = Annotated[
    str,
    Field(
        title="Recipe",
        description="Run config to start from; `none` starts from the defaults.",
        json_schema_extra={"enum": [NO_RECIPE, *recipe_names()]},
    ),
]
Overrides = Annotated[
    dict[str, Any],
    Field(
        title="Overrides",
        description='Dotted fields that win over everything else, such as {"distill.epochs": 2}; also the way to set a '
        "field of a recipe back to its default.",
    ),
]


def settle(recipe: str, config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """The run config that the form asks for: recipe < fields of ``config`` that differ from the defaults < overrides.

    A form sends every field of ``config``, touched or not; one that equals its default counts as untouched.

    Raises:
        ConfigError: Names the unknown recipe, or the field that is unknown or has a bad value.
    """
    wanted = merged(_touched(config, RunConfig()), nested(overrides))
    return load_config(None if recipe == NO_RECIPE else recipe, wanted, "form or overrides")


def _touched(config: BaseModel, default: BaseModel) -> dict[str, Any]:
    touched: dict[str, Any] = {}
    for name in type(config).model_fields:
        value, usual = getattr(config, name), getattr(default, name)
        if value == usual:
            continue
        both = isinstance(value, BaseModel) and isinstance(usual, BaseModel)
        touched[name] = _touched(value, usual) if both else config.model_dump(include={name})[name]
    return touched
