"""What a column means, by its name, in the layouts that people use; which columns of a row are read and which are not.

One table for all layouts: a column that some layout gives a meaning to is read, or must repeat what is read, or its row
is refused. Only columns that no layout knows are left out, and the reader is told of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from sra_core.config import CorpusConfig

__all__ = ["LAYOUTS", "Layout", "NoLayout", "layout_of", "means", "plain_name"]

MEANINGS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    # "input" is here as well as below: the question where nothing else asks, else what the question is about.
    "instruction": ("instruction", "question", "query", "prompt", "problem", "inputs", "input", "source"),
    "context": ("context", "input", "inputs"),
    "response": (
        *("response", "output", "completion", "solution", "answer", "target", "responses", "outputs"),
        *("completions", "solutions", "answers", "targets"),
    ),
    "text": ("text",),
    "system": ("system", "system_prompt", "system_message", "system_instruction"),
    "history": ("history", "chat_history", "conversation_history"),
    "tools": ("tools", "functions", "tool_definitions", "available_tools"),
    "reasoning": ("reasoning_content", "reasoning", "thinking"),
    "label": ("label",),
    "media": ("image", "images", "video", "videos", "audio", "audios"),
}
"""Names of columns by what they mean, the likelier first; compared as `plain_name` writes them."""

# `source` mostly says where a row comes from: where it is not read, no words are lost.
_KNOWN = {name for names in MEANINGS.values() for name in names} - {"source"}
_SINGLE = ("system", "history", "tools", "reasoning")
_TREES = ({"message_id", "parent_id"}, {"message_tree_id", "prompt"})
_PAIRED = re.compile(r"(.+?)_?(?:[ab]|[0-9])")
_PREFERENCE = {"chosen", "rejected", "chosen_response", "rejected_response", "preferred", "dispreferred"}


Kind = Literal["pair", "messages", "text"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns of a row are read as which field.

    Attributes:
        kind: ``pair`` (an instruction and its response), ``messages`` (a list of turns) or ``text``.
        fields: Column by field.
        spare: Columns that mean something and are not read: their words must be among those that are.
        unused: Columns that no layout knows.
    """

    kind: Kind
    fields: dict[str, str]
    spare: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def column(self, name: str) -> str:
        """The column of a field; empty where the row has none."""
        return self.fields.get(name, "")

    @property
    def read(self) -> set[str]:
        """All columns whose values are looked at."""
        return {*self.fields.values(), *self.spare}


@dataclass(frozen=True, slots=True)
class NoLayout:
    """Why the columns of a row cannot be read."""

    reason: str = ""
    """Empty where they fit no layout known."""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Shape:
    """What ``corpus.layout`` asks for: the columns that must be there under these names."""

    kind: Kind
    required: dict[str, str] = field(default_factory=dict)


LAYOUTS: dict[str, Shape] = {
    "dolly": Shape("pair", {"instruction": "instruction", "response": "response"}),
    "instruction": Shape("pair", {"instruction": "instruction", "response": "response"}),
    "alpaca": Shape("pair", {"instruction": "instruction", "response": "output"}),
    "messages": Shape("messages"),
    "text": Shape("text", {"response": "text"}),
}


