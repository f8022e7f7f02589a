"""Spans of tokens to centres of mass (paper section 2).

Legend: B texts, T tokens, K spans of one text, N spans of the batch, d width.

Ragged spans are handled as one flat list of the tokens that lie in spans, each with the number of its span; no loop
over texts or spans.  Ranges may be empty, overlap or leave tokens out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sra_core.objective.head import accurate

__all__ = ["pool_batch", "pool_spans"]

MASS_FLOOR = 1e-5  # the method's guard against division by a span that the last token ignores


def pool_spans(hidden: Tensor, weights: Tensor, ranges: Tensor, weighted: bool = True) -> tuple[Tensor, Tensor]:
    """Centres of mass of one text's spans.

    Args:
        hidden: (T, d) token states.
        weights: (T,) attention of the last real token; no gradient flows into it.
        ranges: (K, 2) half-open token ranges.
        weighted: Off takes the plain mean of the states in place of the weighted one (no WSP); masses stay the same.

    Returns:
        Centres (K, d), ``sum w H / max(sum w, 1e-5)``, and masses (K,), in float32 or wider.
    """
    text = torch.zeros(len(ranges), dtype=torch.long, device=hidden.device)
    return pool_batch(hidden[None], weights[None], text, ranges, weighted)


def pool_batch(
    hidden: Tensor, weights: Tensor, span_text: Tensor, span_range: Tensor, weighted: bool = True
) -> tuple[Tensor, Tensor]:
    """Centres of mass of the spans of many texts: as :func:`pool_spans`.

    Args:
        hidden: (B, T, d) token states.
        weights: (B, T) attention of each text's last real token.
        span_text: (N,) row of each span.
        span_range: (N, 2) half-open token ranges within the row.
        weighted: Off takes plain means.

    Returns:
        Centres (N, d) and masses (N,).
    """
    tokens, span = span_tokens(span_text, span_range, hidden.shape[1])
    spans = len(span_text)
    weight = accurate(weights.detach()).reshape(-1).index_select(0, tokens)
    mass = weight.new_zeros(spans).index_add(0, span, weight)
    states = accurate(hidden.reshape(-1, hidden.shape[-1]).index_select(0, tokens))
    if weighted:
        share, total = weight, mass.clamp(min=MASS_FLOOR)
    else:
        share, total = torch.ones_like(weight), (span_range[:, 1] - span_range[:, 0]).clamp(min=1)
    share = (share / total.index_select(0, span)).to(states.dtype)
    centers = states.new_zeros(spans, states.shape[-1]).index_add(0, span, states * share[:, None])
    return centers, mass


def span_tokens(span_text: Tensor, span_range: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The tokens inside spans, flat.

    Args:
        span_text: (N,) row of each span.
        span_range: (N, 2) half-open ranges within the row.
        width: T, tokens a row.

    Returns:
        Positions into the flattened (B * T) tokens, and the number of the span that each belongs to.
    """
    begin, end = span_range.long().unbind(1)
    length = (end - begin).clamp(min=0)
    span = torch.repeat_interleave(torch.arange(len(length), device=length.device), length)
    before = (length.cumsum(0) - length).index_select(0, span)
    within = torch.arange(len(span), device=length.device) - before
    start = span_text.long() * width + begin
    return start.index_select(0, span) + within, span
