"""Prompts: the plain template of the config, or the chat template that a model brings, with the response located."""

from __future__ import annotations

import datetime
import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sra_core.corpus.types import Example
from sra_core.errors import ConfigError, DataError

__all__ = ["FIXED_DAY", "RenderError", "Rendered", "asks_for_the_date", "render", "written_after"]

CONTEXT_HEADING = "### Input:\n"
FIXED_DAY = datetime.datetime(2024, 7, 26)
"""The day that chat templates are told: the same example must render alike on every day."""
CLOCK = "strftime_now"
"""What transformers lets templates call for the date; an argument of this name is the day that it tells."""
DIRECTIVES = "aAbBdeFHIjmMpSTyY"
PADDED = "dHIjmMSy"  # what may be asked for without leading zeros, as in %-d
WORD_START = re.compile(r"\s(?=\S)")
NEAR = 1024
MARK = "MARK4d1f7b"
"""Stands for a text whose place in a rendering is looked for."""
REMEDY_TOOLS = (
    "use a chat template that writes tools, or leave their column out with corpus.ignore if the answers do without them"
)
REMEDY = "set the model's template to plain, or leave such examples out"


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a model reads: ``prompt + response``. The response is the example's own, character for character."""

    prompt: str
    response: str
    add_special_tokens: bool
    """Whether the tokenizer should add its begin-of-text token; a chat template writes it itself."""
    literal: tuple[tuple[int, int], ...] = ()
    """Where, in prompt and response, text of the example looks like a special token and is none."""
    reasoning_left_out: bool = False
    """Whether the template has no place for what the example was reasoned with."""

    def part(self, opening: int, begin: int, first: int, last: int) -> Rendered:
        """The rendering without what lies between the prompt's ``opening`` and ``begin``, and with no more of the
        response than from ``first`` to ``last``: characters."""
        begin, first = max(_word_start(self.prompt, begin, opening), opening), _word_start(self.response, first)
        lost, size = begin - opening, len(self.prompt)
        kept = [(a - lost, b - lost) for a, b in self.literal if begin <= a and b <= size]
        lost += first
        kept += [(a - lost, b - lost) for a, b in self.literal if size + first <= a and b <= size + last]
        prompt = self.prompt[:opening] + self.prompt[begin:]
        return replace(self, prompt=prompt, response=self.response[first:last], literal=tuple(kept))


def _word_start(text: str, place: int, lowest: int = 0) -> int:
    """The start of a word at or just before a place, if one is near; else the place.

    Where a run of spaces is cut decides how tokenizers group the rest.
    """
    near = [found.end() for found in WORD_START.finditer(text, max(place - NEAR, lowest), max(place, lowest))]
    return near[-1] if near else place


class RenderError(DataError):
    """An example that a chat template cannot render, or whose response it changes."""

    reason = "template"
    """Slug under which such examples are counted."""


class ToolsError(RenderError):
    """An example with tools, under a template that has no place for them."""

    reason = "unsupported_tools"


def render(
    example: Example,
    template: str,
    prompt: str,
    tokenizer: Any = None,
    arguments: Mapping[str, Any] | None = None,
) -> Rendered:
    """Prompt and response of an example as one model reads them.

    Plain text (no instruction, context or history) has an empty prompt under either template.

    Args:
        template: ``plain`` fills ``prompt``, ``chat`` asks the tokenizer's chat template.
        prompt: Plain template, see ``CorpusConfig.prompt``.
        tokenizer: Needed for ``chat`` only.
        arguments: What the chat template is told beside the turns, such as ``enable_thinking``.

    Raises:
        ConfigError: If the tokenizer has no chat template, or that is broken.
        RenderError: If the chat template refuses the example or changes its response.
    """
    if example.tools and (template == "plain" or example.is_text):
        raise ToolsError(f"example {example.id} brings tools, which a plain prompt has no place for", REMEDY_TOOLS)
    if example.is_text:
        return Rendered("", example.response, add_special_tokens=True)
    if template == "plain":
        left_out = bool(example.reasoning.strip())
        return Rendered(_plain(example, prompt), example.response, True, reasoning_left_out=left_out)
    return _chat(example, _Chat(tokenizer, arguments or {}))