def plain_name(column: str) -> str:
    """A column's name without case, outer white space and the many ways to join words."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column.strip().removeprefix("\ufeff"))
    return re.sub(r"[\s_.-]+", "_", spaced).casefold()


def means(column: str) -> bool:
    """Whether some layout gives the column a meaning."""
    return plain_name(column) in _KNOWN


def layout_of(columns: Iterable[str], config: CorpusConfig, only: str | None = None) -> Layout | NoLayout:
    """Which of the columns are read as which field.

    Args:
        columns: All columns of a row.
        config: ``layout``, ``columns`` and ``ignore`` are looked at.
        only: The one layout that the source writes; config is not asked then.
    """
    if only:
        config = CorpusConfig(layout=only)
    present = [column for column in columns if column not in config.ignore]
    named: dict[str, str] = {str(name): column for name, column in config.columns.items() if column in present}
    free: dict[str, list[str]] = {}  # by plain name, the column of exactly that name first
    for column in sorted((each for each in present if each not in named.values()), key=lambda c: c != plain_name(c)):
        free.setdefault(plain_name(column), []).append(column)
    chosen = _Chosen(named, free, set(map(str, config.columns)))
    refused = _refused(chosen, config)
    if refused:
        return refused
    fields = _chosen_fields(chosen, config)
    if fields is None:
        return NoLayout()
    kind: Kind = "messages" if "messages" in fields else "pair" if "instruction" in fields else "text"
    read = set(fields.values())
    known = {column for name, found in free.items() for column in found if name in _KNOWN}
    if kind == "text":
        known -= set(free.get("label", ()))  # a class of texts, not a verdict on an answer
    # A name given in the config takes its field; what has that meaning besides is the config's decision.
    known -= {column for name in config.columns for other in _alternatives(str(name)) for column in free.get(other, ())}
    spare = tuple(column for column in present if column in known - read)
    unused = tuple(column for column in present if column not in read and column not in spare)
    return Layout(kind, fields, spare, unused)


class _Chosen:
    """Columns by field while they are chosen."""

    def __init__(self, named: dict[str, str], free: dict[str, list[str]], asked: set[str]) -> None:
        self.named = named
        self.free = free
        self.asked = asked
        self.taken = set(named.values())

    def find(self, name: str, without: tuple[str, ...] = ()) -> str:
        """The column that the config names for a field, else the likeliest that nothing else has taken."""
        # A column that the config names is the field's, also in rows that lack it: no other one steps in.
        if name in self.asked:
            return self.named.get(name, "")
        for candidate in MEANINGS.get(name, (name,)):
            for column in self.free.get(candidate, ()):
                if column not in self.taken and candidate not in without:
                    self.taken.add(column)
                    return column
        return ""


def _alternatives(name: str) -> tuple[str, ...]:
    if name == "messages":  # the config's conversation is all there is to learn
        return MEANINGS["messages"]
    if name == "response":
        return (*MEANINGS["response"], *MEANINGS["messages"], "text")
    return MEANINGS.get(name, ())


def _chosen_fields(chosen: _Chosen, config: CorpusConfig) -> dict[str, str] | None:
    """Column by field, or None where a column that must be there is missing."""
    shape = LAYOUTS.get(config.layout)
    for name, column in (shape.required if shape else {}).items():
        if name not in chosen.asked:
            if column not in chosen.free:
                return None
            chosen.named[name] = chosen.free[column][0]
            chosen.taken.add(chosen.named[name])
            chosen.asked.add(name)
    fields = _body(chosen, shape.kind if shape else None)
    if fields is None:
        return None
    dolly = config.layout in ("auto", "dolly") and {"instruction", "response"} <= {*chosen.free, *config.columns}
    if "source" not in chosen.asked and dolly and "category" in chosen.free:
        fields["source"] = chosen.free["category"][0]
    about = () if set(fields) <= {"response", "source"} else (*_SINGLE, "label")  # a text has nothing before it
    for name in (*about, "id", "source"):
        if name not in fields and (column := chosen.find(name)):
            fields[name] = column
    return fields


def _body(chosen: _Chosen, kind: str | None) -> dict[str, str] | None:
    """The columns that are learned from, of the first kind that is there: a conversation, a pair, a text."""
    pair = bool({"instruction", "context"} & chosen.asked)
    if kind in (None, "messages") and not pair and ("response" not in chosen.asked or kind):
        column = chosen.find("messages")
        if column or kind or "messages" in chosen.asked:
            return {"messages": column} if column else None
    if kind in (None, "pair"):
        response = chosen.find("response")
        # `source` asks only where `target` answers: elsewhere it tells where a row comes from.
        translated = plain_name(response) in ("target", "targets") if response else False
        instruction = chosen.find("instruction", () if translated else ("source",))
        if instruction and response:
            context = chosen.find("context")
            pairs = {"instruction": instruction, "response": response, "context": context}
            return {name: column for name, column in pairs.items() if column}
        if kind or pair or instruction:
            return None
        if response:
            return {"response": response} if "response" in chosen.asked else None
    column = chosen.find("response") if "response" in chosen.asked else chosen.find("text")
    return {"response": column} if column else None


def _refused(chosen: _Chosen, config: CorpusConfig) -> NoLayout | None:
    """Layouts that are known and cannot be learned as they are."""
    names, asked = set(chosen.free), chosen.asked
    # Named in the config: which answer is to be learned is settled.
    if "messages" in asked or "response" in asked:
        return None
    if any(tree <= names for tree in _TREES):
        return NoLayout(
            "a tree of messages (OpenAssistant): its rows are not conversations by themselves",
            "follow the tree from a first message to a last one and write each path as a list of turns, "
            '{"messages": [{"role": "user", "content": "..."}, ...]}',
        )
    others = sorted(names & _PREFERENCE) or _numbered(names)
    if others:
        columns = ", ".join(f"`{chosen.free[name][0]}`" for name in others)
        return NoLayout(
            f"preference pairs ({columns}): which answer is to be learned is not for the program to guess",
            f"name it: --set corpus.columns='{{response: {chosen.free[others[0]][0]}}}' "
            "(or `messages: ...` where it holds whole conversations)",
        )
    return None


def _numbered(names: set[str]) -> list[str]:
    """Answers that stand side by side: `response_0` and `response_1`, `output_a` and `output_b`."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        match = _PAIRED.fullmatch(name)
        if match and match[1] in {*MEANINGS["response"], *MEANINGS["messages"]}:
            found.setdefault(match[1], []).append(name)
    return next((group for group in found.values() if len(group) > 1), [])


def known_layouts(config: CorpusConfig) -> str:
    """The layouts that would be recognised, for messages."""
    own: dict[str, Any] = {str(name): column for name, column in config.columns.items()}
    shown = []
    for name, shape in LAYOUTS.items():
        if config.layout in ("auto", name) and name != "messages":
            shown.append(f"{name}: " + " + ".join(own.get(each, column) for each, column in shape.required.items()))
    if config.layout in ("auto", "messages"):
        shown.append("messages: " + own.get("messages", " or ".join(MEANINGS["messages"])))
    if config.layout == "auto":
        shown.append("pairs of question, query, prompt or problem + response, output, completion, solution or answer")
    return "; ".join(shown)
