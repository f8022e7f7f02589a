"""What is wrong with a config, in plain words: the field, what it must be, and where its value came from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from sra_core.config.reference import part_of
from sra_core.config.run import RunConfig
from sra_core.errors import ConfigError

__all__ = ["Given", "config_error", "leaves", "nearest"]

Given = Sequence[tuple[str, tuple[str, ...]]]
"""Where values came from: (source, keys of the field) for each value given, the strongest source first."""

_REMEDY = "`sra fields` lists every field with its meaning"
_GONE = dict.fromkeys(
    ("launcher", "hostfile"),
    "is not a field any more: processes here follow from `processes`, several machines are started by torchrun (docs/gpu.md)",
)
"""Fields of earlier versions, and what to do instead."""
_MUST_BE = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "an integer"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a mapping of fields"),
    "string_type": "text",
}
"""Kinds of pydantic errors in plain words."""


def config_error(error: ValidationError, given: Given) -> ConfigError:
    """A pydantic error as one message that names every field, its problem, its source and the nearest known name."""
    by_field: dict[tuple[str, ...], list[Any]] = {}
    for item in error.errors():
        by_field.setdefault(_field(item), []).append(item)
    lines = [f"{'.'.join(field) or 'config'}: {_say(items)}{_from(field, given)}" for field, items in by_field.items()]
    return ConfigError("; ".join(lines), _REMEDY)


def leaves(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    """Keys of every value in nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*above, str(key)))
        else:
            yield (*above, str(key))


def nearest(keys: Sequence[str]) -> str:
    """A hint at the known name that is nearest to the last of ``keys``, or at all known names; empty inside a value."""
    part: Any = RunConfig
    for key in keys[:-1]:
        part = _inside(part, key)
    if part is None:
        return ""
    near = difflib.get_close_matches(keys[-1], part.model_fields, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(part.model_fields)}"


def _inside(part: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    field = part.model_fields.get(key) if part else None
    return part_of(field.annotation) if field else None


def _field(item: Any) -> tuple[str, ...]:
    """Keys of the field at fault. Pydantic adds the branches of a union, which are no keys."""
    part: type[BaseModel] | None = RunConfig
    keys: list[str] = []
    for key in item["loc"]:
        if isinstance(key, int):
            keys.append(str(key))
        elif part is not None:
            keys.append(key)
            part = _inside(part, key)
    named, colon, _ = _message(item).partition(": ")
    if colon and item["type"] == "value_error" and part is not None and named in part.model_fields:
        keys.append(named)
    return tuple(keys)


def _message(item: Any) -> str:
    return str(item["msg"]).removeprefix("Value error, ")


def _say(items: list[Any]) -> str:
    first = items[0]
    if first["type"] == "extra_forbidden":
        if first["loc"][-1] in _GONE:
            return _GONE[first["loc"][-1]]
        return "unknown field" + nearest([str(key) for key in first["loc"] if isinstance(key, str)])
    if first["type"] == "missing":
        return "is missing"
    if first["type"] == "value_error":
        named, colon, rest = _message(first).partition(": ")
        return rest if colon and _field(first)[-1:] == (named,) else _message(first)
    wanted = dict.fromkeys(map(_must_be, items))
    return f"must be {' or '.join(wanted)}, not {first['input']!r}"


def _must_be(item: Any) -> str:
    if item["type"] == "literal_error":
        expected = str(item["ctx"]["expected"])
        return f"one of {expected}" if " or " in expected else expected
    return _MUST_BE.get(item["type"]) or str(item["msg"]).removeprefix("Input should be ")


def _from(field: tuple[str, ...], given: Given) -> str:
    """Where a field's value came from; for a section, whose fields contradict each other, all its sources."""
    related = [(source, keys) for source, keys in given if keys[: len(field)] == field or field[: len(keys)] == keys]
    if not any(len(keys) > len(field) for _, keys in related):
        related = related[:1]
    sources = dict.fromkeys(source for source, _ in related)
    return f" (from {' and '.join(sources)})" if sources else ""
