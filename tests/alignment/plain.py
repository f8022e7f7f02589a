"""Plain, slow, separately written alignment: the definition spelled out, then the textbook quadratic LCS table.

Tests compare ``sra_core.alignment`` with it; benchmarks/alignment.py measures against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Offsets = Sequence[tuple[int, int]]
Boundary = tuple[
    int, int, int, int
]  # index after the last token before, index of the first token after, first and last position


def plain_boundaries(offsets: Offsets, start: int) -> list[Boundary]:
    """Every place between two real tokens that a clean cut at or after ``start`` can go through."""
    real = [k for k, (a, b) in enumerate(offsets) if a != b]
    found = []
    for n in range(len(real) + 1):
        before, after = real[:n], real[n:]
        low = max((offsets[k][1] for k in before), default=start)
        high = min((offsets[k][0] for k in after), default=low)
        if real and max(low, start) <= high:
            left = before[-1] + 1 if before else after[0]
            right = after[0] if after else left
            found.append((left, right, max(low, start), high))
    return found


def plain_lcs(first: Sequence[Boundary], second: Sequence[Boundary]) -> list[tuple[int, int]]:
    """Longest common subsequence by the quadratic table, where two boundaries are equal when they share a position."""

    def same(i: int, j: int) -> bool:
        return max(first[i][2], second[j][2]) <= min(first[i][3], second[j][3])

    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i in reversed(range(len(first))):
        row, below = table[i], table[i + 1]
        for j in reversed(range(len(second))):
            best = max(below[j], row[j + 1])
            row[j] = max(best, below[j + 1] + 1) if same(i, j) else best
    pairs, i, j = [], 0, 0
    while i < len(first) and j < len(second):
        if same(i, j):
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif first[i][3] < second[j][3]:
            i += 1
        else:
            j += 1
    assert len(pairs) == table[0][0], "the leftmost choice must be one of the longest"
    return pairs


def plain_align(teacher: Offsets, student: Offsets, start: int = 0) -> dict[str, list[tuple[int, int]]]:
    """Spans between consecutive common clean cuts, as lists of ranges."""
    first, second = plain_boundaries(teacher, start), plain_boundaries(student, start)
    pairs = plain_lcs(first, second)
    spans: dict[str, list[tuple[int, int]]] = {"teacher": [], "student": [], "chars": []}
    for (i, j), (k, m) in pairwise(pairs):
        spans["teacher"].append((first[i][1], first[k][0]))
        spans["student"].append((second[j][1], second[m][0]))
        spans["chars"].append((max(first[i][2], second[j][2]), max(first[k][2], second[m][2])))
    return spans


def is_clean(offsets: Offsets, position: int, index: int) -> bool:
    """The definition: tokens before ``index`` end at or before ``position``, the others start at or after it."""
    before = all(b <= position for a, b in offsets[:index] if a != b)
    return before and all(a >= position for a, b in offsets[index:] if a != b)