def check_template(tokenizer: Any, arguments: Mapping[str, Any]) -> None:
    """See to it that a tokenizer has a chat template, and that it reads the arguments it is to be told.

    Raises:
        ConfigError: Names what is missing, or the argument that would be without effect.
    """
    name = getattr(tokenizer, "name_or_path", tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"tokenizer {name!s} has no chat template",
            "set the model's template to plain, or take an instruction-tuned model",
        )
    source = tokenizer.get_chat_template()
    unread = [each for each in arguments if not re.search(rf"\b{re.escape(each)}\b", source)]
    if unread:
        raise ConfigError(
            f"template_arguments: the chat template of {name!s} reads no {', '.join(map(repr, unread))}",
            "correct the name (the template's own text has it), or remove it",
        )


def asks_for_the_date(tokenizer: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether a chat template calls for today's date, and no argument says which day it is to be."""
    return CLOCK in tokenizer.get_chat_template() and CLOCK not in arguments


def written_after(tokenizer: Any, arguments: Mapping[str, Any]) -> str:
    """What a chat template writes after a response that is the last turn; empty where it renders none.

    Raises:
        ConfigError: As `check_template`, or the template is broken.
    """
    check_template(tokenizer, arguments)
    chat = _Chat(tokenizer, arguments)
    turns = [_message("user", "?"), _message("assistant", MARK)]
    for system in ([], [_message("system", "?")]):  # some templates refuse a conversation without one
        try:
            return chat.apply(Example("probe", "?", MARK), [*system, *turns]).partition(MARK)[2]
        except RenderError:
            continue
    return ""


def _plain(example: Example, template: str) -> str:
    """Earlier exchanges in the same template, each with its answer, then the one to answer."""
    system, pieces = example.system, []
    for question, answer in zip(example.history[::2], example.history[1::2], strict=True):
        pieces.append(f"{_fill(template, question.content, '', system)}{answer.content}\n\n")
        system = ""
    pieces.append(_fill(template, example.instruction, example.context, system))
    return "".join(pieces)


def _fill(template: str, instruction: str, context: str, system: str) -> str:
    # Nothing is lost that the template has no place for: it goes before the prompt or after the instruction.
    fields = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    if context and not fields & {"context", "context_block"}:
        instruction = _joined(instruction, context)
    block = f"{CONTEXT_HEADING}{context}\n\n" if context else ""
    filled = template.format(instruction=instruction, context=context, system=system, context_block=block)
    return filled if "system" in fields else _joined(system, filled)


def _joined(first: str, second: str) -> str:
    return f"{first}\n\n{second}" if first and second else first or second


@dataclass(frozen=True, slots=True)
class _Chat:
    """A chat template with what it is told beside the turns."""

    tokenizer: Any
    arguments: Mapping[str, Any]

    def apply(self, example: Example, turns: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        """The rendering of some turns.

        Raises:
            ConfigError: The template is broken.
            RenderError: It refuses the turns.
        """
        from jinja2 import TemplateError, TemplateSyntaxError

        # The clock is no argument: transformers makes it a global of templates, so the day goes into their text.
        told = {name: value for name, value in self.arguments.items() if name != CLOCK}
        tools = json.loads(example.tools) if example.tools else None
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns,
                    tools=tools,
                    # With tools a tokenizer of several templates gives its `tool_use`.
                    chat_template=_on_one_day(self.tokenizer.get_chat_template(tools=tools), self.arguments.get(CLOCK)),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **told,
                )
            )
        except TemplateSyntaxError as error:
            raise ConfigError(f"the chat template is broken: {error}", "set the model's template to plain") from error
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise RenderError(f"example {example.id}: the chat template refuses it: {error}", REMEDY) from error


