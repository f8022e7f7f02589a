"""Offsets -> clean cuts -> span map (paper section 3.1, generalised from end offsets to clean cuts).

Shapes: T tokens of one side, R tokens of non-zero width, C clean boundaries, K spans.

A boundary between two tokens is clean when no token before it ends later than a token after it starts. Where the
tokenizer leaves characters out (white space, mostly) such a boundary is a whole interval of positions. Two boundaries
of the two sides are common when their intervals intersect. One side's intervals are disjoint and sorted, so common
boundaries are found without a table: a vectorised search, and a loop only over boundaries that compete crosswise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sra_core.errors import AlignmentError

__all__ = ["IntArray", "SpanMap", "align", "clean_cuts"]

IntArray = npt.NDArray[np.integer[Any]]
"""Offsets of shape (T, 2), half-open, in characters or bytes; anything that ``np.asarray`` makes such an array of."""

_LOWEST = -(2**31)  # cuts are int32


@dataclass(frozen=True, slots=True, eq=False)
class SpanMap:
    """Spans of one text in both tokenizations; all three arrays are int32, half-open, of shape (K, 2).

    ``teacher`` and ``student`` are token ranges, ``chars`` the positions of the two cuts of each span, in the unit of
    the offsets, so that ``chars[i, 1] == chars[i + 1, 0]``. Zero-width tokens at the edge of a span are outside its
    ranges.
    """

    teacher: npt.NDArray[np.int32]
    student: npt.NDArray[np.int32]
    chars: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.chars)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SpanMap):
            return NotImplemented
        return (
            np.array_equal(self.teacher, other.teacher)
            and np.array_equal(self.student, other.student)
            and np.array_equal(self.chars, other.chars)
        )

    __hash__ = None  # type: ignore[assignment]

    def head(self, count: int) -> SpanMap:
        """The first ``count`` spans."""
        return SpanMap(self.teacher[:count], self.student[:count], self.chars[:count])

    def tail(self, first: int) -> SpanMap:
        """The spans from the one numbered ``first`` on."""
        return SpanMap(self.teacher[first:], self.student[first:], self.chars[first:])

    def shifted(self, teacher: int, student: int, chars: int = 0) -> SpanMap:
        """The same spans moved by so many tokens on each side, and their cuts by so much in the unit of ``chars``."""
        moved = np.int32(teacher), np.int32(student), np.int32(chars)
        return SpanMap(self.teacher + moved[0], self.student + moved[1], self.chars + moved[2])


class _Boundaries(NamedTuple):
    """Clean boundaries of one side with R real tokens, in order; C = 0 when there is no real token."""

    low: IntArray  # (C,) first position of each interval
    high: IntArray  # (C,) last position
    before: IntArray | None  # (C,) real tokens before each boundary; None for 0, 1, 2 ... R
    places: IntArray | None  # (R,) indices of the real tokens among all tokens; None when all are real

    def tokens(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        """For some boundaries: index past the last real token before, index of the first real token after."""
        before = rows if self.before is None else self.before[rows]
        if self.places is None:
            return before, before
        return self.places[np.maximum(before, 1) - 1] + 1, self.places[np.minimum(before, len(self.places) - 1)]


def clean_cuts(offsets: npt.ArrayLike) -> IntArray:
    """Clean cuts of one tokenization, in order.

    Position p is a clean cut when every token before it ends at or before p and every token after it starts at or
    after p. Zero-width tokens do not count. One row a boundary; in a gap between tokens it gives the first position.

    Args:
        offsets: (T, 2) half-open offsets, in token order.

    Returns:
        (C, 2): token index just after the cut, position. For all but the first row the index is one past the
        last token (of non-zero width) before the cut. The first row is the start of the text: position 0, or the first
        start where that is negative, and the index of the first token of non-zero width. No such token gives (0, 2).

    Raises:
        AlignmentError: not integers of shape (T, 2), or a token ends before it starts.
    """
    boundaries = _boundaries(offsets, "offsets")
    if not len(boundaries.low):
        return np.zeros((0, 2), np.int64)
    left, right = boundaries.tokens(np.arange(len(boundaries.low)))
    cuts = np.stack([left, boundaries.low], axis=1, dtype=np.int64, casting="unsafe")
    cuts[0] = right[0], min(0, boundaries.high[0])
    return cuts


def align(teacher_offsets: npt.ArrayLike, student_offsets: npt.ArrayLike, start: int = 0) -> SpanMap:
    """Map two tokenizations of the same text to the finest spans that both can express.

    Spans lie between consecutive common clean cuts at or after ``start``. Their number is the largest possible with no
    span empty on either side; among equal choices the leftmost cut is taken, so swapping the sides swaps the map. A
    token that straddles ``start`` is in no span. Time and memory are linear in the number of tokens.

    Args:
        teacher_offsets: (T_t, 2) half-open offsets into the text, in token order; any length, also none. Any unit will
            do that is the same on both sides; bytes give the most cuts.
        student_offsets: (T_s, 2) likewise.
        start: Position where the shared part of the text begins.

    Raises:
        AlignmentError: not integers of shape (T, 2), or a token ends before it starts.
    """
    start = max(start, _LOWEST)
    teacher = _from(_boundaries(teacher_offsets, "teacher_offsets"), start)
    student = _from(_boundaries(student_offsets, "student_offsets"), start)
    i, j = _match(teacher, student)
    # The first position that both intervals hold, so that the sides may be swapped.
    cuts = np.maximum(teacher.low.take(i), student.low.take(j))
    return SpanMap(_ranges(*teacher.tokens(i)), _ranges(*student.tokens(j)), _ranges(cuts, cuts))


def _ranges(ends: IntArray, begins: IntArray) -> npt.NDArray[np.int32]:
    """(C,) where each span ends and the next begins -> (C - 1, 2) ranges from one cut to the next."""
    ranges = np.empty((max(len(begins) - 1, 0), 2), np.int32)
    ranges[:, 0] = begins[:-1]
    ranges[:, 1] = ends[1:]
    return ranges


def _checked(offsets: npt.ArrayLike, name: str) -> IntArray:
    array = np.asarray(offsets)
    if array.size == 0:
        return np.zeros((0, 2), np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise AlignmentError(
            f"{name}: expected integers of shape (tokens, 2), got {array.dtype} of shape {array.shape}.",
            "Pass one (start, end) pair of characters a token, as a fast tokenizer's offset mapping gives them.",
        )
    # Narrow or unsigned types could not hold `start`, which may be negative.
    return array if array.dtype.char in "il" else array.astype(np.int64)


def _boundaries(offsets: npt.ArrayLike, name: str) -> _Boundaries:
    """All clean boundaries of one side, the start and the end of its text included."""
    array, places = _checked(offsets, name), None
    low, high = _ends_and_starts(array)
    # high[k] is where token k starts and low[k + 1] where it ends: tokens of no width make no boundary.
    real = high[:-1] < low[1:]
    if np.count_nonzero(real) < len(real):
        _refuse_backward(array, name)
        places = real.nonzero()[0]
        low, high = _ends_and_starts(array[places])
    if len(low) == 1:
        return _Boundaries(low[1:], high[1:], None, places)
    # Tokens in order that do not overlap, as mostly: all boundaries are clean, so that no list of them is needed.
    if not np.count_nonzero(low > high):
        return _Boundaries(low, high, None, places)
    np.maximum.accumulate(low[1:], out=low[1:])  # tokens out of order, or several of one character
    np.minimum.accumulate(high[-2::-1], out=high[-2::-1])
    low[0], high[-1] = high[0], low[-1]
    before = (low <= high).nonzero()[0]
    return _Boundaries(low.take(before), high.take(before), before, places)


def _refuse_backward(array: IntArray, name: str) -> None:
    backward = array[:, 1] < array[:, 0]
    if backward.any():
        raise AlignmentError(
            f"{name}: token {int(backward.argmax())} ends before it starts.",
            "The tokenizer's offsets are wrong; use another tokenizer.",
        )


def _ends_and_starts(array: IntArray) -> tuple[IntArray, IntArray]:
    """(R, 2) -> where the tokens before and after each of R + 1 boundaries end and start, the outer ones closed."""
    count = len(array)
    # One buffer for both, [?, ends] and [starts, ?]; then the text's two ends are closed.
    both = np.empty(2 * count + 2, array.dtype)
    both[1:-1].reshape(2, count)[:] = array.T[::-1]
    low, high = both[: count + 1], both[count + 1 :]
    low[0], high[-1] = high[0], low[-1]
    return low, high


def _from(boundaries: _Boundaries, start: int) -> _Boundaries:
    """The boundaries that have a position at or after ``start``, cut off there; the first reaches down to it."""
    low, high, before, places = boundaries
    if len(low) and high[0] >= start:
        # What no token covers before the first one belongs to the first boundary, down to `start`.
        low[0] = start
        return boundaries
    first = int(high.searchsorted(start))
    before = np.arange(first, len(low)) if before is None else before[first:]
    low, high = low[first:], high[first:]
    if len(low):
        low[0] = max(low[0], start)
    return _Boundaries(low, high, before, places)


def _match(teacher: _Boundaries, student: _Boundaries) -> tuple[IntArray, IntArray]:
    """Pairs (i, j) of boundaries whose intervals intersect: as many as possible, each boundary in one pair at most.

    Taking the leftmost free partner from left to right is optimal because a side's intervals are disjoint.
    """
    if not len(teacher.low) or not len(student.low):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    low, high = teacher.low, teacher.high
    # Boundaries beyond the other side's last have no partner: searchsorted would point past its end.
    if low[-1] > student.high[-1]:
        reach = low.searchsorted(student.high[-1], "right")
        low, high = low[:reach], high[:reach]
    j = student.high.searchsorted(low)  # the first student boundary that does not end too early
    i = (student.low.take(j) <= high).nonzero()[0]
    j = j.take(i)
    again = j[1:] == j[:-1]
    return _settle(i, j, np.flatnonzero(again) + 1, teacher, student) if np.count_nonzero(again) else (i, j)


def _settle(
    i: IntArray, j: IntArray, taken: IntArray, teacher: _Boundaries, student: _Boundaries
) -> tuple[IntArray, IntArray]:
    """Resolve teacher boundaries (rows ``taken``) whose leftmost partner already belongs to the row before.

    Most of them have no other partner and are dropped. One that does (gaps of both sides overlap crosswise) moves on to
    its next partner, which may push the row after it; only such chains are walked one by one.
    """
    keep = np.ones(len(i), bool)
    keep[taken] = False
    following = j[taken] + 1
    exists = following < len(student.low)
    crosswise = taken[exists][student.low[following[exists]] <= teacher.high[i[taken[exists]]]]
    j = j.copy()
    for row in crosswise.tolist():
        last = row - 1
        while last >= 0 and not keep[last]:
            last -= 1
        while row < len(i):
            wanted = max(j[row], j[last] + 1)
            if wanted >= len(student.low) or student.low[wanted] > teacher.high[i[row]]:
                keep[row] = False
            else:
                moved = wanted != j[row]
                j[row], keep[row], last = wanted, True, row
                if not moved:
                    break
            row += 1
    return i[keep], j[keep]
