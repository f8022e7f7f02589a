"""Values of a row as the types that a layout asks for; what is of another type is a malformed row, never guessed at."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from typing import Any

from sra_core.corpus.types import MalformedRow

__all__ = ["answers_in", "flag", "kind", "listed", "text", "texts_in"]

_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def kind(value: Any) -> str:
    """Type and beginning of a value, for messages."""
    return f"{type(value).__name__} ({str(value)[:40]})"


def text(value: Any, place: str) -> str:
    """A text; null counts as empty. A number is no text: nobody knows how it was spelled.

    Raises:
        MalformedRow: It is something else, or holds half of a character.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        hint = "; write it in quotes" if isinstance(value, (int, float)) else ""
        raise MalformedRow(f"{_named(place)} holds {kind(value)}, not a text{hint}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise MalformedRow(
            f"{_named(place)} holds a lone surrogate ({half}, half of a character) at character {error.start + 1}"
        ) from error
    return value


def _named(place: str) -> str:
    return place if "[" in place else f"column `{place}`"


def flag(value: Any, place: str) -> bool:
    """Yes or no, as true and false, 1 and 0, or their words.

    Raises:
        MalformedRow: It is neither: a weight in between cannot be kept.
    """
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().casefold() in _FLAGS:
        return _FLAGS[value.strip().casefold()]
    raise MalformedRow(f"{place} is {kind(value)}; only 0 and 1 (or false and true) can be kept")


def listed(value: Any, column: str) -> Any:
    """A value that may be written as JSON text, as cells of CSV must be."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise MalformedRow(f"column `{column}` holds text that is not valid JSON: {error}") from error
    return value


def answers_in(cell: str) -> list[str] | None:
    """The texts of a list in a CSV cell, as JSON or as Python writes it; None where the cell is an ordinary text."""
    if not (cell.lstrip().startswith("[") and cell.rstrip().endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(cell.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list) and found and all(isinstance(each, str) for each in found):
            return found
    return None


def texts_in(value: Any) -> Iterator[str]:
    """All texts and numbers inside a value."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from texts_in(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from texts_in(each)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
