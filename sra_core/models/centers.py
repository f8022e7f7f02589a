"""The teacher's forward, pooled to spans on its device. B texts, N tokens of the batch, K spans of it, d width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sra_core.errors import ModelError
from sra_core.models.batching import token_batches
from sra_core.models.forward import MappedStates, choose_layout, mapped_states
from sra_core.models.structure import input_device, lm_head
from sra_core.models.texts import join
from sra_core.objective import pool_spans
from sra_core.shards import PreparedRow, TeacherRow

__all__ = ["TeacherCapture", "predicting"]


def predicting(row: PreparedRow) -> slice:
    """The teacher positions that predict a response token or the end of text: the states kept for the baselines."""
    # A state predicts the token after it: from the one before the response on, and not the last.
    return slice(max(row.teacher_response, 1) - 1, len(row.teacher_ids) - 1)


class TeacherCapture:
    """Turns prepared examples into what the cache keeps.

    Args:
        model: The teacher in evaluation mode. Its LM head is never run.
        layers: Layers to keep, counted from 1.
        tokens_per_batch: Most tokens in one forward; padding counts where the model is run padded.
        weighted_pooling: Weigh tokens by attention inside a span; off keeps plain means.
        token_states: Keep the last layer's states at the positions that `predicting` names.
        attention: Read attention rows; off, any decoder will do, centres are plain means and masses shares of tokens.
    """

    def __init__(
        self,
        model: Any,
        layers: Sequence[int],
        tokens_per_batch: int,
        weighted_pooling: bool = True,
        token_states: bool = False,
        attention: bool = True,
    ) -> None:
        self._model = model
        self._layers = list(layers)
        self._budget = tokens_per_batch
        self._weighted = weighted_pooling
        self._tokens = token_states
        self._attention = attention

    @property
    def width(self) -> int:
        """d, the teacher's width."""
        return int(lm_head(self._model).weight.shape[1])

    def __call__(
        self, rows: Sequence[PreparedRow], done: Callable[[int], None] = lambda examples: None
    ) -> list[TeacherRow]:
        """What is kept of every row, in the order given; ``done`` hears how many more examples are finished.

        Raises:
            ModelError: What the teacher computes is no number.
        """
        captured: dict[int, TeacherRow] = {}
        flat = choose_layout(self._model).flat
        for batch in token_batches([len(row.teacher_ids) for row in rows], self._budget, flat):
            captured |= dict(zip(batch, self._forward([rows[index] for index in batch]), strict=True))
            done(len(batch))
        return [captured[index] for index in range(len(rows))]

    @torch.inference_mode()
    def _forward(self, rows: Sequence[PreparedRow]) -> list[TeacherRow]:
        ids, starts = join([row.teacher_ids for row in rows])
        longest = max(len(row.teacher_ids) for row in rows)
        states = mapped_states(
            self._model, ids.to(input_device(self._model)), starts, self._layers, longest, self._attention
        )
        centers, mass = self._pooled(states, rows, starts.numpy())
        tokens = _token_states(states.final, rows, starts.numpy()) if self._tokens else [None] * len(rows)
        kept = []
        for i, row in enumerate(rows):
            of_row = {k: values[i] for k, values in centers.items()}, {k: values[i] for k, values in mass.items()}
            kept.append(TeacherRow(row.id, *of_row, tokens[i]))
            _refuse_no_numbers(kept[-1])
        return kept

    def _pooled(
        self, states: MappedStates, rows: Sequence[PreparedRow], starts: NDArray[np.int64]
    ) -> tuple[dict[int, Any], dict[int, Any]]:
        """Centres and masses by layer and row."""
        if not self._layers:
            return {}, {}
        counts = [len(row.teacher_spans) for row in rows]
        # not strict: `starts` has the end of the last text too
        ranges = np.concatenate([row.teacher_spans + start for row, start in zip(rows, starts, strict=False)])
        spans = torch.from_numpy(ranges).to(states.final.device)
        pooled = [pool_spans(states.hidden[k], states.weights[k], spans, self._weighted) for k in self._layers]
        centers, mass = (_to_host(values) for values in zip(*pooled, strict=True))
        return (
            {k: _by_row(values, counts) for k, values in zip(self._layers, centers, strict=True)},
            {k: _by_row(values, counts) for k, values in zip(self._layers, mass, strict=True)},
        )


def _refuse_no_numbers(row: TeacherRow) -> None:
    """Training would stop at them hours later, or not at all: the NaN of CUDA, rounded to bfloat16, is a zero."""
    parts = [(f"layer {k}", values) for of_layer in (row.centers, row.mass) for k, values in of_layer.items()]
    for where, values in [*parts, ("the last states", row.states)]:
        if values is not None and not np.isfinite(values).all():
            raise ModelError(
                f"what the teacher computes of example {row.id} holds NaN or infinity ({where})",
                "set cache.compute_dtype to bfloat16 or float32 (float16 ends at 65,504); if it is so already, use "
                "another checkpoint",
            )


def _token_states(final: Tensor, rows: Sequence[PreparedRow], starts: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    texts = final.split(np.diff(starts).tolist())
    parts = [states[predicting(row)] for states, row in zip(texts, rows, strict=True)]
    whole: NDArray[np.float32] = torch.cat(parts).float().cpu().numpy()
    return _by_row(whole, [len(part) for part in parts])


def _to_host(values: Sequence[Tensor]) -> NDArray[np.float32]:
    """Tensors of one shape as one array, copied from the device once."""
    host: NDArray[np.float32] = torch.stack(values).float().cpu().numpy()
    return host


def _by_row(values: NDArray[np.float32], counts: Sequence[int]) -> list[NDArray[np.float32]]:
    return np.split(values, np.cumsum(counts)[:-1])
