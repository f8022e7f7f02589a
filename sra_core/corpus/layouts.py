"""From the values of a row to examples: a pair of instruction and response, a conversation, a text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sra_core.config import CorpusConfig
from sra_core.corpus.columns import LAYOUTS, MEANINGS, Layout, NoLayout, known_layouts, means, plain_name
from sra_core.corpus.conversations import Spoken, conversation, history_turns, spoken_turns
from sra_core.corpus.split import digest
from sra_core.corpus.types import Example, MalformedRow, Rejected, Row, Turn
from sra_core.corpus.values import answers_in, flag, kind, listed, text, texts_in
from sra_core.errors import DataError

__all__ = ["examples", "missing_column", "source_of", "unknown_layout"]


def unknown_layout(config: CorpusConfig, row: Row, problem: NoLayout) -> DataError:
    """The error for a first row that no layout fits: names the columns seen, those known, and the remedy."""
    columns = sorted(map(str, row.values))
    if problem.reason:
        return DataError(f"{row.path}, line {row.line}: {problem.reason}", problem.remedy)
    rows = [column for column in columns if _holds_rows(row.values[column])]
    if rows and {"role", "from"} & row.values[rows[0]][0].keys():
        return DataError(
            f"{row.path}, line {row.line}: `{rows[0]}` holds turns, but is not a column of turns that is known",
            f"name it: --set corpus.columns='{{messages: {rows[0]}}}'",
        )
    if rows and not config.columns and not any(map(means, columns)):
        return DataError(
            f"{row.path}, line {row.line}: one object that holds a list of rows under `{rows[0]}`, where one row per "
            "line is read",
            f"write the rows one per line: jq -c '.{rows[0]}[]' {row.path} > data.jsonl",
        )
    return DataError(
        f"{row.path}, line {row.line}: columns {columns} fit no layout known ({known_layouts(config)})",
        "name your columns with corpus.columns, for example "
        "--set corpus.columns='{instruction: request, response: reply}', or set corpus.layout",
    )


def _holds_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def missing_column(row: Row, layout: Layout | None, config: CorpusConfig) -> str:
    """What a row lacks that others of its file have, in words."""
    named: dict[str, str] = {str(name): column for name, column in config.columns.items()}
    shape = LAYOUTS.get(config.layout)
    wanted = {**(layout.fields if layout else {}), **(shape.required if shape else {}), **named}
    needed = [wanted[name] for name in ("messages", "instruction", "response") if name in wanted]
    missing = next((column for column in needed if column not in row.values), None)
    return f"column `{missing}` is missing" if missing else "its columns fit no layout"


def examples(
    row: Row, layout: Layout, config: CorpusConfig, several: bool = False, sources: bool = True
) -> Iterator[tuple[bytes, Example | Rejected]]:
    """The examples of a row, each with the digest by which the row's split is decided.

    The digest covers the row's whole content (not its id or system prompt), so that examples of one conversation never
    lie in two splits.

    Args:
        row: The row.
        layout: Which of its columns are read as what.
        config: The corpus's config.
        several: Whether a list of responses is taken.
        sources: Whether the source column names sources; else every row has its file's name.

    Raises:
        MalformedRow: A value has the wrong type, or a column holds words that would be lost.
    """
    values = row.values
    name = _id(row, layout)
    own = source_of(row, layout)
    source = own if own and sources else row.name
    system = text(values.get(layout.column("system")), layout.column("system"))
    tools = _tools(values.get(layout.column("tools")), layout.column("tools"))
    reasoning = text(values.get(layout.column("reasoning")), layout.column("reasoning"))
    media = [column for column in layout.spare if plain_name(column) in MEANINGS["media"] and values[column]]
    if media:
        detail = f"column `{media[0]}` holds {kind(values[media[0]])}: only text is learned"
        yield digest(name), Rejected(name, "unsupported_content", detail)
        return
    if _unwanted(layout, values):
        detail = f"column `{layout.column('label')}` marks the answer as a bad one"
        yield digest(name), Rejected(name, "labelled_bad", detail)
        return
    spoken = _spoken(values, layout)
    if spoken is not None:
        earlier = history_turns(values.get(layout.column("history")), layout.column("history"))
        said = [each.turn for each in spoken]
        if earlier:
            first = 1 if said and said[0].role == "system" else 0
            spoken = [*spoken[:first], *map(Spoken, earlier), *spoken[first:]]
        if reasoning:
            raise MalformedRow(f"column `{layout.column('reasoning')}` beside turns: write it into the turn it is of")
        _require_repeated(values, layout, [each.content for each in said] + [system], _contents(said))
        yield from conversation(spoken, name, system, source, tools, config)
        return
    yield from _pair(
        row, layout, config, several, name=name, source=source, system=system, tools=tools, thought=reasoning
    )


def _pair(
    row: Row,
    layout: Layout,
    config: CorpusConfig,
    several: bool,
    *,
    name: str,
    source: str,
    system: str,
    tools: str,
    thought: str,
) -> Iterator[tuple[bytes, Example | Rejected]]:
    """The example of an instruction and its response, or of a text."""
    values = row.values
    instruction, context = (
        text(values.get(layout.column(each)), layout.column(each)) for each in ("instruction", "context")
    )
    if context.strip() and plain_name(layout.column("instruction")) == "prompt" and context.strip() in instruction:
        context = ""  # MiniLLM and DSKD: the prompt is rendered, with the input in it
    response, references = _responses(row, layout.column("response"), several)
    history = history_turns(values.get(layout.column("history")), layout.column("history"))
    questions = [each for each in (instruction, context) if each.strip()] or [response]
    _require_repeated(values, layout, [instruction, context, response, *references, system, thought], questions)
    group = digest(instruction, context, response, *(part for turn in history for part in (turn.role, turn.content)))
    if layout.kind == "pair":
        system = system or config.system
        if not (instruction.strip() or context.strip()):
            yield group, Rejected(name, "empty_instruction", f"{row.name}, line {row.line}: nothing to answer")
            return
    yield (
        group,
        Example(
            name, instruction, response, context, system, history, source, references, reasoning=thought, tools=tools
        ),
    )


def _contents(turns: list[Turn]) -> list[str]:
    return [turn.content for turn in turns if turn.content.strip()]


def _require_repeated(values: Mapping[str, Any], layout: Layout, used: list[str], questions: list[str]) -> None:
    """Refuse a row one of whose spare columns holds words that would be lost.

    A column repeats the others if its text stands in one of theirs (the question beside a conversation that begins with
    it), or if all the questions stand in it (the same row rendered under a template).
    """
    for column in layout.spare:
        if column not in values or plain_name(column) in MEANINGS["media"]:
            continue
        for own in texts_in(values[column]):
            own = own.strip()
            inside = any(own in each for each in used)
            if not inside and not (questions and all(each.strip() in own for each in questions)):
                read = ", ".join(f"{name} from `{column}`" for name, column in layout.fields.items())
                raise MalformedRow(
                    f"column `{column}` holds words that no column which is read has ({read}): name it in "
                    f"corpus.columns, or leave it out with corpus.ignore: [{column}]"
                )


def _spoken(values: Mapping[str, Any], layout: Layout) -> list[Spoken] | None:
    """The turns of a row that is a conversation: in one column, or as TRL's lists of turns in prompt and completion."""
    if layout.kind == "messages":
        return spoken_turns(values.get(layout.column("messages")), layout.column("messages"))
    asked, answered = layout.column("instruction"), layout.column("response")
    if not (_holds_turns(values.get(answered)) or _holds_turns(values.get(asked))):
        return None
    context = text(values.get(layout.column("context")), layout.column("context"))
    if context.strip():
        raise MalformedRow(f"column `{layout.column('context')}` beside lists of turns: write it into the turns")
    before, after = (
        _as_turns(values.get(column), column, role) for column, role in ((asked, "user"), (answered, "assistant"))
    )
    # Answers of preference pairs may be whole conversations, which begin with the prompt again.
    repeats = [each.turn.content for each in after[: len(before)]] == [each.turn.content for each in before]
    return after if repeats and len(after) > len(before) else [*before, *after]


