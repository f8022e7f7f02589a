"""Figures for readers of JSON, which knows neither infinity nor NaN."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["finite"]


def finite(value: Any) -> Any:
    """``value`` as JSON holds it, None where a number is infinite or NaN; what JSON has no form for is its text."""
    # Not pydantic's writer, which does the same: it refuses a lone surrogate, which a corpus may hold.
    return json.loads(json.dumps(value, default=str), parse_constant=lambda name: None)
