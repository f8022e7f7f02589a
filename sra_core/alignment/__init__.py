"""Alignment: offsets -> clean cuts -> span map, shared vocabulary, audit."""

from sra_core.alignment.cuts import IntArray, SpanMap, align, clean_cuts

__all__ = ["IntArray", "SpanMap", "align", "clean_cuts"]
