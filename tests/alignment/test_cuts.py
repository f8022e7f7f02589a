"""clean_cuts, align and SpanMap against the plain quadratic implementation, the definition and fixed expected maps."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sra_core.alignment import SpanMap, align, clean_cuts
from sra_core.errors import AlignmentError

from .plain import is_clean, plain_align, plain_boundaries
from .strategies import any_offsets, gappy, ragged, tidy, tried

STARTS = st.integers(-6, 28)


def as_lists(spans: SpanMap) -> dict[str, list[tuple[int, int]]]:
    return {name: [tuple(row) for row in getattr(spans, name).tolist()] for name in ("teacher", "student", "chars")}


@tried(500)
@given(any_offsets(), any_offsets(), STARTS)
def test_equals_the_plain_quadratic_alignment(teacher, student, start):
    assert as_lists(align(teacher, student, start)) == plain_align(teacher, student, start)


@tried(250)
@given(gappy(), gappy(), STARTS)
def test_gaps_that_overlap_crosswise_still_give_the_largest_number_of_spans(teacher, student, start):
    assert as_lists(align(teacher, student, start)) == plain_align(teacher, student, start)


@tried(150)
@given(any_offsets(), any_offsets(), STARTS)
def test_every_span_lies_between_clean_cuts_of_both_sides_and_is_not_empty(teacher, student, start):
    spans = align(teacher, student, start)
    for (a, b), (c, d), (p, q) in zip(spans.teacher, spans.student, spans.chars, strict=True):
        assert start <= p < q
        assert is_clean(teacher, p, a)
        assert is_clean(teacher, q, b)
        assert is_clean(student, p, c)
        assert is_clean(student, q, d)
        for offsets, first, last in ((teacher, a, b), (student, c, d)):
            inside = offsets[first:last]
            assert inside[0][0] != inside[0][1], "a zero-width token at the edge belongs to no span"
            assert inside[-1][0] != inside[-1][1]
            assert all(p <= x and y <= q for x, y in inside if x != y)
            outside = [pair for pair in offsets[:first] + offsets[last:] if pair[0] != pair[1]]
            assert all(y <= p or x >= q for x, y in outside), "a span takes all tokens between its cuts"


@tried(150)
@given(any_offsets(), any_offsets(), STARTS)
def test_spans_partition_the_text_between_the_first_and_the_last_common_cut(teacher, student, start):
    spans = align(teacher, student, start)
    for ranges in (spans.teacher, spans.student):
        assert (ranges[:, 0] < ranges[:, 1]).all()
        assert (ranges[1:, 0] >= ranges[:-1, 1]).all()
    assert (spans.chars[1:, 0] == spans.chars[:-1, 1]).all()


@tried(100)
@given(any_offsets(), any_offsets(), STARTS)
def test_swapping_the_sides_swaps_the_map(teacher, student, start):
    forth, back = align(teacher, student, start), align(student, teacher, start)
    assert forth == SpanMap(back.student, back.teacher, back.chars)


@tried(100)
@given(tidy(), tidy(), st.integers(0, 24))
def test_on_tidy_offsets_it_is_the_intersection_of_end_offsets_as_in_the_paper(teacher, student, start):
    common = {0, *(b for _, b in teacher)} & {0, *(b for _, b in student)}
    cuts = sorted(p for p in common if p >= start)
    assert align(teacher, student, start).chars.tolist() == [list(pair) for pair in pairwise(cuts)]


@tried(100)
@given(ragged())
def test_the_same_tokenizer_twice_gives_one_span_a_character_closing_token(offsets):
    spans = align(offsets, offsets)
    assert len(spans) == max(len(clean_cuts(offsets)) - 1, 0)
    assert np.array_equal(spans.teacher, spans.student)


@tried(100)
@given(any_offsets(), any_offsets(), st.integers(0, 20), st.randoms())
def test_zero_width_tokens_anywhere_change_no_span(teacher, student, position, random):
    padded = list(teacher)
    for _ in range(5):
        padded.insert(random.randint(0, len(padded)), (position, position))
    plain, more = align(teacher, student), align(padded, student)
    assert np.array_equal(plain.chars, more.chars)
    assert np.array_equal(plain.student, more.student)
    for (a, b), (c, d) in zip(plain.teacher, more.teacher, strict=True):
        assert [pair for pair in padded[c:d] if pair[0] != pair[1]] == [p for p in teacher[a:b] if p[0] != p[1]]


@tried(100)
@given(any_offsets())
def test_clean_cuts_follow_the_definition(offsets):
    cuts = clean_cuts(offsets)
    expected = plain_boundaries(offsets, min([0, *(a for a, b in offsets if a != b)]))
    assert [(left, low) for left, _, low, _ in expected] == [tuple(row) for row in cuts.tolist()]
    assert all(is_clean(offsets, position, index) for index, position in cuts.tolist())


def test_golden_byte_pieces_of_one_character_close_it_together():
    # "a€b": one side splits the euro sign over three byte tokens, each of which reports the whole character
    teacher = [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]
    student = [(0, 1), (1, 2), (2, 3)]
    spans = align(teacher, student)
    assert spans.teacher.tolist() == [[0, 1], [1, 4], [4, 5]]
    assert spans.student.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert spans.chars.tolist() == [[0, 1], [1, 2], [2, 3]]


def test_golden_white_space_left_out_of_the_offsets_meets_white_space_inside_and_alone():
    # "say hi you"; word pieces without spaces, " hi" with its space, then a space token of its own
    teacher = [(0, 3), (4, 6), (7, 10)]
    student = [(0, 3), (3, 6), (6, 7), (7, 10)]
    spans = align(teacher, student)
    assert spans.teacher.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert spans.student.tolist() == [[0, 1], [1, 2], [2, 4]]
    assert spans.chars.tolist() == [[0, 3], [3, 6], [6, 10]]


def test_golden_token_across_the_start_is_in_no_span_on_either_side():
    teacher = [(-4, -1), (-1, 2), (2, 5)]
    student = [(-4, 0), (0, 2), (2, 3), (3, 5)]
    spans = align(teacher, student)
    assert spans.teacher.tolist() == [[2, 3]]
    assert spans.student.tolist() == [[2, 4]]
    assert spans.chars.tolist() == [[2, 5]]


def test_golden_crosswise_gaps():
    teacher = [(0, 2), (5, 6), (9, 12)]  # gaps [2, 5] and [6, 9]
    student = [(0, 1), (4, 5), (8, 12)]  # gaps [1, 4] and [5, 8]: [2,5] meets both, [6,9] the second
    assert align(teacher, student).chars.tolist() == [[0, 2], [2, 6], [6, 12]]


def test_last_cut_is_where_both_sides_end():
    assert align([(0, 2), (2, 4)], [(0, 2), (2, 4), (4, 9)]).chars.tolist() == [[0, 2], [2, 4]]
    assert align([(0, 2), (2, 4)], [(0, 2), (2, 9)]).chars.tolist() == [[0, 2]]


@pytest.mark.parametrize("empty", [[], np.zeros((0, 2), np.int32), np.zeros(0), [(0, 0)], [(3, 3), (3, 3)]])
def test_nothing_to_align(empty):
    for spans in (align(empty, [(0, 1)]), align([(0, 1)], empty), align(empty, empty)):
        for array in (spans.teacher, spans.student, spans.chars):
            assert array.shape == (0, 2)
            assert array.dtype == np.int32
    assert clean_cuts(empty).shape == (0, 2)


def test_one_token_each():
    spans = align([(0, 5)], [(0, 5)])
    assert as_lists(spans) == {"teacher": [(0, 1)], "student": [(0, 1)], "chars": [(0, 5)]}
    assert len(align([(0, 5)], [(0, 4)])) == 0
    assert len(align([(0, 5)], [(0, 5)], start=5)) == 0
    assert len(align([(0, 5)], [(0, 5)], start=6)) == 0


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint32, np.uint64])
def test_any_integer_type_and_memory_order(dtype):
    pairs = [(0, 2), (2, 2), (2, 5), (5, 9)]
    other = np.asfortranarray(np.array([(0, 5), (5, 9)], dtype))
    spans = align(np.array(pairs, dtype), other)
    assert spans.teacher.tolist() == [[0, 3], [3, 4]]
    assert {array.dtype for array in (spans.teacher, spans.student, spans.chars)} == {np.dtype(np.int32)}


@pytest.mark.parametrize(
    "wrong", [[1, 2, 3], [[1, 2, 3]], [[0.0, 1.0]], np.zeros((2, 2, 2), int), [["a", "b"]], [[True, False]]]
)
def test_wrong_shapes_and_types_are_refused_by_name(wrong):
    with pytest.raises(AlignmentError, match="student_offsets: expected integers of shape"):
        align([(0, 1)], wrong)
    with pytest.raises(AlignmentError, match="teacher_offsets"):
        align(wrong, [(0, 1)])


def test_a_token_that_ends_before_it_starts_is_refused():
    with pytest.raises(AlignmentError, match="token 1 ends before it starts"):
        clean_cuts([(0, 1), (3, 2)])


def test_span_map_slices_shifts_compares_and_pickles():
    spans = align([(0, 1), (1, 2), (2, 3)], [(0, 2), (2, 3)])
    assert len(spans) == 2
    assert spans.head(1).chars.tolist() == [[0, 2]]
    assert spans.shifted(-1, 2).teacher.tolist() == [[-1, 1], [1, 2]]
    assert spans.shifted(-1, 2).student.tolist() == [[2, 3], [3, 4]]
    assert spans.shifted(0, 1).teacher.dtype == np.int32
    assert pickle.loads(pickle.dumps(spans)) == spans
    assert spans != spans.head(1)


@pytest.mark.parametrize("size", [3_000, 60_000])
def test_long_inputs_agree_with_set_intersection(size):
    random = np.random.default_rng(size)
    length = 4 * size
    sides = []
    for share in (0.25, 0.3):
        edges = np.unique(np.concatenate([[0, length], np.flatnonzero(random.random(length) < share)]))
        sides.append(np.stack([edges[:-1], edges[1:]], axis=1))
    spans = align(*sides)
    common = np.intersect1d(sides[0][:, 1], sides[1][:, 1])
    assert np.array_equal(spans.chars[:, 1], common)
    assert np.array_equal(sides[0][spans.teacher[:, 1] - 1, 1], common)
    assert np.array_equal(sides[1][spans.student[:, 1] - 1, 1], common)
