"""The one tree of exceptions. Every message names what is wrong and ends with the remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "AlignmentError",
    "ConfigError",
    "DataError",
    "EvaluationError",
    "ManifestMismatch",
    "ModelError",
    "PublishError",
    "ShardError",
    "SraError",
    "StorageError",
    "TokenizerError",
    "TrainingError",
    "first_line",
    "is_full",
    "told_as",
]


class SraError(Exception):
    """Base of all errors that a user can cause or mend.

    Args:
        problem: What is wrong, naming the file, line or field.
        remedy: What the user can do about it.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        # Both: an error that comes from a worker process is pickled, and made again from its args.
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n  -> {self.remedy}"


class ConfigError(SraError):
    """A run config that cannot be read or whose values contradict each other."""


class DataError(SraError):
    """Examples that are missing, malformed or unusable."""


class ModelError(SraError):
    """A model reference that cannot be resolved, or a model that does not fit its use."""


class TokenizerError(ModelError):
    """A tokenizer whose offsets are missing or cannot be trusted."""


class AlignmentError(SraError):
    """Texts whose tokens cannot be aligned, or an audit that misses a threshold."""


class ShardError(SraError):
    """A shard or another stored file that is damaged, truncated or missing."""


class StorageError(SraError):
    """The store cannot be written: no space, no permission, or locked for too long."""


class ManifestMismatch(SraError):
    """A stage result that was made from other inputs than the ones asked for."""


class TrainingError(SraError):
    """A training run that cannot go on."""


class EvaluationError(SraError):
    """A student that cannot be evaluated as asked."""


class PublishError(SraError):
    """A student that cannot be published as asked."""


def first_line(error: BaseException) -> str:
    """The first line of a message that says something; the kind of an error that brings none, such as a timeout."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def is_full(error: BaseException | None) -> bool:
    """Whether no space was left, or the user's share of it, by the error or its cause."""
    found = (error, error.__cause__ if error else None)
    return any(isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT) for each in found)


@contextmanager
def told_as(kind: type[SraError], problem: str, remedy: str) -> Iterator[None]:
    """Whatever fails inside is told as an error of ours: the libraries of file systems raise kinds of their own."""
    try:
        yield
    except SraError:
        raise
    except Exception as error:
        raise kind(f"{problem}: {type(error).__name__}: {error}", remedy) from error
