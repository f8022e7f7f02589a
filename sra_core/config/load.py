"""Run configs as YAML, and how one is put together: recipe < environment < command-line flag."""

from __future__ import annotations

import difflib
import json
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from sra_core.config.mappings import merged
from sra_core.config.problems import config_error, leaves, nearest
from sra_core.config.reference import part_of
from sra_core.config.run import RunConfig
from sra_core.config.yaml_1_2 import NotYaml, read_yaml
from sra_core.errors import ConfigError

__all__ = ["ENV_PREFIX", "OTHER_VARIABLES", "load_config", "parse_overrides", "recipe_names", "recipe_path"]

ENV_PREFIX = "SRA_"
"""Environment variables set fields: ``SRA_DISTILL__EPOCHS=2`` is ``distill.epochs``; lists are JSON."""

OTHER_VARIABLES = frozenset({"SRA_CACHE_HOME", "SRA_ROOT", "SRA_STARTED_BY", "SRA_VERSION"})
"""Variables with that prefix that stand for no field: model cache, what deploy/prefect.yaml reads, the launcher's."""


_FOLDER = Path(__file__).parent.parent / "recipes"


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
    if recipe and path.is_dir():
        raise ConfigError(f"{recipe} is a folder, not a recipe", "name a YAML file in it")
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:  # a person meant a file
        raise ConfigError(f"no file {recipe} in {Path.cwd()}", _missing_file(path))
    near = difflib.get_close_matches(recipe, recipe_names(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"no recipe {recipe!r}",
        f"{hint}`sra recipes` lists those that come with the package; your own is named by its file, as in mine.yaml",
    )


def _missing_file(path: Path) -> str:
    """What to do about a YAML file that is not there: the nearest one in its folder, or how to make one."""
    folder = path.parent
    there = sorted(each.name for each in folder.glob("*.y*ml")) if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=1)
    if near:
        return f"did you mean {folder / near[0]}?"
    return f"correct the path, or have it written: `sra init {shlex.quote(str(path))}`"


def load_config(
    recipe: str | None = None, overrides: Mapping[str, Any] | None = None, overrides_from: str = "--set"
) -> RunConfig:
    """Build a run config from a recipe, the environment and overrides, later ones winning field by field.

    >>> from sra_core import load_config
    >>> config = load_config("quickstart", {"distill": {"batch_size": 16}})
    >>> config.distill.batch_size
    16

    Args:
        recipe: A shipped recipe's name or a YAML file; None starts from the defaults.
        overrides: Nested values as in the config, such as ``{"distill": {"epochs": 2}}``.
        overrides_from: What messages call the source of the overrides.

    Raises:
        ConfigError: Names each field that is unknown or has a bad value, and where the value came from.
    """
    values: dict[str, Any] = {}
    if recipe is not None:
        values = _recipe_values(recipe_path(recipe))
        # A config that was printed is a recipe too, and says itself which one it came from.
        values["recipe"] = values.get("recipe") or recipe_path(recipe).stem
    overrides = dict(overrides or {})
    variables = _variables()

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
            # The first wins: overrides, environment, recipe.
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=values)

    given = [
        *((overrides_from, keys) for keys in leaves(overrides)),
        *((f"environment variable {name}", keys) for name, keys in variables.items()),
        *((f"recipe {recipe!r}", keys) for keys in leaves(values)),
    ]
    try:
        # Dumped and built anew: then all fields count as set, and AlignmentConfig compares max_prompt with
        # max_length also where one of them alone was chosen.
        return RunConfig.model_validate(Settings(**overrides).model_dump())
    except ValidationError as error:
        raise config_error(error, given) from error
    except SettingsError as error:
        raise ConfigError(
            f"{_not_json(variables)} cannot be read", "lists and objects in the environment are written as JSON"
        ) from error


def _recipe_values(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's values over those of the recipe that it ``extends``."""
    try:
        values = read_yaml(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8: {error}", f"convert it: iconv -f ENCODING -t UTF-8 {shlex.quote(str(path))}"
        ) from error
    except (OSError, NotYaml) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}", "mend it there") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a YAML mapping of fields", "write it like the shipped recipes")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends must be the name or file of one recipe, not {base!r}", "name one")
    if path in children:
        raise ConfigError(f"{path} extends itself", "remove one of the `extends` lines")
    return merged(_recipe_values(recipe_path(base), (*children, path)), values)


def _variables() -> dict[str, tuple[str, ...]]:
    """Environment variables that set fields, with the keys of their field.

    Raises:
        ConfigError: A variable names no section or field; names the nearest one.
    """
    found = {}
    for name in os.environ:
        if not name.upper().startswith(ENV_PREFIX) or name.upper() in OTHER_VARIABLES:
            continue
        keys = tuple(name[len(ENV_PREFIX) :].lower().split("__"))
        if keys[0] not in RunConfig.model_fields:
            raise ConfigError(
                f"environment variable {name}: no field {keys[0]!r}{nearest(keys[:1])}", "unset or rename it"
            )
        found[name] = keys
    return found


def _not_json(variables: Mapping[str, tuple[str, ...]]) -> str:
    """The variables that pydantic tried to read as JSON and could not."""

    def readable(name: str) -> bool:
        try:
            return isinstance(json.loads(os.environ[name]), (list, dict))
        except json.JSONDecodeError:
            return False

    wrong = [name for name, keys in variables.items() if _holds_several(keys) and not readable(name)]
    return " and ".join(f"environment variable {name}: {os.environ[name]!r}" for name in wrong) or "the environment"


def _holds_several(keys: tuple[str, ...]) -> bool:
    """Whether a field holds a list, a mapping or a section."""
    part: Any = RunConfig
    for key in keys[:-1]:
        field = part.model_fields.get(key) if part else None
        part = part_of(field.annotation) if field else None
    field = part.model_fields.get(keys[-1]) if part else None
    return field is not None and (part_of(field.annotation) is not None or "[" in str(field.annotation))


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
        # Merged: a section that is set whole keeps what was set of it before.
        target.update(merged(target, {keys[-1]: _yaml_value(assignment, text)}))
    return nested


def _yaml_value(assignment: str, text: str) -> Any:
    try:
        return read_yaml(text)
    except NotYaml as error:
        raise ConfigError(f"--set {assignment!r}: {error}", "quote the value as YAML") from error
