"""Examples: hub data sets, files, the embedded documentation of Python's standard library; prompt templates."""

from sra_core.corpus.corpus import Corpus
from sra_core.corpus.templates import Rendered, RenderError, render
from sra_core.corpus.types import Example, Rejected, Turn

__all__ = ["Corpus", "Example", "Rejected", "RenderError", "Rendered", "Turn", "render"]
