"""Examples -> both tokenizations with their span map, truncated together.

Prompt and response are tokenized together on each side. Positions are bytes relative to the start of the response, as
the prompts of the two sides may differ: only the response is aligned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sra_core.alignment.cuts import SpanMap, align, clean_cuts
from sra_core.alignment.literal import EndTokens, SpecialTokens
from sra_core.alignment.positions import BytePositions, at_characters
from sra_core.alignment.tokens import FastTokenizer, backend_of, end_of_text, tokenizer_name
from sra_core.config import RunConfig
from sra_core.corpus import Example, Rejected, Rendered, RenderError, render
from sra_core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Encoding

__all__ = ["AlignedExample", "PairEncoder", "encoder_of"]

Template = Literal["plain", "chat"]


@dataclass(slots=True)
class AlignedExample:
    """One example in both tokenizations; spans index into ``teacher_ids`` and ``student_ids``."""

    id: str
    teacher_ids: npt.NDArray[np.int32]
    """(T_t,) prompt, response and, unless truncated, the end-of-text token."""
    student_ids: npt.NDArray[np.int32]
    """(T_s,)"""
    spans: SpanMap
    """Its ``chars`` are bytes of the response's UTF-8, from its start on."""
    teacher_response: int
    """First teacher token that ends after the start of the response; one that straddles it is in no span."""
    student_response: int
    prompt: str
    """The student's rendering, what a cut prompt lost left out."""
    response: str
    """What truncation left of it."""
    source: str
    truncated: bool
    """The response lost text, or its end-of-text tokens."""
    prompt_cut: int
    """Tokens that the prompt lost on the left, on the side that lost more; text far from what is kept not counted."""
    special_as_text: bool = False
    """Some of its text looks like a special token of either side and was tokenized as text."""
    end_stripped: bool = False
    """An end token was typed at the end of the response and is left out."""
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

    ids: npt.NDArray[np.int32]  # (T + 1,) with the end-of-text token
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
        max_length: Most tokens on either side, the end-of-text token included.
        max_prompt: Most prompt tokens on either side.

    Raises:
        TokenizerError: a tokenizer without offsets, with wrong ones or without an end-of-text token.
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
    ) -> None:
        self._teacher = _Encoder(teacher_tokenizer, teacher_template, prompt)
        self._student = _Encoder(student_tokenizer, student_template, prompt)
        self._max_length = max_length
        self._max_prompt = max_prompt
        self._ends = EndTokens((teacher_tokenizer, student_tokenizer))

    def without_end(self, text: str) -> str:
        """A response without end tokens that are typed at its end."""
        return self._ends.stripped(text)

    def __call__(self, examples: Sequence[Example]) -> list[AlignedExample | Rejected]:
        """Encode examples.

        Returns:
            One item an example, in order. Reasons of rejection: ``empty_response``; ``template`` (a chat template
            refuses the example or changes its response); ``unsupported_tools``; ``no_span`` (no common cut inside the
            response); ``too_long`` (the prompt leaves no room for a single span).
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

    def _shortened(self, rendered: Rendered, side: _Encoder) -> Rendered:
        """What is certain to hold all tokens that will be kept: a text of megabytes costs gigabytes as tokens."""
        begin, end = len(rendered.prompt) - _FAR * self._max_prompt, _FAR * self._max_length
        if begin <= 0 and len(rendered.response) <= end:
            return rendered
        return rendered.part(side.opening(rendered), max(begin, 0), end)

    def _of(
        self, example: Example, whole: tuple[Rendered, Rendered], teacher: _Side, student: _Side
    ) -> AlignedExample | Rejected:
        """An example, cut short or not; one whose tokens are so long that too few are left is tokenized whole."""
        short = self._shortened(whole[0], self._teacher), self._shortened(whole[1], self._student)
        for part, side, rendered in zip(short, (teacher, student), whole, strict=True):
            few_before = len(part.prompt) < len(rendered.prompt) and side.response <= 2 * self._max_prompt
            after = len(side.ids) - side.response
            few_after = len(part.response) < len(rendered.response) and after <= 2 * self._max_length
            if few_before or few_after:
                ((teacher,), (student,)) = self._teacher.encode([whole[0]]), self._student.encode([whole[1]])
                short = whole
                break
        found = self._aligned(example, short, teacher, student)
        if isinstance(found, AlignedExample):
            found.end_stripped = len(whole[1].response) < len(example.response)
        return found

    def _aligned(
        self, example: Example, rendered: tuple[Rendered, Rendered], teacher: _Side, student: _Side
    ) -> AlignedExample | Rejected:
        prompt, response = rendered[1].prompt, rendered[1].response
        begins = (0, 0)
        if teacher.excess(self._max_prompt) or student.excess(self._max_prompt):
            begins, cut = self._prompt_cut(teacher, student)
            prompt = student.prompt[cut:].decode()
            teacher, student = (
                side.without(b) if b else side for side, b in zip((teacher, student), begins, strict=True)
            )
        spans = align(teacher.offsets[teacher.response :], student.offsets[student.response :])
        if not len(spans):
            return Rejected(example.id, "no_span", "the two tokenizations have no common cut inside the response")
        spans = spans.shifted(teacher.response, student.response)
        teacher_ids, student_ids = teacher.ids, student.ids
        fits = max(len(teacher_ids), len(student_ids)) <= self._max_length
        if not fits:
            ends = np.maximum(spans.teacher[:, 1], spans.student[:, 1])
            text = response.encode()  # shards hold whole characters: it ends at a cut between two
            fitting = np.flatnonzero((ends <= self._max_length) & at_characters(text, spans.chars[:, 1]))
            spans = spans.head(int(fitting[-1]) + 1 if len(fitting) else 0)
            if not len(spans):
                detail = f"prompts of {teacher.response} and {student.response} tokens leave no room for a span"
                return Rejected(example.id, "too_long", detail)
            teacher_ids, student_ids = teacher_ids[: spans.teacher[-1, 1]], student_ids[: spans.student[-1, 1]]
            response = text[: spans.chars[-1, 1]].decode()
        return AlignedExample(
            id=example.id,
            teacher_ids=teacher_ids,
            student_ids=student_ids,
            spans=spans,
            teacher_response=teacher.response,
            student_response=student.response,
            prompt=prompt,
            response=response,
            source=example.source,
            truncated=not fits,
            prompt_cut=max(begins),
            special_as_text=any(side.literal for side in rendered),
            reasoning_left_out=any(side.reasoning_left_out for side in rendered),
        )

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

    def __init__(self, tokenizer: FastTokenizer, template: Template, prompt: str) -> None:
        self._positions = BytePositions(tokenizer)
        self._end = end_of_text(tokenizer)
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
        return render(example, self._template, self._prompt, self._tokenizer)

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
        opening = self._opening if rendered.add_special_tokens else []
        if opening:
            offsets = np.concatenate([np.zeros((len(opening), 2), np.int32), offsets])
            ids = opening + ids
        offsets = offsets - np.int32(len(prompt))
        after = offsets[:, 1] > 0
        response = int(after.argmax()) if after.any() else len(ids)
        kept = len(opening)
        while kept < response and ids[kept] == self._begin:
            kept += 1
        return _Side(np.array([*ids, self._end], np.int32), offsets, response, kept, prompt)


def _opening_tokens(tokenizer: FastTokenizer) -> list[int]:
    """What a tokenizer puts before a text of its own accord: mostly its begin of text, or nothing.

    What it puts after a text is left out: the end of text takes its place.
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


def encoder_of(config: RunConfig, teacher: Any, student: Any) -> PairEncoder:
    """The encoder of a config with two tokenizers."""
    return PairEncoder(
        teacher,
        student,
        teacher_template=config.teacher.template,
        student_template=config.student.template,
        prompt=config.corpus.prompt,
        max_length=config.alignment.max_length,
        max_prompt=config.alignment.max_prompt,
    )
