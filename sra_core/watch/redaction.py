"""Keeps secrets out of everything that leaves the process: tracking parameters, tags, artifacts and log lines."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sra_core.config.secrets import KNOWN_SHAPES, MASK, SECRET_NAME, SECRET_QUERY, USER_INFO

__all__ = ["MASK", "environment_secrets", "mask_logs", "redact", "redact_text"]

_SECRET_VARIABLE = re.compile(r"(SECRET|PASSWORD|PASSWD|TOKEN|API_?KEY|ACCESS_?KEY|CREDENTIAL|AUTH_STRING)", re.I)
_NOT_SECRET = re.compile(r"^(true|false|none|null|\d+)$", re.IGNORECASE)
_PATH_VARIABLE = re.compile(r"(PATH|FILE|DIR|CREDENTIALS)$", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"://[^\s/@:]*:([^\s\"'<>]+)@")
_SHORTEST = 8


def environment_secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Values of environment variables whose names say that they are secret, and passwords in addresses; longest first.

    Of ``user:password`` the password counts too, and each also as an address spells it. Flags, numbers and paths are
    left out, so are values so short that they would blot out ordinary words.
    """
    values: set[str] = set()
    for name, value in (os.environ if environment is None else environment).items():
        # The path of a file that holds a secret is none: GOOGLE_APPLICATION_CREDENTIALS names one.
        is_path = value.startswith("/") and (_PATH_VARIABLE.search(name) or Path(value).exists())
        if _SECRET_VARIABLE.search(name) and not is_path:
            values |= {value, value.partition(":")[2]} if "AUTH_STRING" in name.upper() else {value}
        values |= set(_IN_ADDRESS.findall(value))
    values |= {quote(value, safe="") for value in values}
    kept = {value for value in values if len(value) >= _SHORTEST and not _NOT_SECRET.match(value)}
    # Longest first: a shorter one that is a part of it would leave the rest to be read.
    return tuple(sorted(kept, key=len, reverse=True))


def redact_text(text: str, secrets: tuple[str, ...] | None = None) -> str:
    """``text`` with credentials in URLs, tokens of known shape and values of secret variables masked."""
    for secret in environment_secrets() if secrets is None else secrets:
        text = text.replace(secret, MASK)
    text = USER_INFO.sub(f"{MASK}@", text)
    text = SECRET_QUERY.sub(rf"\g<1>{MASK}", text)
    return KNOWN_SHAPES.sub(MASK, text)


def redact(value: Any, name: str = "", secrets: tuple[str, ...] | None = None) -> Any:
    """A copy of nested mappings and lists in which secret strings are masked, by field name or by content."""
    secrets = environment_secrets() if secrets is None else secrets
    if isinstance(value, Mapping):
        return {key: redact(item, str(key), secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, name, secrets) for item in value]
    if not isinstance(value, str):
        return value
    if value and SECRET_NAME.search(name):
        return MASK
    return redact_text(value, secrets)


def mask_logs() -> None:
    """Mask secrets in every line that this process logs from now on, tracebacks included."""
    names = [None, *logging.root.manager.loggerDict]
    # On handlers: filters of a logger do not see what the loggers below it log.
    for handler in {handler for name in names for handler in logging.getLogger(name).handlers}:
        if not any(isinstance(old, _Mask) for old in handler.filters):
            handler.addFilter(_Mask())


class _Mask(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact_text(record.getMessage()), ()
        if record.exc_info and record.exc_info[0] is not None:
            # A formatter takes the text that is there, and makes one of the traceback only where there is none.
            record.exc_text = redact_text(logging.Formatter().formatException(record.exc_info))
        return True
