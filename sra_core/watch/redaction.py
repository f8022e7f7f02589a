"""Keeps secrets out of everything that leaves the process: tracking parameters, tags, artifacts and log lines."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["MASK", "environment_secrets", "redact", "redact_text"]

MASK = "***"
_SECRET_NAME = re.compile(
    r"(^|[_.\-])(secret|password|passwd|token|api_?key|access_?key|private_?key|credentials?|authorization)$",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(r"(SECRET|PASSWORD|PASSWD|TOKEN|API_?KEY|ACCESS_?KEY|CREDENTIAL|AUTH_STRING)", re.I)
_NOT_SECRET = re.compile(r"^(true|false|none|null|\d+|/.*)$", re.IGNORECASE)
_USER_INFO = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY = re.compile(r"([?&;](?:[\w\-]*(?:token|secret|password|key|sig|signature|credential))=)[^&\s]+", re.I)
_KNOWN_SHAPES = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_\-]{20,})"
)
_SHORTEST = 8


def environment_secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Values of environment variables whose names say that they are secret, longest first.

    Flags, numbers and paths are left out, so are values so short that they would blot out ordinary words.
    """
    environment = os.environ if environment is None else environment
    values = {
        value
        for name, value in environment.items()
        if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST and not _NOT_SECRET.match(value)
    }
    return tuple(sorted(values, key=len, reverse=True))


def redact_text(text: str, secrets: tuple[str, ...] | None = None) -> str:
    """``text`` with credentials in URLs, tokens of known shape and values of secret variables masked."""
    for secret in environment_secrets() if secrets is None else secrets:
        text = text.replace(secret, MASK)
    text = _USER_INFO.sub(f"{MASK}@", text)
    text = _QUERY.sub(rf"\g<1>{MASK}", text)
    return _KNOWN_SHAPES.sub(MASK, text)


def redact(value: Any, name: str = "", secrets: tuple[str, ...] | None = None) -> Any:
    """A copy of nested mappings and lists in which secret strings are masked, by field name or by content."""
    secrets = environment_secrets() if secrets is None else secrets
    if isinstance(value, Mapping):
        return {key: redact(item, str(key), secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, name, secrets) for item in value]
    if not isinstance(value, str):
        return value
    if value and _SECRET_NAME.search(name):
        return MASK
    return redact_text(value, secrets)
