"""What flows through the corpus: rows as they are stored, examples as they are learned, and what was turned away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["BadRow", "Example", "MalformedRow", "Rejected", "Row", "Source", "Turn"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    """``user``, ``assistant`` or ``system``."""
    content: str
    reasoning: str = ""
    """What an assistant thought before it answered, where the data has that apart; chat templates are handed it."""


@dataclass(frozen=True, slots=True)
class Example:
    """One response to learn, and all that comes before it.

    ``history`` holds the earlier turns of a conversation, oldest first, users and assistants by turns; a conversation
    whose every assistant turn is learned gives several examples.

    Without instruction, context and history the response is plain text.
    """

    id: str
    instruction: str
    response: str
    context: str = ""
    system: str = ""
    history: tuple[Turn, ...] = ()
    source: str = ""
    references: tuple[str, ...] = ()
    """Further responses that are as good; evaluation scores answers against the best of all."""
    reasoning: str = ""
    """What was thought before the response, see `Turn`."""
    tools: str = ""
    """The tools that the assistant may call, as JSON; only chat templates have a place for them."""

    @property
    def is_text(self) -> bool:
        """Whether the response answers nothing: plain text, rendered without any prompt."""
        return not (self.instruction or self.context or self.history)

    def texts(self) -> Iterator[str]:
        """All its texts but the id, the source and further references."""
        yield from (self.system, self.instruction, self.context, self.reasoning, self.tools, self.response)
        for turn in self.history:
            yield from (turn.content, turn.reasoning)


@dataclass(frozen=True, slots=True)
class Rejected:
    """An example that was turned away, why (a short slug) and what exactly was wrong with it."""

    id: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data set."""

    path: str
    """File or data set as the user knows it, for messages."""
    name: str
    """The same on every machine, for ids."""
    line: int
    """Line of a text file, or row of a table; counted from 1."""
    values: dict[str, Any]
    split: str = ""
    """``train``, ``validation`` or ``test`` where the data says so; empty leaves it to the hash."""
    cells: bool = False
    """Whether all values are texts because the format knows nothing else (CSV)."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read."""

    path: str
    name: str
    line: int
    reason: str
    raw: str


class MalformedRow(Exception):
    """A row that was read but whose values are not what its layout asks for; caught inside the package."""


class Source(Protocol):
    """Where rows come from."""

    layout: str | None
    """The only layout that its rows can have, if there is one."""

    @property
    def brought(self) -> frozenset[str]:
        """The splits beside ``train`` that the data brings itself."""

    @property
    def notes(self) -> list[str]:
        """What a reader should know: what was read as which split, what was skipped."""

    def identity(self) -> dict[str, Any]:
        """All that determines the rows, ready for JSON, the same on every machine."""

    def __iter__(self) -> Iterator[Row | BadRow]: ...
