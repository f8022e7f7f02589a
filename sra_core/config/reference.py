"""Every field of the run config as rows for the terminal and as the page docs/reference.md."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from sra_core.config.run import RunConfig

__all__ = ["FieldRow", "field_of", "fields", "left_out", "part_of", "reference_page"]


@dataclass(frozen=True)
class FieldRow:
    """One field of the config.

    Args:
        name: Dotted, as in ``--set`` and in the overrides of a flow.
        accepts: Type, choices and bounds in words.
        default: As it is written in a recipe; ``required`` where there is none.
        meaning: The field's description.
        fingerprint: Whether the field takes part in the fingerprint of a result.
    """

    name: str
    accepts: str
    default: str
    meaning: str
    fingerprint: bool


def fields(part: type[BaseModel] = RunConfig, prefix: str = "", fingerprint: bool = True) -> Iterator[FieldRow]:
    """Every field below a config part, in the order of the config.

    An optional part (``distill.lora``) and a list of parts are rows of their own, followed by the fields of that part.
    """
    for name, field in part.model_fields.items():
        inner = part_of(field.annotation)
        counts = fingerprint and not _is_marked(field)
        if inner is None or inner is not field.annotation:
            yield FieldRow(f"{prefix}{name}", _accepts(field), _default(field), field.description or "", counts)
        if inner is not None:
            several = "[]" if get_origin(field.annotation) is list else ""
            yield from fields(inner, f"{prefix}{name}{several}.", counts)


def reference_page() -> str:
    """docs/reference.md: a table for each section of the config."""
    lines = [
        "# Config reference",
        "",
        "Made from the config by `make docs`; do not edit. Any field can be set in a recipe (nested YAML), by an",
        "environment variable (`SRA_DISTILL__EPOCHS=2`), with `--set distill.epochs=2`, or in the Prefect form. Fields",
        "marked *runtime* change how a stage runs and never what it makes: they take no part in the fingerprint of a",
        "result.",
    ]
    section = None
    for row in fields():
        own = row.name.partition(".")[0] if "." in row.name else ""
        if own != section:
            section = own
            lines += ["", *_heading(section), "", "| field | accepts | default | meaning |", "|---|---|---|---|"]
        meaning = row.meaning if row.fingerprint else f"{row.meaning} *runtime*"
        lines.append("| " + " | ".join(map(_cell, (f"`{row.name}`", row.accepts, f"`{row.default}`", meaning))) + " |")
    return "\n".join(lines) + "\n"


def _heading(section: str) -> list[str]:
    if not section:
        return ["## The run"]
    return [f"## {section}", "", RunConfig.model_fields[section].description or ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _is_marked(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get("fingerprint") is False


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "set, with the values below"
    return "required" if field.is_required() else json.dumps(TypeAdapter(Any).dump_python(default, mode="json"))


def field_of(dotted: str) -> FieldInfo:
    """The field of a dotted name, such as ``distill.epochs``."""
    part: Any = RunConfig
    *sections, name = dotted.split(".")
    for section in sections:
        part = part_of(part.model_fields[section].annotation)
    found: FieldInfo = part.model_fields[name]
    return found


def left_out() -> dict[str, str]:
    """What identities without a field stand for, by the field's dotted name (see ``where_set``): JSON, or the text."""
    found = {}
    for row in fields():
        extra = field_of(row.name).json_schema_extra if "[]" not in row.name else None
        if isinstance(extra, dict) and "before" in extra:
            before = extra["before"]
            found[row.name] = before if isinstance(before, str) else json.dumps(before)
    return found


def part_of(annotation: Any) -> type[BaseModel] | None:
    """The config part that an annotation is, may be, or is a list of; None where it is none."""
    listed = get_args(annotation) if get_origin(annotation) is list else ()
    for choice in (annotation, *_choices(annotation), *listed):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()


_WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", Any: "anything"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _accepts(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {value:g}"
        for item in field.metadata
        for name, sign in _BOUNDS.items()
        if (value := getattr(item, name, None)) is not None
    ]
    return ", ".join([_words(field.annotation), *bounds])


def _words(annotation: Any) -> str:
    inner = get_args(annotation)
    if _choices(annotation):
        return " or ".join(map(_words, inner))
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if get_origin(annotation) is list:
        return f"list of {_words(inner[0])}"
    if get_origin(annotation) is tuple:
        return f"({', '.join(map(_words, inner))})"
    if get_origin(annotation) is dict:
        return "mapping"
    return _WORDS.get(annotation, "section")
