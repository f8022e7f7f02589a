"""Configs as mappings: one put over another, dotted fields turned into nested ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["merged", "nested"]


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over`` put over it, mapping by mapping; other values are replaced whole."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted fields, such as ``{"distill.epochs": 2}``, as nested mappings."""
    result: dict[str, Any] = {}
    for name, value in dotted.items():
        for key in reversed(name.split(".")):
            value = {key: value}
        result = merged(result, value)
    return result
