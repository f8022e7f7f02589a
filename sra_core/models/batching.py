"""Batches by length, padding, and a model put in evaluation mode for a while.

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


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut examples, longest first, into batches whose padded size stays within ``budget`` tokens.

    Args:
        lengths: Tokens of each example.
        budget: Most tokens of one batch, padding included; an example longer than that is a batch of its own.

    Yields:
        Indices of the examples of each batch.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad(rows: Sequence[np.ndarray | Sequence[int]], side: str = "right") -> tuple[Tensor, Tensor]:
    """Stack token rows.

    Args:
        rows: Token ids, one sequence a row.
        side: ``right`` or ``left``, where the padding goes. Padding holds token 0 and is masked.

    Returns:
        ``(ids, mask)``, both (B, T) long; the mask is 1 on real tokens.
    """
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[index, place] = torch.as_tensor(np.asarray(row, dtype=np.int64))
        mask[index, place] = 1
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
