"""From the columns of a row to examples: Dolly, Alpaca, ShareGPT or messages, plain text, and columns of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sra_core.config import CorpusConfig
from sra_core.corpus.split import digest
from sra_core.corpus.types import Example, MalformedRow, Rejected, Row, Turn
from sra_core.errors import DataError

__all__ = ["LAYOUTS", "Layout", "examples", "find_layout", "unknown_layout"]

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}
UNSUPPORTED_ROLES = {"tool", "function", "function_call", "function_response", "observation", "ipython"}
CONVERSATIONS = ("messages", "conversations", "conversation")


@dataclass(frozen=True, slots=True)
class Layout:
    """Names of the columns; an empty name means that the layout has no such column."""

    required: tuple[str, ...]
    """Fields whose columns every row must have."""
    instruction: str = ""
    context: str = ""
    response: str = ""
    messages: str = ""
    system: str = "system"
    id: str = "id"
    source: str = "source"
    telling: tuple[str, ...] = ()
    """Further fields by whose columns the layout is recognised."""

    def renamed(self, config: CorpusConfig) -> Layout:
        """The layout with the names of the config in place of its own."""
        names: dict[str, Any] = {str(field): column for field, column in config.columns.items()}
        return replace(self, **names)

    def column(self, field: str) -> str:
        """The column of a field."""
        return str(getattr(self, field))

    def fits(self, row: Mapping[str, Any], fields: tuple[str, ...]) -> bool:
        """Whether a row has the columns of some fields."""
        return all(self.column(field) in row for field in fields)


PAIR = ("instruction", "response")
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "dolly": (Layout(PAIR, "instruction", "context", "response", source="category", telling=("source",)),),
    "instruction": (Layout(PAIR, "instruction", "context", "response"),),
    "alpaca": (Layout(PAIR, "instruction", "input", "output"),),
    "messages": tuple(Layout(("messages",), messages=name) for name in CONVERSATIONS),
    "text": (Layout(("response",), response="text"),),
}


def find_layout(config: CorpusConfig, row: Row, only: str | None = None) -> Layout | None:
    """The layout of a file, from its first row; ``config.columns`` overrides names of the layout's columns.

    Args:
        only: The one layout that the source writes; config is not asked then.

    Returns:
        The first layout that has its columns in the row, or None.
    """
    if only:
        return LAYOUTS[only][0]
    for name in _candidates(config):
        for known in LAYOUTS[name]:
            layout = known.renamed(config)
            telling = layout.telling if config.layout == "auto" else ()
            if layout.fits(row.values, layout.required + telling):
                return layout
    return None


def unknown_layout(config: CorpusConfig, row: Row) -> DataError:
    """The error for a first row that no layout fits: names the columns seen, those known, and the remedy."""
    wanted = "; ".join(f"{name}: {_required(name, config)}" for name in _candidates(config))
    return DataError(
        f"{row.path}, line {row.line}: columns {sorted(map(str, row.values))} fit no layout known ({wanted})",
        "name your columns with corpus.columns, for example "
        "--set corpus.columns='{instruction: question, response: answer}', or set corpus.layout",
    )


def _candidates(config: CorpusConfig) -> list[str]:
    """Layouts that may be recognised: those that have the columns which the config names."""
    if config.layout != "auto":
        return [config.layout]
    if "messages" in config.columns:
        return ["messages"]
    if {"instruction", "context"} & set(config.columns):
        return ["dolly", "instruction", "alpaca"]
    return [name for name in LAYOUTS if name != "messages" or "response" not in config.columns]


def _required(name: str, config: CorpusConfig) -> str:
    layouts = [layout.renamed(config) for layout in LAYOUTS[name]]
    return " or ".join(dict.fromkeys(" + ".join(map(layout.column, layout.required)) for layout in layouts))


def examples(
    row: Row, layout: Layout, config: CorpusConfig, several: bool = False
) -> Iterator[tuple[bytes, Example | Rejected]]:
    """The examples of a row, each with the digest by which the row's split is decided.

    The digest covers the row's whole content (not its id or system prompt), so that examples of one conversation never
    lie in two splits.

    Raises:
        MalformedRow: If a required column is missing or a value has the wrong type.
    """
    for field in layout.required:
        if layout.column(field) not in row.values:
            raise MalformedRow(f"column `{layout.column(field)}` is missing")
    name = _id(row, layout)
    source = row.values.get(layout.source)
    source = source if isinstance(source, str) and source else row.name
    system = _text(row.values, layout.system)
    if layout.messages:
        yield from _conversation(row.values[layout.messages], name, system, source, layout.messages, config)
        return
    instruction = _text(row.values, layout.instruction)
    context = _text(row.values, layout.context)
    response, references = _responses(row.values, layout.response, several)
    group = digest(instruction, context, response)
    if layout.instruction:
        system = system or config.system
        if not (instruction.strip() or context.strip()):
            yield group, Rejected(name, "empty_instruction", f"{row.name}, line {row.line}: nothing to answer")
            return
    yield group, Example(name, instruction, response, context, system, source=source, references=references)


def _id(row: Row, layout: Layout) -> str:
    value = row.values.get(layout.id)
    if value is None or value == "":
        return f"{row.name}:{row.line}"
    if isinstance(value, (bool, list, dict)):
        raise MalformedRow(f"column `{layout.id}` holds {_kind(value)}, not a text or a number")
    return _encodable(str(value), layout.id)


def _text(values: Mapping[str, Any], column: str) -> str:
    """A text; a column that is missing or null counts as empty."""
    value = values.get(column) if column else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MalformedRow(f"column `{column}` holds {_kind(value)}, not a text")
    return _encodable(value, column)


def _responses(values: Mapping[str, Any], column: str, several: bool) -> tuple[str, tuple[str, ...]]:
    """The response, and further ones where a list of them is allowed."""
    value = values.get(column)
    if not (several and isinstance(value, list)):
        return _text(values, column), ()
    texts = [_text({column: item}, column) for item in value]
    if not all(text.strip() for text in texts) or not texts:
        raise MalformedRow(f"column `{column}` holds {_kind(value)}, in which a text is missing")
    return texts[0], tuple(texts[1:])


def _encodable(text: str, column: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MalformedRow(f"column `{column}` is not valid UTF-8: {error.reason}") from error
    return text


def _kind(value: Any) -> str:
    return f"{type(value).__name__} ({str(value)[:40]})"


def _conversation(
    value: Any, name: str, system: str, source: str, column: str, config: CorpusConfig
) -> Iterator[tuple[bytes, Example | Rejected]]:
    turns = [_turn(item, f"{column}[{place}]") for place, item in enumerate(_turn_list(value, column))]
    if turns and turns[0].role == "system":
        system = turns.pop(0).content
    group = digest(*(part for turn in turns for part in (turn.role, turn.content)))
    problem = _problem(turns)
    if problem:
        yield group, Rejected(name, *problem)
        return
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    for number, place in enumerate(answers, 1):
        if config.turns == "last" and place != answers[-1]:
            continue
        key = name if config.turns == "last" else f"{name}#{number}"
        question, answer = turns[place - 1].content, turns[place].content
        if not question.strip():
            yield group, Rejected(key, "empty_instruction", f"assistant turn {number} answers an empty user turn")
        else:
            before = tuple(turns[: place - 1])
            yield group, Example(key, question, answer, "", system or config.system, before, source)


def _turn_list(value: Any, column: str) -> list[Any]:
    if not isinstance(value, list):
        raise MalformedRow(f"column `{column}` holds {_kind(value)}, not a list of turns")
    return value


def _turn(item: Any, place: str) -> Turn:
    if not isinstance(item, dict):
        raise MalformedRow(f"{place} is {_kind(item)}, not a turn with role and content")
    role = item.get("role", item.get("from"))
    if not isinstance(role, str) or (role not in ROLES and role not in UNSUPPORTED_ROLES):
        raise MalformedRow(f"{place} has the role {role!r}; known roles: {', '.join(ROLES)}")
    content = item.get("content", item.get("value"))
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(_text(part, "text") for part in content)
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise MalformedRow(f"{place} holds {_kind(content)}, not a text")
    return Turn(ROLES.get(role, role), _encodable(content, place))


def _problem(turns: list[Turn]) -> tuple[str, str] | None:
    """Reason and detail of a conversation that cannot be learned: users and assistants must take turns."""
    for place, turn in enumerate(turns, 1):
        if turn.role in UNSUPPORTED_ROLES:
            return "unsupported_role", f"turn {place} has the role {turn.role!r}"
    if not any(turn.role == "assistant" for turn in turns):
        return "no_assistant_turn", f"none of the {len(turns)} turns is the assistant's"
    for place, turn in enumerate(turns, 1):
        expected = "user" if place % 2 else "assistant"
        if turn.role != expected:
            return "turn_order", f"turn {place} is the {turn.role}'s where the {expected}'s is due"
    return None
