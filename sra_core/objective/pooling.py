"""Spans of tokens to centres of mass (paper section 2).

Legend: N tokens of one text or of many one after another, K spans of them, d width.

Ragged spans are handled as one flat list of the tokens that lie in spans, each with the number of its span; no loop
over texts or spans.  Ranges may be empty, overlap or leave tokens out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sra_core.objective.head import accurate

__all__ = ["pool_spans"]

MASS_FLOOR = 1e-5  # the method's guard against division by a span that the last token ignores


def pool_spans(
    hidden: Tensor, weights: Tensor, ranges: Tensor, weighted: bool = True, in_spans: int | None = None
) -> tuple[Tensor, Tensor]:
    """Centres of mass of spans.

    >>> import torch
    >>> from sra_core import pool_spans
    >>> states, weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]), torch.tensor([0.1, 0.3, 0.2])
    >>> centers, mass = pool_spans(states, weights, torch.tensor([[0, 2], [2, 3]]))
    >>> centers
    tensor([[0.2500, 0.7500],
            [2.0000, 2.0000]])
    >>> mass
    tensor([0.4000, 0.2000])

    Args:
        hidden: (N, d) token states.
        weights: (N,) attention of the last real token of each token's text; no gradient flows into it.
        ranges: (K, 2) half-open token ranges.
        weighted: Off takes the plain mean of the states in place of the weighted one (no WSP); masses stay the same.
        in_spans: Tokens inside spans; unset counts them, for which a GPU is waited for.

    Returns:
        Centres (K, d), ``sum w H / max(sum w, 1e-5)``, and masses (K,), in float32 or wider.
    """
    tokens, span = span_tokens(ranges, in_spans)
    spans = len(ranges)
    weight = accurate(weights.detach()).index_select(0, tokens)
    # Of attention also where centres are plain means: the weights of the loss are made of it.
    mass = weight.new_zeros(spans).index_add(0, span, weight)
    states = accurate(hidden.index_select(0, tokens))
    if weighted:
        share, total = weight, mass.clamp(min=MASS_FLOOR)
    else:
        share, total = torch.ones_like(weight), (ranges[:, 1] - ranges[:, 0]).clamp(min=1)
    share = (share / total.index_select(0, span)).to(states.dtype)
    centers = states.new_zeros(spans, states.shape[-1]).index_add(0, span, states * share[:, None])
    return centers, mass


def span_tokens(ranges: Tensor, in_spans: int | None = None) -> tuple[Tensor, Tensor]:
    """The tokens inside spans: their places, and the number of the span that each belongs to.

    Args:
        ranges: (K, 2) half-open ranges.
        in_spans: Tokens inside spans, where they are counted already.
    """
    begin, end = ranges.long().unbind(1)
    length = (end - begin).clamp(min=0)
    count = torch.arange(len(length), device=length.device)
    span = torch.repeat_interleave(count, length, output_size=in_spans)
    before = (length.cumsum(0) - length).index_select(0, span)
    within = torch.arange(len(span), device=length.device) - before
    return begin.index_select(0, span) + within, span
