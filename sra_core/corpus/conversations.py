"""Conversations: lists of turns in the forms that people write them, as examples with their history."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sra_core.config import CorpusConfig
from sra_core.corpus.split import digest
from sra_core.corpus.types import Example, MalformedRow, Rejected, Turn
from sra_core.corpus.values import flag, kind, listed, text

__all__ = ["Spoken", "conversation", "history_turns", "spoken_turns", "unknown_keys"]

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
CALLERS = ("tool", "function", "observation", "ipython", "action", "plugin", "interpreter", "environment")
"""Roles that hold one of these words speak for a program."""
REASONING = ("reasoning_content", "reasoning", "thinking")
LEARNED = ("weight", "train", "loss", "loss_mask", "trainable")
"""Keys of a turn that say whether it is learned; `mask` says whether it is not."""
WISHES = {*LEARNED, "mask"}
CALLS = ("tool_calls", "function_call", "tool_call")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
KNOWN = {"role", "from", "content", "value", "text", "mask", "tools", "functions", "tool_call_id", *REASONING, *LEARNED}
KNOWN |= {*CALLS, *MEDIA}


@dataclass(frozen=True, slots=True)
class Spoken:
    """A turn as it was read: what is kept of it, and what decides whether it can be learned."""

    turn: Turn
    learned: bool = True
    unsupported: str = ""
    """Slug of what cannot be learned about it, such as a tool call."""


def spoken_turns(value: Any, column: str) -> list[Spoken]:
    """The turns of a column: a list of them, the same as JSON text, or a list a key (as `datasets` stores sequences).

    Raises:
        MalformedRow: Something in it is no turn.
    """
    value = listed(value, column)
    if isinstance(value, Mapping) and value and all(isinstance(each, list) for each in value.values()):
        if len({len(each) for each in value.values()}) > 1:
            raise MalformedRow(f"column `{column}` holds lists of different lengths")
        value = [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise MalformedRow(f"column `{column}` holds {kind(value)}, not a list of turns")
    return [_spoken(item, f"{column}[{place}]") for place, item in enumerate(value)]


def _spoken(item: Any, place: str) -> Spoken:
    if not isinstance(item, dict):
        raise MalformedRow(f"{place} is {kind(item)}, not a turn with role and content")
    if len(item) == 2:  # most turns are as plain as this, and read in a fifth of the time
        role, content = (
            (item.get("role"), item.get("content")) if "role" in item else (item.get("from"), item.get("value"))
        )
        if isinstance(role, str) and role in ROLES and isinstance(content, str):
            return Spoken(Turn(ROLES[role], text(content, place)))
    keys = {str(key).strip().casefold(): value for key, value in item.items()}
    role = _one_of(keys, ("role", "from"), place)
    name = role.strip().casefold() if isinstance(role, str) else ""
    called = any(word in name for word in CALLERS)
    if name not in ROLES and not called:
        keys_seen = f" (its keys are {', '.join(map(repr, item)) or 'none'})" if role is None else ""
        raise MalformedRow(f"{place} has the role {role!r}{keys_seen}; known roles: {', '.join(ROLES)}")
    content = _one_of(keys, ("content", "value"), place)
    calls = any(keys.get(key) for key in (*CALLS, "tools", "functions"))
    if not {"content", "value"} & set(keys) and not calls:
        raise MalformedRow(f"{place} has no content; its keys are {', '.join(map(str, item))}")
    # `text` is not read beside content: where it says something else, its words would be lost.
    if content is not None and keys.get("text") is not None:
        _one_of(keys, ("content", "value", "text"), place)
    unsupported = "unsupported_role" if called else "unsupported_tool_call" if calls else ""
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        if all(part.get("type", "text") == "text" for part in content):
            content = "".join(_part_text(part, place) for part in content)
        else:
            content, unsupported = "", unsupported or "unsupported_content"
    if any(keys.get(key) for key in MEDIA):
        unsupported = unsupported or "unsupported_content"
    if content is not None and not isinstance(content, str) and unsupported:
        content = ""  # a tool may answer with an object; its turn is not learned
    if content is not None and not isinstance(content, str):
        raise MalformedRow(f"{place} holds {kind(content)}, not a text")
    thought = text(_one_of(keys, REASONING, place), f"{place}.reasoning")
    turn = Turn(ROLES.get(name, name), text(content, place), thought)
    return Spoken(turn, _learned(keys, place), unsupported)


def _part_text(part: dict[str, Any], place: str) -> str:
    """The words of a part of type text."""
    others = [key for key, value in part.items() if key not in ("type", "text") and value not in (None, "")]
    if others and not part.get("text"):
        raise MalformedRow(f"{place} has a part of type text without `text`; its keys are {', '.join(map(str, part))}")
    return text(part.get("text"), f"{place}.text")


def unknown_keys(value: Any, column: str) -> Iterator[str]:
    """Keys of turns that say something and are not read."""
    for turn in value if isinstance(value, list) else ():
        if isinstance(turn, dict):
            for key, each in turn.items():
                if each not in (None, "", []) and str(key).strip().casefold() not in KNOWN:
                    yield f"{column}[].{key}"


def _one_of(keys: Mapping[str, Any], names: Sequence[str], place: str) -> Any:
    """The value under one of several names for the same; two different ones are no turn that can be trusted."""
    found = {name: value for name in names if (value := keys.get(name)) is not None}
    if len(found) > 1 and len({json.dumps(value, default=str) for value in found.values()}) > 1:
        raise MalformedRow(f"{place} says different things under {' and '.join(found)}")
    return next(iter(found.values()), None)


def _learned(keys: Mapping[str, Any], place: str) -> bool:
    """Whether the data wants a turn to be learned."""
    if keys.keys().isdisjoint(WISHES):
        return True
    wishes = [flag(keys[name], f"{place}.{name}") for name in LEARNED if keys.get(name) is not None]
    masked = keys.get("mask")
    if masked is not None:
        if isinstance(masked, (int, float)) and not isinstance(masked, bool):
            raise MalformedRow(f"{place}.mask is {masked}, which people use both ways; write `train`: true or false")
        wishes.append(not flag(masked, f"{place}.mask"))
    return all(wishes)


def history_turns(value: Any, column: str) -> tuple[Turn, ...]:
    """Earlier exchanges: a list of [question, answer] pairs, or of turns; also as JSON text.

    Raises:
        MalformedRow: It is neither, or users and assistants do not take turns.
    """
    if value is None or value in ("", []):
        return ()
    value = listed(value, column)
    if not isinstance(value, list):
        raise MalformedRow(f"column `{column}` holds {kind(value)}, not a list of earlier exchanges")
    turns: list[Turn] = []
    for place, item in enumerate(value):
        if isinstance(item, list):
            if len(item) != 2:
                raise MalformedRow(f"{column}[{place}] has {len(item)} texts, not a question and its answer")
            turns += [
                Turn(role, text(each, f"{column}[{place}]"))
                for role, each in zip(("user", "assistant"), item, strict=True)
            ]
        else:
            spoken = _spoken(item, f"{column}[{place}]")
            if spoken.unsupported:
                raise MalformedRow(f"{column}[{place}] is a turn of a tool, which cannot be learned")
            turns.append(spoken.turn)
    if len(turns) % 2 or any(turn.role != ("user", "assistant")[place % 2] for place, turn in enumerate(turns)):
        raise MalformedRow(f"column `{column}` is not a user and an assistant by turns, the assistant last")
    return tuple(turns)


def conversation(
    spoken: list[Spoken], name: str, system: str, source: str, tools: str, config: CorpusConfig
) -> Iterator[tuple[bytes, Example | Rejected]]:
    """The examples of a conversation, each with the digest of the whole.

    Raises:
        MalformedRow: Two system prompts that differ.
    """
    turns = [each.turn for each in spoken]
    learned = [each.learned for each in spoken]
    unsupported = [each.unsupported for each in spoken]
    if turns and turns[0].role == "system" and not unsupported[0]:
        own = turns[0].content
        if own.strip() and system.strip() and own.strip() != system.strip():
            raise MalformedRow(
                "there are two system prompts, a column and a turn; leave the column out with corpus.ignore"
            )
        system = own or system
        turns, learned, unsupported = turns[1:], learned[1:], unsupported[1:]
    # Without the system prompt: whether and where the data has one moves no conversation to another split.
    group = digest(*(part for turn in turns for part in (turn.role, turn.content)))
    problem = _problem(turns, unsupported)
    if problem:
        yield group, Rejected(name, *problem)
        return
    answers = range(1, len(turns), 2)  # `_problem` lets no other order through
    if config.turns == "last":
        answers = answers[-1:]
    wanted = [place for place in answers if learned[place]]
    for place in answers:
        key = name if config.turns == "last" else f"{name}#{place // 2 + 1}"
        question, answer = turns[place - 1].content, turns[place]
        if not learned[place]:
            # Before an answer that is learned it is context; after the last of these nothing would hold it.
            if not wanted or place > wanted[-1]:
                detail = f"assistant turn {place // 2 + 1} is marked as not to be learned"
                yield group, Rejected(key, "not_learned", detail)
        elif not question.strip():
            yield (
                group,
                Rejected(key, "empty_instruction", f"assistant turn {place // 2 + 1} answers an empty user turn"),
            )
        else:
            before = tuple(turns[: place - 1])
            yield (
                group,
                Example(
                    key,
                    question,
                    answer.content,
                    "",
                    system or config.system,
                    before,
                    source,
                    reasoning=answer.reasoning,
                    tools=tools,
                ),
            )
    if len(turns) % 2:
        yield group, Rejected(f"{name}#end", "unanswered_turn", f"turn {len(turns)}, the user's last, has no answer")


def _problem(turns: list[Turn], unsupported: list[str]) -> tuple[str, str] | None:
    """Reason and detail of a conversation that cannot be learned: users and assistants must take turns."""
    for place, (turn, slug) in enumerate(zip(turns, unsupported, strict=True), 1):
        if slug == "unsupported_role":
            return slug, f"turn {place} has the role {turn.role!r}"
        if slug:
            what = "calls a tool or defines one" if slug == "unsupported_tool_call" else "holds more than text"
            return slug, f"turn {place} {what}"
    if not any(turn.role == "assistant" for turn in turns):
        return "no_assistant_turn", f"none of the {len(turns)} turns is the assistant's"
    for place, turn in enumerate(turns, 1):
        expected = "user" if place % 2 else "assistant"
        if turn.role != expected:
            return "turn_order", f"turn {place} is the {turn.role}'s where the {expected}'s is due"
    return None