def _chat(example: Example, chat: _Chat) -> Rendered:
    check_template(chat.tokenizer, chat.arguments)
    turns, opening = _opening(example, chat)
    finished = chat.apply(example, [*turns, _message("assistant", example.response, example.reasoning)])
    # Reasoning stands between generation prompt and response: a mark in the response's place shows where that is.
    prompt = None if example.reasoning else _before_response(example.response, opening, finished)
    if prompt is None:
        marked = chat.apply(example, [*turns, _message("assistant", MARK, example.reasoning)])
        prompt = marked.partition(MARK)[0]
        shown = example.response.strip()
        # A template may render a mark otherwise than this response, which has to stand where the mark stood.
        if not (MARK in marked and prompt.startswith(opening) and finished[len(prompt) :].lstrip().startswith(shown)):
            raise RenderError(
                f"example {example.id}: its response is not where the chat template's generation prompt ends", REMEDY
            )
    return Rendered(prompt, example.response, False, reasoning_left_out=example.reasoning.strip() not in prompt)


def _before_response(response: str, opening: str, finished: str) -> str | None:
    """Prompt of the finished rendering when nothing but white space lies between generation prompt and response.

    White space that the template itself puts there (Llama 2 writes a space) belongs to the prompt; white space that it
    strips from the response stays in the response.
    """
    if not finished.startswith(opening):
        return None
    rest = finished[len(opening) :]
    if rest.startswith(response):
        return opening
    bare = rest.lstrip()
    if not bare.startswith(response.strip()):
        return None
    space = rest[: len(rest) - len(bare)]
    return opening + space.removesuffix(response[: len(response) - len(response.lstrip())])


def _opening(example: Example, chat: _Chat) -> tuple[list[dict[str, str]], str]:
    """The turns before the response and their rendering; the system prompt joins the first user turn if it must."""
    turns = [_message(turn.role, turn.content, turn.reasoning) for turn in example.history]
    turns.append(_message("user", _joined(example.instruction, example.context)))
    if example.system:
        if _takes_system(example, chat, turns):
            turns.insert(0, _message("system", example.system))
        else:
            turns[0] = _message("user", _joined(example.system, turns[0]["content"]))
    opening = chat.apply(example, turns, add_generation_prompt=True)
    # A template without a place for tools drops them in silence: both renderings are then alike.
    if example.tools and opening == chat.apply(replace(example, tools=""), turns, add_generation_prompt=True):
        raise ToolsError(f"example {example.id} brings tools, which the chat template leaves out", REMEDY_TOOLS)
    return turns, opening


def _takes_system(example: Example, chat: _Chat, turns: list[dict[str, str]]) -> bool:
    """Whether the template writes a system turn; some refuse it, some drop it in silence."""
    try:
        return MARK in chat.apply(example, [_message("system", MARK), *turns], add_generation_prompt=True)
    except RenderError:
        return False


def _on_one_day(template: str, day: str | None) -> str:
    """The template with its clock stopped: a macro of the same name hides transformers' ``strftime_now``.

    The macro fills in the directives by text replacement, since templates take no functions from outside.
    """
    if CLOCK not in template:
        return template
    date = datetime.datetime.fromisoformat(day) if day else FIXED_DAY
    written = {f"%{letter}": date.strftime(f"%{letter}") for letter in DIRECTIVES}
    written |= {f"%-{letter}": written[f"%{letter}"].lstrip("0") or "0" for letter in PADDED}
    replaced = "".join(f" | replace('{directive}', '{text}')" for directive, text in written.items())
    # The empty output at the end keeps a line break that the template may begin with.
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"


def _message(role: str, content: str, reasoning: str = "") -> dict[str, str]:
    """A message as templates take it; they call the reasoning by different names."""
    thoughts = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), reasoning) if reasoning else {}
    return {"role": role, "content": content, **thoughts}
