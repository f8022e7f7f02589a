"""Examples -> both tokenizations with their span map, truncated together.

Prompt and response are tokenized together on each side. Offsets are relative to the start of the response, where the
prompts of the two sides may differ: only the response is aligned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sra_core.alignment.cuts import SpanMap, align, clean_cuts
from sra_core.alignment.literal import EndTokens, SpecialTokens, answer_end
from sra_core.alignment.positions import BytePositions, at_characters
from sra_core.alignment.tokens import FastTokenizer, backend_of, end_of_text, tokenizer_name
from sra_core.config import RunConfig
from sra_core.corpus import Example, Rejected, Rendered, RenderError, render
from sra_core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Encoding

__all__ = ["AlignedExample", "PairEncoder", "encoder_of"]

Template = Literal["plain", "chat"]
Truncate = Literal["end", "start", "drop"]


@dataclass(slots=True)
class AlignedExample:
    """One example in both tokenizations; spans index into ``teacher_ids`` and ``student_ids``."""

    id: str
    teacher_ids: npt.NDArray[np.int32]
    """(T_t,) prompt, response and, unless truncated, the token that ends an answer."""
    student_ids: npt.NDArray[np.int32]
    """(T_s,)"""
    spans: SpanMap
    """Characters are relative to the start of the response."""
    teacher_response: int
    """First teacher token that ends after the start of the response; one that straddles it is in no span."""
    student_response: int
    prompt: str
    """The student's rendering, what a cut prompt lost left out."""
    response: str
    """What truncation left of it."""
    source: str
    truncated: bool
    """The response lost text, or the tokens that end it."""
    prompt_cut: int
    """Tokens that the prompt lost on the left, on the side that lost more; text far from what is kept not counted."""
    special_as_text: bool = False
    """Some of its text looks like a special token of either side and was tokenized as text."""
    end_stripped: bool = False
    """An end token was typed at the end of the response and is left out."""
    ended: bool = True
    """The tokens that end an answer are there."""
    reasoning_left_out: bool = False
    """It was reasoned with, and the template of a side has no place for that."""

    def plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        arrays = {name: values[name].tolist() for name in ("teacher_ids", "student_ids")}
        spans = {name: getattr(self.spans, name).tolist() for name in ("teacher", "student", "chars")}
        return {**values, **arrays, "spans": spans}

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> AlignedExample:
        """The inverse of `plain`."""
        arrays = {name: np.array(values[name], np.int32) for name in ("teacher_ids", "student_ids")}
        spans = {name: np.array(pairs, np.int32).reshape(-1, 2) for name, pairs in values["spans"].items()}
        return cls(**{**values, **arrays, "spans": SpanMap(**spans)})


_FAR = 64
"""Characters a kept token, beyond which text is left out before it is tokenized; tokens have about four."""


