"""The picture of spans: every token is drawn, both sides of a span take the same place, shade follows mass."""

from __future__ import annotations

import pytest
from matplotlib.patches import Rectangle

from sra_core.alignment import SpanView, draw_spans

SPANS = [
    SpanView("Hello", ["Hel", "lo"], ["H", "el", "lo"]),
    SpanView(" world", [" world"], [" world"]),
    SpanView("!\n", ["!\n"], ["!", "\n"]),
]


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def extent(patches: list[Rectangle]) -> tuple[float, float]:
    return min(patch.get_x() for patch in patches), max(patch.get_x() + patch.get_width() for patch in patches)


def test_both_sides_show_all_tokens_with_white_space_made_visible() -> None:
    shown = texts(draw_spans(SPANS))
    assert [text for text in shown if text in ("Hel", "lo", "H", "el", "·world", "!⏎", "!", "⏎")] == [
        *("Hel", "lo", "H", "el", "lo"),
        *("·world", "·world"),
        *("!⏎", "!", "⏎"),
    ]
    assert "2:3" in shown
    assert "1:2" in shown
    assert "1:1" not in shown
    assert any("3 spans, 2 of them with several tokens" in text for text in shown)


def by_row(figure) -> list[list[Rectangle]]:
    """Rectangles line by line, from the top: the teacher's tokens, the bands, the student's tokens."""
    found: dict[float, list[Rectangle]] = {}
    for patch in figure.axes[0].patches:
        found.setdefault(round(patch.get_y(), 6), []).append(patch)
    return [found[y] for y in sorted(found, reverse=True)]


def test_tokens_of_a_span_fill_the_same_place_on_both_sides() -> None:
    teacher, bands, student = by_row(draw_spans(SPANS))
    assert (len(teacher), len(bands), len(student)) == (4, 3, 6)
    starts = [{round(patch.get_x(), 6) for patch in row} for row in (teacher, student)]
    assert {round(band.get_x(), 6) for band in bands} == starts[0] & starts[1]  # a cut is a cut of both
    assert extent(teacher) == pytest.approx(extent(bands))
    assert extent(student) == pytest.approx(extent(bands))


def test_the_shade_of_a_band_follows_its_mass() -> None:
    figure = draw_spans(SPANS, [0.1, 0.4, 0.025])
    alpha = [band.get_alpha() for band in by_row(figure)[1]]
    assert alpha[1] > alpha[0] > alpha[2]
    assert alpha[1] - alpha[0] == pytest.approx(0.8 * (1 - 0.5))  # the root: a quarter of the mass is half the shade
    assert any("mass" in text for text in texts(figure))
    plain = draw_spans(SPANS)
    assert not any("mass" in text for text in texts(plain))
    assert len({band.get_alpha() for band in by_row(plain)[1]}) == 1


def test_a_long_text_takes_three_lines_and_says_what_is_left_out() -> None:
    spans = [SpanView(" word", [" word"], [" wo", "rd"])] * 100
    figure = draw_spans(spans, [0.01] * 100)
    shown = texts(figure)
    assert len(by_row(figure)) == 9
    assert shown.count("teacher") == shown.count("student") == 3
    drawn = shown.count("1:2")
    assert 0 < drawn < 100
    assert any("100 spans, 100 of them" in text and f"the first {drawn} are shown" in text for text in shown)


@pytest.mark.parametrize("spans", [[], [SpanView("x" * 200, ["x" * 200], ["x" * 120, "x" * 80])]])
def test_nothing_and_one_token_wider_than_a_line_are_drawn(spans: list[SpanView]) -> None:
    figure = draw_spans(spans, [0.5] * len(spans))
    assert len(figure.axes[0].patches) == 4 * len(spans)
