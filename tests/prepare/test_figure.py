"""The picture of one prepared example: found by its id, shaded as the cache says, refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sra_core.alignment import SpanView, draw_spans
from sra_core.errors import ConfigError
from sra_core.models import load_tokenizers
from sra_core.prepare import check_figure, example_figure, write_figure
from sra_core.runs import Run
from sra_core.shards import PreparedSet, TeacherSet
from tests.conftest import SmokeRun


def bands(figure) -> list[float]:
    """Shades of the spans of the first line."""
    patches = figure.axes[0].patches
    second = sorted({round(patch.get_y(), 6) for patch in patches}, reverse=True)[1]
    return [patch.get_alpha() for patch in patches if round(patch.get_y(), 6) == second]


def test_the_example_is_the_one_asked_for_and_its_shades_are_the_teachers_masses(smoke_run: SmokeRun) -> None:
    run = Run(smoke_run.config)
    row, kept = PreparedSet(run.result("prepare"), "train")[2], TeacherSet(run.result("cache"), "train")[2]
    figure = example_figure(run, row.id)
    shades = bands(figure)
    mass = kept.mass[3][: len(shades)]  # the last layer of recipe smoke's pairs
    assert [sorted(shades).index(each) for each in shades] == [sorted(mass).index(each) for each in mass]
    assert any(f"{len(row.teacher_spans):,} spans" in text.get_text() for text in figure.axes[0].texts)


def test_every_token_of_a_span_is_drawn_by_its_text(smoke_run: SmokeRun) -> None:
    run = Run(smoke_run.config)
    manifest = run.result("prepare")
    row = PreparedSet(manifest, "train")[1]
    drawn = [text.get_text() for text in example_figure(run, row.id).axes[0].texts]
    for ids, (start, end), tokenizer in zip(
        (row.teacher_ids, row.student_ids),
        (row.teacher_spans[0], row.student_spans[0]),
        load_tokenizers(run.config, Path(manifest.folder)),
        strict=True,
    ):
        wanted = [tokenizer.decode([token]).replace(" ", "·") for token in ids[start:end].tolist()]
        assert all(token in drawn for token in wanted)


def test_without_a_cache_and_outside_training_spans_have_one_shade(smoke_run: SmokeRun) -> None:
    run = Run(smoke_run.config)
    test = PreparedSet(run.result("prepare"), "test")[0]
    assert len(set(bands(example_figure(run, test.id)))) == 1
    uncached = smoke_run.config.model_copy(deep=True)
    uncached.objective.layers = [[1, 1]]  # of which no cache is there
    assert len(set(bands(example_figure(Run(uncached))))) == 1


def test_without_an_id_a_span_of_several_tokens_is_shown(smoke_run: SmokeRun) -> None:
    shown = [text.get_text() for text in example_figure(Run(smoke_run.config)).axes[0].texts]
    assert any(left.isdigit() and right.isdigit() for left, _, right in (text.partition(":") for text in shown))


def test_an_unknown_example_and_a_file_that_cannot_be_are_refused(smoke_run: SmokeRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'no such': no prepared example") as refused:
        example_figure(Run(smoke_run.config), "no such")
    assert "sra audit" in refused.value.remedy
    for path, said in (
        (tmp_path / "spans.txt", "no ending of a picture"),
        (tmp_path / "nowhere" / "spans.svg", "no folder"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_figure(path)
    check_figure(tmp_path / "SPANS.SVG")


@pytest.mark.parametrize(
    ("name", "start"), [("spans.svg", b"<?xml"), ("spans.PNG", b"\x89PNG"), ("spans.pdf", b"%PDF")]
)
def test_the_same_spans_give_the_same_bytes(smoke_run: SmokeRun, tmp_path: Path, name: str, start: bytes) -> None:
    written = []
    for _ in range(2):
        write_figure(example_figure(Run(smoke_run.config)), tmp_path / name)
        written.append((tmp_path / name).read_bytes())
    assert written[0].startswith(start)
    assert written[0] == written[1]


def test_letters_that_the_font_lacks_stay_text_in_an_svg_and_are_told_of_elsewhere(tmp_path: Path) -> None:
    figure = draw_spans([SpanView("天气", ["天气"], ["天", "气"])])
    assert write_figure(figure, tmp_path / "spans.svg")
    assert "天气" in (tmp_path / "spans.svg").read_text()
    assert not write_figure(figure, tmp_path / "spans.png")
    plain = draw_spans([SpanView("fine", ["fine"], ["fi", "ne"])])
    assert write_figure(plain, tmp_path / "plain.png")
    assert write_figure(plain, tmp_path / "plain.svg")
    assert "<text" not in (tmp_path / "plain.svg").read_text()
