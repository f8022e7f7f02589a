"""Passwords and keys are refused in a config, which is stored, hashed, tracked and shown wherever its run is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from sra_core.errors import ConfigError

__all__ = ["KNOWN_SHAPES", "MASK", "NO_SECRETS", "SECRET_NAME", "SECRET_QUERY", "USER_INFO", "refuse_secrets"]

MASK = "***"
SECRET_NAME = re.compile(
    r"(^|[_.\-])(secret|password|passwd|token|api_?key|access_?key|private_?key|credentials?|authorization)$",
    re.IGNORECASE,
)
_PASSWORD = r"[^\s/@:]*:(?!\d+(?:[/?#\s]|$))[^\s\"'<>]*@"  # a password may hold / and @; digits alone are a port
USER_INFO = re.compile(rf"(?<=://)(?:{_PASSWORD}|[^/\s@]+@)")
SECRET_QUERY = re.compile(
    r"([?&;](?:[\w\-]*(?:token|secret|password|key|sig|signature|credential))=)[^&\s\"'<>]+", re.IGNORECASE
)
KNOWN_SHAPES = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_\-]{20,})")
_LOGIN = re.compile(rf"(?<=://){_PASSWORD}|(?<=http://)[^/\s@]+@|(?<=https://)[^/\s@]+@")
"""User names alone belong to some addresses: abfs://container@account."""
_SECRETS = (_LOGIN, SECRET_QUERY, KNOWN_SHAPES)


def _as_word(pattern: re.Pattern[str]) -> str:
    # With flags of its own: the schema joins patterns that heed case with others that don't.
    return f"(?{'i' if pattern.flags & re.IGNORECASE else ''}:{pattern.pattern})"


_EXPECTED = {"const": "text without a password, key or token (set it as a variable of the worker)"}
"""What a validator says of a secret; other ways to refuse would repeat it."""
NO_SECRETS = {
    "$id": "urn:sra:no-secrets",
    "$dynamicAnchor": "value",
    "if": {"type": "string", "pattern": "|".join(map(_as_word, _SECRETS))},
    "then": _EXPECTED,
    "items": {"$dynamicRef": "#value"},
    "patternProperties": {
        "": {"$dynamicRef": "#value"},
        _as_word(SECRET_NAME): {"$dynamicRef": "#secret"},
    },
    "$defs": {
        "secret": {
            "$dynamicAnchor": "secret",
            "if": {"type": "string", "minLength": 1},
            "then": _EXPECTED,
            "items": {"$dynamicRef": "#secret"},
        },
    },
}
"""JSON schema of values in which `refuse_secrets` finds nothing. (Plain references would be taken for pydantic's own.)"""
_INSTEAD = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "hf": "HF_TOKEN",
    "postgresql": "PGPASSWORD",
}
_OF_FIELDS = {"wandb": "WANDB_API_KEY", "comet": "COMET_API_KEY"}
_TRACKING = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


def refuse_secrets(values: Any, field: tuple[str, ...] = ()) -> None:
    """Refuse nested values of a config that hold a password, a key or a token.

    Raises:
        ConfigError: Names the field and what to use instead; the secret itself is not repeated.
    """
    if isinstance(values, BaseModel):
        values = values.model_dump()
    if isinstance(values, Mapping):
        for name, value in values.items():
            refuse_secrets(value, (*field, str(name)))
    elif isinstance(values, (list, tuple)):
        for value in values:
            refuse_secrets(value, field)
    elif isinstance(values, str) and _is_secret(field[-1] if field else "", values):
        raise ConfigError(
            f"{'.'.join(field) or 'config'} holds a password, key or token, and a config is stored and shown with its run",
            f"leave it out and set {_instead(field, values)} in the environment of the process that runs",
        )


def _is_secret(name: str, text: str) -> bool:
    if text and SECRET_NAME.search(name):
        return True
    return any(pattern.search(text) for pattern in _SECRETS)


def _instead(field: tuple[str, ...], text: str) -> str:
    """The variables that the library of an address or of a section reads."""
    for name, variable in _OF_FIELDS.items():
        if name in field:
            return variable
    scheme = text.partition("://")[0].partition("+")[0].lower()
    if field[:1] == ("tracking",) and scheme in ("http", "https"):
        return _TRACKING
    if KNOWN_SHAPES.search(text) and text.startswith("hf_"):
        return "HF_TOKEN"
    return _INSTEAD.get(scheme, "the variable that its library reads")
