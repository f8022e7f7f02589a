"""Alignment: offsets -> clean cuts -> span map, both tokenizations of an example, shared vocabulary, audit."""

from sra_core.alignment.audit import AlignmentAudit, audit
from sra_core.alignment.cuts import IntArray, SpanMap, align, clean_cuts
from sra_core.alignment.encode import AlignedExample, PairEncoder, encoder_of
from sra_core.alignment.figure import draw_spans
from sra_core.alignment.literal import answer_end
from sra_core.alignment.offsets import check_offsets, mend_offsets
from sra_core.alignment.render import render_figures, render_html, render_markdown, render_terminal
from sra_core.alignment.report import AlignmentReport, GroupFigures, LongestSpan, SideFigures, SpanView, WorstExample
from sra_core.alignment.tokens import BareTokenizer, token_bytes
from sra_core.alignment.views import TextSpans
from sra_core.alignment.vocabulary import SharedVocabulary, shared_vocabulary

__all__ = [
    "AlignedExample",
    "AlignmentAudit",
    "AlignmentReport",
    "BareTokenizer",
    "GroupFigures",
    "IntArray",
    "LongestSpan",
    "PairEncoder",
    "SharedVocabulary",
    "SideFigures",
    "SpanMap",
    "SpanView",
    "TextSpans",
    "WorstExample",
    "align",
    "answer_end",
    "audit",
    "check_offsets",
    "clean_cuts",
    "draw_spans",
    "encoder_of",
    "mend_offsets",
    "render_figures",
    "render_html",
    "render_markdown",
    "render_terminal",
    "shared_vocabulary",
    "token_bytes",
]
