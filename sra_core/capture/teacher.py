"""The teacher's forward, pooled to spans on its device. B texts, T tokens, N spans of the batch, d teacher width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sra_core.capture.batches import token_batches
from sra_core.models import mapped_states
from sra_core.objective import pool_batch
from sra_core.shards import PreparedRow, TeacherRow

__all__ = ["TeacherCapture"]


class TeacherCapture:
    """Turns prepared examples into what the cache keeps.

    Args:
        model: The teacher in evaluation mode. Its LM head is never run.
        layers: Layers to keep, counted from 1.
        tokens_per_batch: Most tokens, padding included, in one forward.
        weighted_pooling: Weigh tokens by attention inside a span; off keeps plain means.
    """

    def __init__(self, model: Any, layers: Sequence[int], tokens_per_batch: int, weighted_pooling: bool = True) -> None:
        self._model = model
        self._layers = list(layers)
        self._budget = tokens_per_batch
        self._weighted = weighted_pooling

    def __call__(
        self, rows: Sequence[PreparedRow], done: Callable[[int], None] = lambda examples: None
    ) -> list[TeacherRow]:
        """Centres and masses of every row, in the order given; ``done`` hears how many more examples are finished."""
        captured: dict[int, TeacherRow] = {}
        for batch in token_batches([len(row.teacher_ids) for row in rows], self._budget):
            captured |= dict(zip(batch, self._forward([rows[index] for index in batch]), strict=True))
            done(len(batch))
        return [captured[index] for index in range(len(rows))]

    @torch.inference_mode()
    def _forward(self, rows: Sequence[PreparedRow]) -> list[TeacherRow]:
        device = self._model.device
        ids, mask = (tensor.to(device) for tensor in _padded([row.teacher_ids for row in rows]))
        states = mapped_states(self._model, ids, mask, self._layers)
        counts = [len(row.teacher_spans) for row in rows]
        text = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts)).to(device)
        spans = torch.from_numpy(np.concatenate([row.teacher_spans for row in rows]).astype(np.int64)).to(device)
        centers: dict[int, list[NDArray[np.float32]]] = {}
        mass: dict[int, list[NDArray[np.float32]]] = {}
        for layer in self._layers:
            pooled = pool_batch(states.hidden[layer], states.weights[layer], text, spans, self._weighted)
            centers[layer], mass[layer] = (_by_row(tensor, counts) for tensor in pooled)
        return [
            TeacherRow(row.id, {k: centers[k][i] for k in self._layers}, {k: mass[k][i] for k in self._layers})
            for i, row in enumerate(rows)
        ]


def _padded(texts: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask (B, T), padded on the right; what stands at padding is never attended to."""
    ids = np.zeros((len(texts), max(len(text) for text in texts)), np.int64)
    mask = np.zeros_like(ids)
    for place, text in enumerate(texts):
        ids[place, : len(text)] = text
        mask[place, : len(text)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _by_row(values: Tensor, counts: Sequence[int]) -> list[NDArray[np.float32]]:
    whole = values.float().cpu().numpy()
    return np.split(whole, np.cumsum(counts)[:-1])
