"""The picture of one prepared example's spans, shaded by the teacher's attention where a cache holds it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sra_core.alignment import SpanView, draw_spans
from sra_core.alignment.tokens import Spelling, backend_of
from sra_core.alignment.views import shown
from sra_core.config import RunConfig
from sra_core.errors import ConfigError, SraError
from sra_core.runs import Run
from sra_core.shards import Manifest, PreparedRow, PreparedSet, TeacherSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_figure", "example_figure", "write_figure"]

_FORMATS = (".svg", ".png", ".pdf")
_OPENING = 12
"""Spans at the start of an example that say whether it is one to show."""


def check_figure(path: Path) -> None:
    """Refuse a figure that cannot be written, before anything runs for it.

    Raises:
        ConfigError: The name does not say a format that is known, or the folder is not there.
    """
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"--figure {path} has no ending of a picture", f"let it end in {', '.join(_FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--figure {path}: there is no folder {path.parent}", "make the folder, or name another")


def write_figure(figure: Figure, path: Path) -> bool:
    """Write a figure in the format that the name says; the same figure gives the same bytes.

    Letters become outlines, which look the same everywhere. Where matplotlib's font lacks a letter (Chinese, Hindi), an
    SVG keeps its texts as texts, for the fonts of whoever looks at it.

    Returns:
        Whether every letter can be seen: other formats show boxes for those that the font lacks.
    """
    from matplotlib import rc_context

    lacks = _lacks_a_letter(figure)
    dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    kept = "none" if lacks else "path"
    # Without a salt matplotlib draws the ids in an SVG at random, and it writes the date into its files.
    with rc_context({"svg.hashsalt": "sra", "svg.fonttype": kept}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=200, metadata=dated.get(path.suffix.lower()))
    return not lacks or path.suffix.lower() == ".svg"


def _lacks_a_letter(figure: Figure) -> bool:
    from matplotlib.font_manager import findfont, get_font

    for text in figure.axes[0].texts:
        font = get_font(findfont(text.get_fontproperties()))
        if any(not font.get_char_index(ord(letter)) for letter in text.get_text()):
            return True
    return False


def example_figure(run: Run, example: str = "") -> Figure:
    """Draw the spans of one prepared example.

    Args:
        run: A run whose prepare stage is done. Where its cache stage is done too, the spans of a training example are
            shaded by their mass at the last layer that is kept.
        example: Its id; empty takes the first training example that has a span of several tokens near its start.

    Raises:
        ConfigError: There is no such example.
        ManifestMismatch: Nothing is prepared.
    """
    manifest = run.result("prepare")
    split, place, row = _chosen(manifest, example)
    return draw_spans(
        _spans(row, run.config, Path(manifest.folder)), _mass(run, place, row) if split == "train" else None
    )


def _spans(row: PreparedRow, config: RunConfig, folder: Path) -> list[SpanView]:
    """The tokens of each span of an example as text."""
    from sra_core.models import load_tokenizers

    sides = []
    ids, ranges = (row.teacher_ids, row.student_ids), (row.teacher_spans, row.student_spans)
    for tokens, spans, tokenizer in zip(ids, ranges, load_tokenizers(config, folder), strict=True):
        spelling = Spelling(backend_of(tokenizer))
        pieces = [shown(spelling[token]) for token in tokens.tolist()]
        sides.append([pieces[start:end] for start, end in spans.tolist()])
    return [SpanView("".join(student), teacher, student) for teacher, student in zip(*sides, strict=True)]


def _chosen(manifest: Manifest, example: str) -> tuple[str, int, PreparedRow]:
    """Split, place in it and row of an example."""
    first: tuple[str, int, PreparedRow] | None = None
    for split in ("train", "validation", "test"):
        for place, row in enumerate(PreparedSet(manifest, split)):
            first = first or (split, place, row)
            if row.id == example or (not example and _shows_a_join(row)):
                return split, place, row
    if example or first is None:
        raise ConfigError(
            f"--example {example!r}: no prepared example has this id",
            "take one that `sra audit` names, such as a longest span's",
        )
    return first


def _shows_a_join(row: PreparedRow) -> bool:
    sizes = [np.diff(ranges[:_OPENING]) for ranges in (row.teacher_spans, row.student_spans)]
    return bool(max(size.max() for size in sizes) > 1)


def _mass(run: Run, place: int, row: PreparedRow) -> NDArray[np.float32] | None:
    """(K,) masses of a training example at the last layer of the cache; None where there is no cache yet."""
    try:
        kept = TeacherSet(run.result("cache"), "train")
    except SraError:  # nothing is captured: the spans are as true without
        return None
    found = kept[place]
    if found.id != row.id or not kept.layers:
        return None
    mass: NDArray[np.float32] = found.mass[kept.layers[-1]]
    return mass