class _Side(NamedTuple):
    """One side of an example while it is being cut."""

    ids: npt.NDArray[np.int32]  # (T + 1,) with the token that ends an answer
    offsets: npt.NDArray[np.int32]  # (T, 2) bytes, relative to the start of the response
    response: int  # first token that ends after the start of the response
    kept: int  # leading tokens (begin of text) that no prompt cut removes
    prompt: bytes

    def without(self, begin: int) -> _Side:
        """The side without its prompt tokens before ``begin``, the kept ones aside."""
        ids, offsets = (np.concatenate([array[: self.kept], array[begin:]]) for array in (self.ids, self.offsets))
        return _Side(ids, offsets, self.response - (begin - self.kept), self.kept, self.prompt)

    def excess(self, limit: int) -> int:
        """Prompt tokens beyond the limit."""
        return max(self.response - limit, 0)

    def can_begin(self, positions: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
        """Which positions are those of characters of the prompt, or its end: where a cut prompt may begin."""
        return (positions <= 0) & at_characters(self.prompt, len(self.prompt) + np.minimum(positions, 0))


class PairEncoder:
    """Tokenizes examples with both tokenizers, aligns them and keeps both sides within their limits.

    Args:
        teacher_tokenizer: A fast tokenizer; a bare one will do for a plain template.
        student_tokenizer: Likewise.
        teacher_template: ``plain`` fills ``prompt``, ``chat`` uses the tokenizer's own chat template.
        student_template: Likewise.
        prompt: The plain prompt.
        max_length: Most tokens on either side, the one that ends an answer included.
        max_prompt: Most prompt tokens on either side.
        truncate: What a response that is too long loses: its ``end``, its ``start``, or (``drop``) all of the example.
        near: Tokens on either side of the response's start that will be read, where the limits cut nothing: text that
            is farther away is not tokenized, but stays in ``prompt`` and ``response``. Unset, the limits say.
        teacher_arguments: What the teacher's chat template is told beside the turns.
        student_arguments: Likewise.

    Raises:
        TokenizerError: a tokenizer without offsets, with wrong ones or without an end-of-text token.
        ConfigError: a chat template that is missing, broken, or does not read an argument.
    """

    def __init__(
        self,
        teacher_tokenizer: FastTokenizer,
        student_tokenizer: FastTokenizer,
        *,
        teacher_template: Template,
        student_template: Template,
        prompt: str,
        max_length: int,
        max_prompt: int,
        truncate: Truncate = "end",
        near: int | None = None,
        teacher_arguments: Mapping[str, Any] | None = None,
        student_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._teacher = _Encoder(teacher_tokenizer, teacher_template, prompt, teacher_arguments)
        self._student = _Encoder(student_tokenizer, student_template, prompt, student_arguments)
        self._max_length = max_length
        self._max_prompt = max_prompt
        self._truncate = truncate
        self._near = near
        # Those of both models, as the response must be the same text for both.
        self._ends = EndTokens([*self._teacher.ends, *self._student.ends])

    def without_end(self, text: str) -> str:
        """A response without end tokens that are typed at its end."""
        return self._ends.stripped(text)

    def __call__(self, examples: Sequence[Example]) -> list[AlignedExample | Rejected]:
        """Encode examples.

        Returns:
            One item an example, in order. Reasons of rejection: ``empty_response``; ``template`` (a chat template
            refuses the example or changes its response); ``unsupported_tools``; ``no_span`` (no common cut inside the
            response); ``too_long`` (the prompt leaves no room for a single span, or long responses are to be dropped).
        """
        rendered = [self._rendered(example) for example in examples]
        pairs = [pair for pair in rendered if not isinstance(pair, Rejected)]
        sides = zip(
            self._teacher.encode([self._shortened(teacher, self._teacher) for teacher, _ in pairs]),
            self._student.encode([self._shortened(student, self._student) for _, student in pairs]),
            strict=True,
        )
        return [
            pair if isinstance(pair, Rejected) else self._of(example, pair, *next(sides))
            for example, pair in zip(examples, rendered, strict=True)
        ]

    def _rendered(self, example: Example) -> tuple[Rendered, Rendered] | Rejected:
        response = self._ends.stripped(example.response)
        if response != example.response:
            example = replace(example, response=response)
        if not example.response.strip():
            return Rejected(example.id, "empty_response", "the response is empty or white space")
        try:
            return self._teacher.render(example), self._student.render(example)
        except RenderError as error:
            return Rejected(example.id, error.reason, error.problem)

    @property
    def _reach(self) -> tuple[int, int]:
        """Most tokens before and after the start of a response that can be kept."""
        return (self._near, self._near) if self._near else (self._max_prompt, self._max_length)

    def _shortened(self, rendered: Rendered, side: _Encoder) -> Rendered:
        """What is certain to hold all tokens that will be kept: a text of megabytes costs gigabytes as tokens."""
        before, after = self._reach
        begin, most, size = len(rendered.prompt) - _FAR * before, _FAR * after, len(rendered.response)
        if begin <= 0 and size <= most:
            return rendered
        first = max(size - most, 0) if self._truncate == "start" else 0
        return rendered.part(side.opening(rendered), max(begin, 0), first, size if first else most)

    def _of(
        self, example: Example, whole: tuple[Rendered, Rendered], teacher: _Side, student: _Side
    ) -> AlignedExample | Rejected:
        """An example, cut short or not; one whose tokens are so long that too few are left is tokenized whole."""
        short = self._shortened(whole[0], self._teacher), self._shortened(whole[1], self._student)
        for part, side, rendered in zip(short, (teacher, student), whole, strict=True):
            # Tokens at the edge of a cut text are others than in the whole one. With twice as many as can be kept, none
            # of those that are kept stands there.
            few_before = len(part.prompt) < len(rendered.prompt) and side.response <= 2 * self._reach[0]
            after = len(side.ids) - side.response
            few_after = len(part.response) < len(rendered.response) and after <= 2 * self._reach[1]
            if few_before or few_after:
                ((teacher,), (student,)) = self._teacher.encode([whole[0]]), self._student.encode([whole[1]])
                short = whole
                break
        found = self._aligned(example, short, teacher, student)
        if isinstance(found, AlignedExample):
            if self._near:
                # Evaluation, which sets `near`, shows and scores whole texts.
                found.prompt, found.response = whole[1].prompt, whole[1].response
            found.end_stripped = len(whole[1].response) < len(example.response)
        return found

    def _aligned(
        self, example: Example, rendered: tuple[Rendered, Rendered], teacher: _Side, student: _Side
    ) -> AlignedExample | Rejected:
        prompt = rendered[1].prompt
        begins = (0, 0)
        if teacher.excess(self._max_prompt) or student.excess(self._max_prompt):
            begins, cut = self._prompt_cut(teacher, student)
            prompt = student.prompt[cut:].decode()
            teacher, student = (
                side.without(b) if b else side for side, b in zip((teacher, student), begins, strict=True)
            )
        # Positions count from where the response starts: there both sides meet, whatever their prompts are.
        spans = align(teacher.offsets[teacher.response :], student.offsets[student.response :])
        if not len(spans):
            return Rejected(example.id, "no_span", "the two tokenizations have no common cut inside the response")
        spans = spans.shifted(teacher.response, student.response)
        found = AlignedExample(
            id=example.id,
            teacher_ids=teacher.ids,
            student_ids=student.ids,
            spans=spans,
            teacher_response=teacher.response,
            student_response=student.response,
            prompt=prompt,
            response=rendered[1].response,
            source=example.source,
            truncated=False,
            prompt_cut=max(begins),
            special_as_text=any(side.literal for side in rendered),
            reasoning_left_out=any(side.reasoning_left_out for side in rendered),
        )
        sizes = len(teacher.ids), len(student.ids)
        if max(sizes) <= self._max_length:
            return found
        if self._truncate == "drop":
            detail = (
                f"{sizes[0]} teacher and {sizes[1]} student tokens or more: alignment.max_length is {self._max_length}"
            )
            return Rejected(example.id, "too_long", detail)
        (_without_start if self._truncate == "start" else _without_end)(found, self._max_length)
        if not len(found.spans):
            detail = f"prompts of {teacher.response} and {student.response} tokens leave no room for a span"
            return Rejected(example.id, "too_long", detail)
        return found

    def _prompt_cut(self, teacher: _Side, student: _Side) -> tuple[tuple[int, int], int]:
        """Where the prompts go on: first token kept on each side, first byte kept of the student's prompt.

        At the leftmost common cut where both fit, if the prompts are the same text; else each at its own.
        """
        limit, length = self._max_prompt, len(student.prompt)
        if teacher.prompt == student.prompt:
            spans = align(teacher.offsets, student.offsets, -length)
            fits = (spans.teacher[:, 0] - teacher.kept >= teacher.excess(limit)) & student.can_begin(spans.chars[:, 0])
            fits &= spans.student[:, 0] - student.kept >= student.excess(limit)
            if fits.any():
                first = int(np.argmax(fits))
                begins = int(spans.teacher[first, 0]), int(spans.student[first, 0])
                return begins, length + int(spans.chars[first, 0])
        own = [_own_cut(side, limit) for side in (teacher, student)]
        return (own[0][0], own[1][0]), max(length + own[1][1], 0) if own[1][0] else 0


def _without_end(example: AlignedExample, limit: int) -> None:
    """Leave the end of a response out, and what ends the answer: all after the last common cut where both sides fit."""
    text = example.response.encode()  # shards hold whole characters: it ends at a cut between two
    ends = np.maximum(example.spans.teacher[:, 1], example.spans.student[:, 1])
    fits = np.flatnonzero((ends <= limit) & at_characters(text, example.spans.chars[:, 1]))
    spans = example.spans.head(int(fits[-1]) + 1 if len(fits) else 0)
    example.spans, example.truncated, example.ended = spans, True, False
    if len(spans):
        example.teacher_ids = example.teacher_ids[: spans.teacher[-1, 1]]
        example.student_ids = example.student_ids[: spans.student[-1, 1]]
        example.response = text[: spans.chars[-1, 1]].decode()


def _without_start(example: AlignedExample, limit: int) -> None:
    """Leave the start of a response out: all before the first common cut from which on both sides fit."""
    spans, text = example.spans, example.response.encode()
    fits = at_characters(text, spans.chars[:, 0])
    fits &= spans.teacher[:, 0] - example.teacher_response >= len(example.teacher_ids) - limit
    fits &= spans.student[:, 0] - example.student_response >= len(example.student_ids) - limit
    first = int(np.argmax(fits)) if fits.any() else len(spans)
    example.spans, example.truncated = spans.tail(first), True
    if first < len(spans):
        teacher, student, place = (int(each[first, 0]) for each in (spans.teacher, spans.student, spans.chars))
        example.teacher_ids = np.delete(example.teacher_ids, slice(example.teacher_response, teacher))
        example.student_ids = np.delete(example.student_ids, slice(example.student_response, student))
        example.response = text[place:].decode()
        example.spans = example.spans.shifted(
            example.teacher_response - teacher, example.student_response - student, -place
        )


def _own_cut(side: _Side, limit: int) -> tuple[int, int]:
    """First token kept and its position at the leftmost clean cut where the prompt fits; (0, 0) if it fits uncut."""
    if not side.excess(limit):
        return 0, 0
    cuts = clean_cuts(side.offsets)
    fits = (cuts[:, 0] - side.kept >= side.excess(limit)) & side.can_begin(cuts[:, 1])
    if not fits.any():
        return side.response, 0
    index, position = cuts[int(np.argmax(fits))].tolist()
    return index, position


class _Encoder:
    """Renders and tokenizes examples for one side."""

    def __init__(
        self, tokenizer: FastTokenizer, template: Template, prompt: str, arguments: Mapping[str, Any] | None
    ) -> None:
        self._positions = BytePositions(tokenizer)
        self._end = end_of_text(tokenizer)
        self._answer_end = answer_end(tokenizer, template, arguments)
        self.ends = [str(token) for token in tokenizer.convert_ids_to_tokens([self._end, self._answer_end])]
        self._arguments = arguments
        self._tokenizer = tokenizer
        self._template = template
        self._prompt = prompt
        self._begin = tokenizer.bos_token_id
        self._specials = SpecialTokens(tokenizer)
        self._opening = _opening_tokens(tokenizer)

    def render(self, example: Example) -> Rendered:
        if self._specials.in_example(example):
            return self._specials.rendered(example, self._render)
        return self._render(example)

    def _render(self, example: Example) -> Rendered:
        return render(example, self._template, self._prompt, self._tokenizer, self._arguments)

    def opening(self, rendered: Rendered) -> int:
        """Characters at the beginning of a prompt that no cut removes: the begin of text that a template writes."""
        first = self._tokenizer.convert_ids_to_tokens([self._begin])[0] if self._begin is not None else None
        return len(first) if first and not rendered.add_special_tokens and rendered.prompt.startswith(first) else 0

    def encode(self, rendered: Sequence[Rendered]) -> list[_Side]:
        """Tokenize renderings."""
        encodings = self._positions.encode([text.prompt + text.response for text in rendered])
        return [self._side(text, encoding) for text, encoding in zip(rendered, encodings, strict=True)]

    def _side(self, rendered: Rendered, encoding: Encoding) -> _Side:
        if rendered.literal:
            encoding = self._specials.encoded(rendered)
        ids = encoding.ids
        text, prompt = rendered.prompt + rendered.response, rendered.prompt.encode()
        offsets = self._positions.of(text, text.encode(), encoding, len(rendered.prompt), bool(rendered.literal))
        # A chat template writes its begin of text itself.
        opening = self._opening if rendered.add_special_tokens else []
        if opening:
            # Of no width, so that no span holds them.
            offsets = np.concatenate([np.zeros((len(opening), 2), np.int32), offsets])
            ids = opening + ids
        offsets = offsets - np.int32(len(prompt))
        after = offsets[:, 1] > 0
        # A token across the start ends after it, and so counts as response; it is in no span.
        response = int(after.argmax()) if after.any() else len(ids)
        kept = len(opening)
        # Begin of text as a template wrote it: a prompt that is cut keeps it.
        while kept < response and ids[kept] == self._begin:
            kept += 1
        # A plain text is none of the chat template's: it ends as texts do.
        end = self._end if rendered.add_special_tokens else self._answer_end
        return _Side(np.array([*ids, end], np.int32), offsets, response, kept, prompt)


def _opening_tokens(tokenizer: FastTokenizer) -> list[int]:
    """What a tokenizer puts before a text of its own accord: mostly its begin of text, or nothing.

    What it puts after a text is left out: the end of the answer takes its place.
    """
    backend = backend_of(tokenizer)
    whole, bare = (backend.encode_batch(["a"], add_special_tokens=special)[0].ids for special in (True, False))
    places = [k for k in range(len(whole)) if whole[k : k + len(bare)] == bare]
    if not places:
        raise TokenizerError(
            f"The tokenizer {tokenizer_name(tokenizer)} tokenizes a text differently when it adds special tokens.",
            "Use a post-processor in its tokenizer.json that puts them before or after the text.",
        )
    return whole[: places[0]]


def encoder_of(config: RunConfig, teacher: Any, student: Any, near: int | None = None) -> PairEncoder:
    """The encoder of a config with two tokenizers; ``near`` as for `PairEncoder`."""
    return PairEncoder(
        teacher,
        student,
        teacher_template=config.teacher.template,
        student_template=config.student.template,
        prompt=config.corpus.prompt,
        max_length=config.alignment.max_length,
        max_prompt=config.alignment.max_prompt,
        truncate=config.alignment.truncate,
        near=near,
        teacher_arguments=config.teacher.template_arguments,
        student_arguments=config.student.template_arguments,
    )
