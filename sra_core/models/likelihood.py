"""Bits per byte: how well a model predicts held-out responses, whatever its tokenizer.

A text costs the same number of bytes under every tokenizer, so the summed code length of its tokens divided by its
bytes compares models that cut it differently.

Shapes: B texts, N tokens of the batch, n response tokens of it, d width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sra_core.config import RunConfig
from sra_core.errors import EvaluationError
from sra_core.models.batching import evaluating, token_batches
from sra_core.models.ends import answer_ends
from sra_core.models.forward import choose_layout, mapped_states
from sra_core.models.pair import load_kept_tokenizer
from sra_core.models.structure import input_device, lm_head, unwrap
from sra_core.models.texts import join
from sra_core.objective import Head
from sra_core.shards import Manifest, PreparedSet

__all__ = ["Likelihood", "Side", "bits_per_byte", "known_before", "response_likelihood"]

Side = Literal["teacher", "student"]
_TEXTS = 16
"""Validation texts that tell what a model knows before training: some hundredths of what a run costs."""
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
    eos_token_id: int | Collection[int] | None = None,
    tokens_per_batch: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> Likelihood:
    """Score the response tokens of every row under one model.

    The model may be in training mode: it is put in evaluation mode for the time of the call, without gradients.
    Logits exist at response positions only, in chunks of bounded size; sums are float64 over float32 log-probabilities.

    Args:
        model: A Hugging Face causal language model, wrapped or not.
        rows: Prepared rows; ``side`` picks ``teacher_ids`` or ``student_ids``.
        side: Whose tokens the model reads.
        eos_token_id: The token or tokens that end answers; a row's last token is left out when it is one, as it stands
            for no bytes.
        tokens_per_batch: Most tokens in one forward; padding counts where the model is run padded.
        progress: Called with (examples done, examples in all).

    Raises:
        EvaluationError: There are no rows, a response is empty, or a token is outside the model's vocabulary.
        ModelError: The model's logits are not those of a plain LM head.
    """
    ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or ())
    texts = [_tokens(row, side, ends) for row in rows]
    sizes = np.array([len(row.response.encode()) for row in rows], dtype=np.int64)
    _check(rows, texts, sizes, len(unwrap(model).get_input_embeddings().weight))
    nats = np.zeros(len(rows))
    done = 0
    with evaluating(model):
        head = lm_head(model)
        flat = choose_layout(model).flat
        for batch in token_batches([len(ids) for ids, _ in texts], tokens_per_batch, flat):
            nats[batch] = _batch_nats(model, head, [texts[index] for index in batch])
            done += len(batch)
            if progress:
                progress(done, len(rows))
    counts = np.array([len(ids) - first for ids, first in texts], dtype=np.int64)
    return Likelihood(tuple(row.id for row in rows), nats, sizes, counts)


def known_before(config: RunConfig, model: Any, prepared: Manifest, side: Side) -> Likelihood | None:
    """Code lengths of a few validation texts, spread over all of them: the same ones for teacher and student.

    Args:
        config: The run config.
        model: The teacher, or the student as it starts.
        prepared: Result of the prepare stage.
        side: Which of the two it is.

    Returns:
        None where there are no validation texts.
    """
    rows = PreparedSet(prepared, "validation")
    places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _TEXTS)).round().astype(int))
    if not len(places):
        return None
    tokenizer = load_kept_tokenizer(config, Path(prepared.folder), side)
    # A chat model's answers may end with another token than eos: it stands for no bytes either.
    ends = {tokenizer.eos_token_id, *answer_ends(model)} - {None}
    return response_likelihood(model, [rows[int(place)] for place in places], side, eos_token_id=ends)


def _tokens(row: Any, side: Side, ends: Collection[int]) -> tuple[np.ndarray, int]:
    ids = np.asarray(row.teacher_ids if side == "teacher" else row.student_ids)
    first = int(row.teacher_response if side == "teacher" else row.student_response)
    # A response that was cut short ends with a token of its text, which counts.
    if len(ids) > first and int(ids[-1]) in ends:
        ids = ids[:-1]
    return ids, first


def _check(rows: Sequence[Any], texts: list[tuple[np.ndarray, int]], sizes: np.ndarray, vocabulary: int) -> None:
    if not rows:
        raise EvaluationError(
            "there are no examples to score", "raise corpus.test_share or corpus.max_test, or point at other data"
        )
    for row, (ids, first), size in zip(rows, texts, sizes, strict=True):
        if size == 0 or len(ids) <= first:
            raise EvaluationError(f"example {row.id}: its response is empty", "prepare the examples again")
        if int(ids.max()) >= vocabulary:
            raise EvaluationError(
                f"example {row.id}: token {int(ids.max())} is outside the model's vocabulary of {vocabulary}",
                "score the rows with the model whose tokenizer encoded them (check the side: teacher or student)",
            )


def _batch_nats(model: Any, head: Head, texts: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Summed -ln p of each text's response tokens: (B,) float64."""
    ids, starts = join([ids for ids, _ in texts])
    final = mapped_states(model, ids.to(input_device(model)), starts, longest=max(len(text) for text, _ in texts)).final
    rows, places = _response_places(texts, starts)
    states, targets = (values.to(head.weight.device) for values in (final[places - 1], ids[places]))
    values = token_nats(states, targets, head).double().cpu().numpy()
    nats = np.bincount(rows.numpy(), weights=values, minlength=len(texts))
    # a first token with nothing before it has no prediction: a uniform code pays for it
    unpredicted = np.array([first == 0 for _, first in texts])
    return nats + unpredicted * math.log(len(head.weight))


def _response_places(texts: list[tuple[np.ndarray, int]], starts: Tensor) -> tuple[Tensor, Tensor]:
    """Text and position of every response token that has a token before it."""
    firsts = starts.tolist()
    places = [torch.arange(max(first, 1), len(ids)) + at for (ids, first), at in zip(texts, firsts, strict=False)]
    rows = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor([len(place) for place in places]))
    return rows, torch.cat(places)


def token_nats(states: Tensor, targets: Tensor, head: Head) -> Tensor:
    """-ln p of each target: states (n, d), targets (n,) -> (n,) float32, in chunks of bounded memory."""
    chunk = max(1, LOGIT_BYTES // (4 * len(head.weight)))
    pieces = [
        torch.nn.functional.cross_entropy(head.logits(part), wanted, reduction="none")
        for part, wanted in zip(states.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(pieces)


def likelihood_table(dataset: str, rows: Sequence[Any], scored: Likelihood) -> pa.Table:
    """Code lengths as a table: dataset, id, source, prompt_bytes, nats, bytes, tokens."""
    return pa.table(
        {
            "dataset": [dataset] * len(rows),
            "id": scored.ids,
            "source": [row.source for row in rows],
            "prompt_bytes": [len(row.prompt.encode()) for row in rows],
            "nats": scored.nats,
            "bytes": scored.bytes,
            "tokens": scored.tokens,
        }
    )
