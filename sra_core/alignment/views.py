"""Spans for people: the text of each, and the tokens that stand for it on either side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sra_core.alignment.cuts import SpanMap
from sra_core.alignment.encode import AlignedExample
from sra_core.alignment.render import visible
from sra_core.alignment.report import SpanView
from sra_core.alignment.tokens import FastTokenizer, Spelling, backend_of

__all__ = ["TextSpans", "shown", "span_views"]


def shown(text: bytes) -> str:
    """Bytes for people; a piece of a character as \\xNN."""
    return text.decode("utf-8", "backslashreplace")


def span_views(
    text: bytes,
    spans: SpanMap,
    teacher_ids: npt.NDArray[np.int32],
    student_ids: npt.NDArray[np.int32],
    readers: Sequence[Spelling],
) -> list[SpanView]:
    """Each span of a text spelled out; ``readers`` read the teacher's and the student's tokens."""
    views = []
    for (begin, end), teacher, student in zip(spans.chars, spans.teacher, spans.student, strict=True):
        teacher_part = [shown(readers[0][token]) for token in teacher_ids[slice(*teacher)].tolist()]
        student_part = [shown(readers[1][token]) for token in student_ids[slice(*student)].tolist()]
        views.append(SpanView(shown(text[begin:end]), teacher_part, student_part))
    return views


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TextSpans(SpanMap):
    """The spans of one text, which can be read: printed as a table, or one `SpanView` after the other.

    ``chars`` are bytes of the text's UTF-8. ``teacher`` and ``student`` index into the ids, which are those that a
    model is run on: what a tokenizer puts before a text and the token that ends one are among them, and in no span.
    """

    text: str
    teacher_ids: npt.NDArray[np.int32]
    """(T_t,)"""
    student_ids: npt.NDArray[np.int32]
    """(T_s,)"""
    views: Sequence[SpanView]

    @classmethod
    def of(
        cls, example: AlignedExample, teacher_tokenizer: FastTokenizer, student_tokenizer: FastTokenizer
    ) -> TextSpans:
        """Those of an example's response; the tokenizers name the tokens."""
        spans, ids = example.spans, (example.teacher_ids, example.student_ids)
        readers = [Spelling(backend_of(tokenizer)) for tokenizer in (teacher_tokenizer, student_tokenizer)]
        views = span_views(example.response.encode(), spans, *ids, readers)
        return cls(spans.teacher, spans.student, spans.chars, example.response, *ids, views)

    def __iter__(self) -> Iterator[SpanView]:
        return iter(self.views)

    def __repr__(self) -> str:
        from rich.cells import cell_len, set_cell_size  # letters of East Asia are two columns wide

        rows = [("text", "teacher", "student")]
        for view in self.views:
            teacher, student = ("|".join(map(visible, side)) for side in (view.teacher, view.student))
            rows.append((visible(view.text), teacher, student))
        widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(f"{set_cell_size(a, widths[0])}  {set_cell_size(b, widths[1])}  {c}" for a, b, c in rows)
