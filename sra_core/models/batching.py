"""Batches by length, padding on the left for generation, and a model put in evaluation mode for a while.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["evaluating", "pad", "token_batches"]


def token_batches(lengths: Sequence[int], budget: int, flat: bool = False) -> Iterator[list[int]]:
    """Cut examples, longest first, into batches of at most ``budget`` tokens.

    Args:
        lengths: Tokens of each example.
        budget: Most tokens of one batch; an example longer than that is a batch of its own.
        flat: Count real tokens; else padding too.

    Yields:
        Indices of the examples of each batch.
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # Padded, each text costs as much as the longest, which is the batch's first.
        more = lengths[index] if flat or not batch else lengths[batch[0]]
        if batch and tokens + more > budget:
            yield batch
            batch, tokens, more = [], 0, lengths[index]
        batch.append(index)
        tokens += more
    if batch:
        yield batch


def pad(rows: Sequence[np.ndarray | Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Stack token rows, with token 0 on the left of the shorter ones, so that all of them end where generation goes on.

    Args:
        rows: Token ids, one sequence a row.

    Returns:
        ``(ids, mask)``, both (B, T) long; the mask is 1 on real tokens.
    """
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.as_tensor(np.asarray(row, dtype=np.int64))
        mask[index, width - len(row) :] = 1
    return ids, mask


@contextmanager
def evaluating(model: nn.Module) -> Iterator[Any]:
    """Evaluation mode without gradients; every submodule gets back the mode that it had.

    ``no_grad`` rather than ``inference_mode``: buffers that a forward renews must stay usable in training.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in modes.items():
            module.training = training
