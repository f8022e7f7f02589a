"""Run configs as YAML, and how one is put together: recipe < environment < command-line flag."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from sra_core.config import RunConfig, merged
from sra_core.errors import ConfigError

__all__ = ["ENV_PREFIX", "load_config", "parse_overrides", "recipe_names", "recipe_path"]

ENV_PREFIX = "SRA_"
"""Environment variables set fields: ``SRA_DISTILL__EPOCHS=2`` is ``distill.epochs``; lists are JSON."""

_FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Names of the recipes that the package ships."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe_path(recipe: str) -> Path:
    """The YAML file of a recipe: a shipped name or a path.

    Raises:
        ConfigError: There is no such recipe; names the nearest ones.
    """
    shipped = _FOLDER / f"{recipe}.yaml"
    path = shipped if shipped.parent == _FOLDER and shipped.exists() else Path(recipe).expanduser()
    if path.is_file():
        return path
    near = difflib.get_close_matches(recipe, recipe_names(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"no recipe {recipe!r}", f"{hint}shipped recipes are {', '.join(recipe_names())}; anything else is a path"
    )


def load_config(recipe: str | None = None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Build a run config from a recipe, the environment and overrides, later ones winning field by field.

    Args:
        recipe: A shipped recipe's name or a YAML file; None starts from the defaults.
        overrides: Nested values as in the config, such as ``{"distill": {"epochs": 2}}``.

    Raises:
        ConfigError: Names each field that is unknown or has a bad value, and where to look.
    """
    values = _recipe_values(recipe_path(recipe)) if recipe else {}
    _refuse_unknown_sections()

    class Settings(RunConfig, BaseSettings):
        model_config = SettingsConfigDict(
            extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__", nested_model_default_partial_update=True
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=values)

    where = f"recipe {recipe!r}, environment or flags" if recipe else "environment or flags"
    try:
        return RunConfig.model_validate(Settings(**dict(overrides or {})).model_dump())
    except ValidationError as error:
        raise config_error(error, where) from error
    except SettingsError as error:
        raise ConfigError(
            f"environment: {error}", "lists and objects in the environment are written as JSON"
        ) from error


def _recipe_values(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's values over those of the recipe that it ``extends``."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}", "write it like the shipped recipes") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a YAML mapping of fields", "write it like the shipped recipes")
    base = values.pop("extends", None)
    if base is None:
        return values
    if path in children:
        raise ConfigError(f"{path} extends itself", "remove one of the `extends` lines")
    return merged(_recipe_values(recipe_path(base), (*children, path)), values)


def _refuse_unknown_sections() -> None:
    for name in os.environ:
        section, separator, _ = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if name.startswith(ENV_PREFIX) and separator and section not in RunConfig.model_fields:
            raise ConfigError(
                f"environment variable {name}: no section {section!r}{_near([section])}", "unset or rename it"
            )


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn ``distill.epochs=2`` assignments into nested values; the right side is read as YAML.

    Raises:
        ConfigError: An assignment has no ``=``, an empty name, or contradicts an earlier one.
    """
    nested: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {assignment!r} is not FIELD=VALUE", "write it like `--set distill.epochs=2`")
        target = nested
        for key in keys[:-1]:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {assignment!r} contradicts an earlier --set", f"set {name} once")
        target[keys[-1]] = _yaml_value(assignment, text)
    return nested


def _yaml_value(assignment: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {assignment!r}: {error}", "quote the value as YAML") from error


def config_error(error: ValidationError, where: str) -> ConfigError:
    """A pydantic error as one message that names every field, its problem and the nearest known name."""
    lines = []
    for item in error.errors():
        names = [part for part in item["loc"] if isinstance(part, str)]
        field = ".".join(str(part) for part in item["loc"])
        problem = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            problem = "unknown field" + _near(names)
        lines.append(f"{field or 'config'}: {problem}")
    return ConfigError(
        f"{where}: " + "; ".join(dict.fromkeys(lines)), "`sra fields` lists every field with its meaning"
    )


def _near(names: list[str]) -> str:
    known: Any = RunConfig
    for name in names[:-1]:
        field = getattr(known, "model_fields", {}).get(name)
        known = field.annotation if field else None
    if not (isinstance(known, type) and issubclass(known, BaseModel)):
        return ""
    near = difflib.get_close_matches(names[-1], known.model_fields, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known.model_fields)}"
