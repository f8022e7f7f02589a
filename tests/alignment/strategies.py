"""Hypothesis strategies for tokenizations: offsets as real and as hostile tokenizers give them."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st

LENGTH = 24


def tried(times: int) -> settings:
    """So many examples, and no deadline: a busy machine is no failure."""
    return settings(max_examples=times, deadline=None)


@st.composite
def tidy(draw: st.DrawFn, length: int = LENGTH) -> list[tuple[int, int]]:
    """A partition of the text, as byte-level BPE gives on ASCII."""
    inner = draw(st.sets(st.integers(1, length - 1))) if length > 1 else set()
    edges = [0, *sorted(inner), length]
    return list(pairwise(edges))


@st.composite
def ragged(draw: st.DrawFn, length: int = LENGTH) -> list[tuple[int, int]]:
    """A partition with gaps, characters spread over several tokens, overlaps, swaps and zero-width tokens."""
    offsets: list[tuple[int, int]] = []
    for begin, end in draw(tidy(length)):
        kind = draw(st.sampled_from(["plain"] * 4 + ["gap", "split", "trim", "overlap", "zero", "special"]))
        if kind == "gap":
            continue
        if kind == "trim" and end - begin > 1:
            begin += 1
        if kind == "overlap":
            begin = max(0, begin - 2)
        if kind in ("zero", "special"):
            offsets.append((begin, begin) if kind == "zero" else (0, 0))
        offsets.extend([(begin, end)] * (draw(st.integers(2, 4)) if kind == "split" else 1))
    if len(offsets) > 1 and draw(st.booleans()):
        k = draw(st.integers(0, len(offsets) - 2))
        offsets[k], offsets[k + 1] = offsets[k + 1], offsets[k]
    return offsets


@st.composite
def arbitrary(draw: st.DrawFn, length: int = LENGTH) -> list[tuple[int, int]]:
    """Any pairs begin <= end in any order, negative (prompt) positions included."""
    pair = st.tuples(st.integers(-4, length), st.integers(0, 4)).map(lambda p: (p[0], p[0] + p[1]))
    return draw(st.lists(pair, max_size=12))


@st.composite
def gappy(draw: st.DrawFn, length: int = LENGTH) -> list[tuple[int, int]]:
    """Short tokens far apart: both sides' gaps overlap crosswise."""
    edges = sorted(draw(st.sets(st.integers(0, length), max_size=16)))
    return list(zip(edges[:-1:2], edges[1::2], strict=False))


def any_offsets() -> st.SearchStrategy[list[tuple[int, int]]]:
    return st.one_of(tidy(), ragged(), gappy(), arbitrary())
