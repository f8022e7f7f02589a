"""Examples: hub data sets, files, the embedded documentation of Python's standard library; prompt templates."""

from sra_core.corpus.corpus import Corpus
from sra_core.corpus.templates import FIXED_DAY, Rendered, RenderError, asks_for_the_date, render, written_after
from sra_core.corpus.types import Example, Rejected, Turn

__all__ = [
    "FIXED_DAY",
    "Corpus",
    "Example",
    "Rejected",
    "RenderError",
    "Rendered",
    "Turn",
    "asks_for_the_date",
    "render",
    "written_after",
]
