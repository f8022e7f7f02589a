"""Examples -> both tokenizations with their span map, truncated together.

Prompt and response are tokenized together on each side. Offsets are relative to the start of the response, where the
prompts of the two sides may differ: only the response is aligned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sra_core.alignment.cuts import SpanMap, align, clean_cuts
from sra_core.alignment.literal import EndTokens, SpecialTokens, answer_end
from sra_core.alignment.offsets import check_offsets, has_no_gaps, mend_offsets, offsets_of, reorders_marks
from sra_core.alignment.tokens import FastTokenizer, backend_of, end_of_text
from sra_core.config import RunConfig
from sra_core.corpus import Example, Rejected, Rendered, RenderError, render

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
    offsets: npt.NDArray[np.int32]  # (T, 2) relative to the start of the response
    response: int  # first token that ends after the start of the response
    kept: int  # leading tokens (begin of text) that no prompt cut removes

    def without(self, begin: int) -> _Side:
        """The side without its prompt tokens before ``begin``, the kept ones aside."""
        ids, offsets = (np.concatenate([array[: self.kept], array[begin:]]) for array in (self.ids, self.offsets))
        return _Side(ids, offsets, self.response - (begin - self.kept), self.kept)

    def excess(self, limit: int) -> int:
        """Prompt tokens beyond the limit."""
        return max(self.response - limit, 0)


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
                found.prompt, found.response = whole[1].prompt, whole[1].response
            found.end_stripped = len(whole[1].response) < len(example.response)
        return found

    def _aligned(
        self, example: Example, rendered: tuple[Rendered, Rendered], teacher: _Side, student: _Side
    ) -> AlignedExample | Rejected:
        prompt = rendered[1].prompt
        begins, characters = (0, 0), 0
        if teacher.excess(self._max_prompt) or student.excess(self._max_prompt):
            begins, characters = self._prompt_cut(teacher, student, len(prompt), rendered[0].prompt == prompt)
            teacher, student = (
                side.without(b) if b else side for side, b in zip((teacher, student), begins, strict=True)
            )
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
            prompt=prompt[characters:],
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

    def _prompt_cut(self, teacher: _Side, student: _Side, length: int, same: bool) -> tuple[tuple[int, int], int]:
        """Where the prompts go on: first token kept on each side, first character kept of the student's prompt.

        At the leftmost common cut where both fit, if the prompts are the same text; else each at its own.
        """
        limit = self._max_prompt
        if same:
            spans = align(teacher.offsets, student.offsets, -length)
            fits = (spans.teacher[:, 0] - teacher.kept >= teacher.excess(limit)) & (spans.chars[:, 0] <= 0)
            fits &= spans.student[:, 0] - student.kept >= student.excess(limit)
            if fits.any():
                first = int(np.argmax(fits))
                begins = int(spans.teacher[first, 0]), int(spans.student[first, 0])
                return begins, length + int(spans.chars[first, 0])
        own = [_own_cut(side, limit) for side in (teacher, student)]
        return (own[0][0], own[1][0]), max(length + own[1][1], 0) if own[1][0] else 0


def _without_end(example: AlignedExample, limit: int) -> None:
    """Leave the end of a response out, and what ends the answer: all after the last common cut where both sides fit."""
    ends = np.maximum(example.spans.teacher[:, 1], example.spans.student[:, 1])
    spans = example.spans.head(int(ends.searchsorted(limit, "right")))
    example.spans, example.truncated, example.ended = spans, True, False
    if len(spans):
        example.teacher_ids = example.teacher_ids[: spans.teacher[-1, 1]]
        example.student_ids = example.student_ids[: spans.student[-1, 1]]
        example.response = example.response[: spans.chars[-1, 1]]


def _without_start(example: AlignedExample, limit: int) -> None:
    """Leave the start of a response out: all before the first common cut from which on both sides fit."""
    spans = example.spans
    fits = spans.teacher[:, 0] - example.teacher_response >= len(example.teacher_ids) - limit
    fits &= spans.student[:, 0] - example.student_response >= len(example.student_ids) - limit
    first = int(np.argmax(fits)) if fits.any() else len(spans)
    example.spans, example.truncated = spans.tail(first), True
    if first < len(spans):
        teacher, student, place = (int(each[first, 0]) for each in (spans.teacher, spans.student, spans.chars))
        example.teacher_ids = np.delete(example.teacher_ids, slice(example.teacher_response, teacher))
        example.student_ids = np.delete(example.student_ids, slice(example.student_response, student))
        example.response = example.response[place:]
        example.spans = example.spans.shifted(
            example.teacher_response - teacher, example.student_response - student, -place
        )


def _own_cut(side: _Side, limit: int) -> tuple[int, int]:
    """First token kept and its position at the leftmost clean cut where the prompt fits; (0, 0) if it fits uncut."""
    if not side.excess(limit):
        return 0, 0
    cuts = clean_cuts(side.offsets)
    fits = (cuts[:, 0] - side.kept >= side.excess(limit)) & (cuts[:, 1] <= 0)
    if not fits.any():
        return side.response, 0
    index, position = cuts[int(np.argmax(fits))].tolist()
    return index, position


class _Encoder:
    """Renders and tokenizes examples for one side."""

    def __init__(
        self, tokenizer: FastTokenizer, template: Template, prompt: str, arguments: Mapping[str, Any] | None
    ) -> None:
        check_offsets(tokenizer)
        self._end = end_of_text(tokenizer)
        self._answer_end = answer_end(tokenizer, template, arguments)
        self.ends = [str(token) for token in tokenizer.convert_ids_to_tokens([self._end, self._answer_end])]
        self._arguments = arguments
        self._tokenizer = tokenizer
        self._backend = backend_of(tokenizer)
        self._template = template
        self._prompt = prompt
        self._special = set(tokenizer.all_special_ids)
        self._begin = tokenizer.bos_token_id
        self._reorders = reorders_marks(self._backend)
        self._specials = SpecialTokens(tokenizer)

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
        """Tokenize renderings, those that want special tokens and those that do not in a batch each."""
        sides: list[_Side | None] = [None] * len(rendered)
        for special in (True, False):
            rows = [k for k, text in enumerate(rendered) if text.add_special_tokens is special]
            if rows:
                for k, side in zip(rows, self._sides([rendered[k] for k in rows], special), strict=True):
                    sides[k] = side
        return [side for side in sides if side is not None]

    def _sides(self, rendered: Sequence[Rendered], special: bool) -> Iterator[_Side]:
        texts = [text.prompt + text.response for text in rendered]
        encodings = self._backend.encode_batch(texts, add_special_tokens=special)
        for k, each in enumerate(rendered):
            if each.literal:
                encodings[k] = self._specials.encoded(each)
        ids = [encoding.ids for encoding in encodings]
        bounds = [0, *accumulate(map(len, ids))]
        offsets = offsets_of(encodings, bounds[-1])
        sound = has_no_gaps(texts, offsets, bounds, self._tokenizer)
        for k, (text, tokens) in enumerate(zip(texts, ids, strict=True)):
            own = offsets[bounds[k] : bounds[k + 1]]
            plain = sound[k] and (text.isascii() or not self._reorders)
            # A plain text is none of the chat template's: it ends as texts do.
            end = self._end if special else self._answer_end
            yield self._side(text, tokens, own, len(rendered[k].prompt), plain, end)

    def _side(
        self, text: str, ids: list[int], offsets: npt.NDArray[np.int32], prompt: int, sound: bool, end: int
    ) -> _Side:
        count = len(ids)
        while count and ids[count - 1] in self._special and offsets[count - 1, 0] == offsets[count - 1, 1]:
            count -= 1  # the tokenizer's own closing token; the end of the answer takes its place
        offsets = offsets[:count]
        if not sound or count < len(ids):
            offsets = mend_offsets(text, offsets, prompt, self._reorders)
        offsets = offsets - np.int32(prompt)
        after = offsets[:, 1] > 0
        response = int(after.argmax()) if count else 0
        if count and not after[response]:
            response = count
        kept = 0
        while kept < response and (ids[kept] == self._begin or offsets[kept, 0] == offsets[kept, 1]):
            kept += 1
        return _Side(np.array([*ids[:count], end], np.int32), offsets, response, kept)


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
