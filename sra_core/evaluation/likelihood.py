"""Bits per byte: how well a model predicts held-out responses, whatever its tokenizer.

A text costs the same number of bytes under every tokenizer, so the summed code length of its tokens divided by its
bytes compares models that cut it differently.

Shapes: B batch, T tokens, N response tokens of a batch, d width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sra_core.errors import EvaluationError
from sra_core.evaluation.batching import evaluating, length_batches, pad

__all__ = ["Likelihood", "Side", "bits_per_byte", "response_likelihood"]

Side = Literal["teacher", "student"]
LOGIT_BYTES = 64 * 2**20
"""Most memory that one chunk of float32 logits takes."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Code lengths of responses, one entry an example.

    Attributes:
        ids: Example ids, in the order of the rows given.
        nats: (E,) float64, summed -ln p over the response tokens.
        bytes: (E,) int64, UTF-8 bytes of the responses.
        tokens: (E,) int64, response tokens counted.
    """

    ids: tuple[str, ...]
    nats: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray

    @property
    def bits_per_byte(self) -> float:
        """All bits over all bytes: long responses weigh more, as they do in a compressed file."""
        return float(self.nats.sum() / math.log(2) / self.bytes.sum())


def bits_per_byte(model: Any, rows: Sequence[Any], side: Side = "student", **options: Any) -> float:
    """Bits per byte of the responses of ``rows``: one number for a training loop; see `response_likelihood`."""
    return response_likelihood(model, rows, side, **options).bits_per_byte


def response_likelihood(
    model: Any,
    rows: Sequence[Any],
    side: Side = "student",
    *,
    eos_token_id: int | None = None,
    tokens_per_batch: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> Likelihood:
    """Score the response tokens of every row under one model.

    The model may be in training mode: it is put in evaluation mode for the time of the call, without gradients.
    Logits exist at response positions only, in chunks of bounded size; sums are float64 over float32 log-probabilities.

    Args:
        model: A Hugging Face causal language model.
        rows: Prepared rows; ``side`` picks ``teacher_ids`` or ``student_ids``.
        side: Whose tokens the model reads.
        eos_token_id: End-of-text token; a row's last token is left out when it is this one, as it stands for no bytes.
        tokens_per_batch: Most tokens, padding included, in one forward.
        progress: Called with (examples done, examples in all).

    Raises:
        EvaluationError: There are no rows, a response is empty, a token is outside the model's vocabulary, or the model
            changes its logits in a way that is not known here.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # adapters work in place
    texts = [_tokens(row, side, eos_token_id) for row in rows]
    sizes = np.array([len(row.response.encode()) for row in rows], dtype=np.int64)
    _check(rows, texts, sizes, model)
    nats = np.zeros(len(rows))
    done = 0
    with evaluating(model):
        _check_head(model, torch.as_tensor(texts[0][0][:2].astype(np.int64))[None].to(model.device))
        for batch in length_batches([len(ids) for ids, _ in texts], tokens_per_batch):
            nats[batch] = _batch_nats(model, [texts[index] for index in batch])
            done += len(batch)
            if progress:
                progress(done, len(rows))
    counts = np.array([len(ids) - first for ids, first in texts], dtype=np.int64)
    return Likelihood(tuple(row.id for row in rows), nats, sizes, counts)


def _tokens(row: Any, side: Side, eos: int | None) -> tuple[np.ndarray, int]:
    ids = np.asarray(row.teacher_ids if side == "teacher" else row.student_ids)
    first = int(row.teacher_response if side == "teacher" else row.student_response)
    if eos is not None and len(ids) > first and int(ids[-1]) == eos:
        ids = ids[:-1]
    return ids, first


def _check(rows: Sequence[Any], texts: list[tuple[np.ndarray, int]], sizes: np.ndarray, model: Any) -> None:
    if not rows:
        raise EvaluationError(
            "there are no examples to score", "raise corpus.test_share or corpus.max_test, or point at other data"
        )
    vocabulary = model.get_input_embeddings().weight.shape[0]
    for row, (ids, first), size in zip(rows, texts, sizes, strict=True):
        if size == 0 or len(ids) <= first:
            raise EvaluationError(f"example {row.id}: its response is empty", "prepare the examples again")
        if int(ids.max()) >= vocabulary:
            raise EvaluationError(
                f"example {row.id}: token {int(ids.max())} is outside the model's vocabulary of {vocabulary}",
                "score the rows with the model whose tokenizer encoded them (check the side: teacher or student)",
            )


def _batch_nats(model: Any, texts: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Summed -ln p of each text's response tokens: (B,) float64."""
    ids, mask = (part.to(model.device) for part in pad([ids for ids, _ in texts]))
    hidden = _final_states(model, ids, mask)
    rows, places = _response_places(texts)
    targets = ids[rows, places]
    values = token_nats(hidden[rows, places - 1], targets, model).double().cpu().numpy()
    nats = np.bincount(rows.numpy(), weights=values, minlength=len(texts))
    # a first token with nothing before it has no prediction: a uniform code pays for it
    unpredicted = np.array([first == 0 for _, first in texts])
    return nats + unpredicted * math.log(model.get_output_embeddings().weight.shape[0])


def _response_places(texts: list[tuple[np.ndarray, int]]) -> tuple[Tensor, Tensor]:
    """Row and position of every response token that has a token before it."""
    places = [torch.arange(max(first, 1), len(ids)) for ids, first in texts]
    rows = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor([len(place) for place in places]))
    return rows, torch.cat(places)


def _final_states(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T, d) after the final norm."""
    return model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def token_nats(states: Tensor, targets: Tensor, model: Any) -> Tensor:
    """-ln p of each target: states (N, d), targets (N,) -> (N,) float32, in chunks of bounded memory."""
    chunk = max(1, LOGIT_BYTES // (4 * model.get_output_embeddings().weight.shape[0]))
    pieces = [
        torch.nn.functional.cross_entropy(_logits(model, part), wanted, reduction="none")
        for part, wanted in zip(states.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(pieces)


def _logits(model: Any, states: Tensor) -> Tensor:
    logits = model.get_output_embeddings()(states).float()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def _check_head(model: Any, ids: Tensor) -> None:
    """Some architectures scale their logits: compare with the model's own on two tokens rather than trust a list."""
    own = model(input_ids=ids, use_cache=False).logits.float()
    ours = _logits(model, _final_states(model, ids, torch.ones_like(ids)))
    if not torch.allclose(own, ours, rtol=1e-2, atol=1e-2):
        raise EvaluationError(
            f"{type(model).__name__} changes its logits after the LM head in a way that is not supported",
            "use a model whose logits are its LM head's, with or without final soft-capping",
        )