def _holds_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _as_turns(value: Any, column: str, role: str) -> list[Spoken]:
    return (
        [Spoken(Turn(role, value))] if isinstance(value, str) and text(value, column) else spoken_turns(value, column)
    )


def _unwanted(layout: Layout, values: Mapping[str, Any]) -> bool:
    """Whether a label (KTO) says that the answer is a bad one."""
    column = layout.column("label")
    if values.get(column) in (None, ""):
        return False
    try:
        return not flag(values[column], f"column `{column}`")
    except MalformedRow as error:
        raise MalformedRow(
            f"{error} as a label of good answers; if it is none, leave it out with corpus.ignore: [{column}]"
        ) from error


def _tools(value: Any, column: str) -> str:
    """Tools as JSON; empty where there are none."""
    value = listed(value, column)
    if not value:
        return ""
    if not isinstance(value, list):
        raise MalformedRow(f"column `{column}` holds {kind(value)}, not a list of tools")
    return text(json.dumps(value, ensure_ascii=False, default=str), column)


def source_of(row: Row, layout: Layout) -> str:
    """What a row's source column says; empty where it names no source."""
    value = row.values.get(layout.column("source"))
    if value is None or isinstance(value, (list, dict)):
        return ""
    value = text(str(value), layout.column("source"))
    return value if value.strip() else ""


def _id(row: Row, layout: Layout) -> str:
    column = layout.column("id")
    value = row.values.get(column)
    if value is None or value == "":
        return f"{row.name}:{row.line}"
    if isinstance(value, (bool, list, dict, bytes)):
        raise MalformedRow(f"column `{column}` holds {kind(value)}, not a text or a number")
    return text(str(value), column)


def _responses(row: Row, column: str, several: bool) -> tuple[str, tuple[str, ...]]:
    """The response, and further ones where a list of them is allowed; a cell of CSV holds a list as text."""
    value = row.values.get(column)
    if several and row.cells and isinstance(value, str):
        value = answers_in(value) or value
    if not (several and isinstance(value, list)):
        return text(value, column), ()
    texts = [text(item, column) for item in value]
    if not all(each.strip() for each in texts) or not texts:
        raise MalformedRow(f"column `{column}` holds {kind(value)}, in which a text is missing")
    return texts[0], tuple(texts[1:])
