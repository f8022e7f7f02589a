"""Answers that do not depend on how they were batched.

Rounding differs between batch shapes, so the logits of one text differ in their last bits from batch to batch. What
is guaranteed: in float32 a text is a function of the model, its prompt, the seed and the example's id alone. A choice
that leads by more than the rounding error is taken from the batch; the others, about one in a thousand, are taken from
the logits of the text alone, computed in one fixed way: one row, no padding, no cache.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from sra_core.errors import EvaluationError
from sra_core.evaluate.decisions import Sampling, choose, text_generator
from sra_core.models import answer_ends, evaluating, pad
from sra_core.models.likelihood import Side
from sra_core.models.structure import unwrap

__all__ = [
    "Answer",
    "Decoder",
    "FinishReason",
    "Prompt",
    "Sampling",
    "cut_prompt",
    "generate",
    "positions_of",
    "stop_tokens",
]

FinishReason = Literal["stop", "length"]
GREEDY = Sampling()
MARGIN = 2e-4
"""Logits of one text in two batches differ by less than half of this, relative to their largest magnitude."""
BROKEN = {True: 0.02, False: 0.1}
"""Differences, in float32 and in half precision, that no rounding explains: padding or cache does not work."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated answer.

    Attributes:
        id: Example id.
        seed: Seed it was sampled with.
        text: The answer without special tokens, exactly as decoded.
        tokens: Generated tokens without the end of text.
        finish_reason: ``stop`` at end of text, ``length`` at the token limit.
        prompt_tokens: Prompt tokens that the model saw.
        prompt_cut: Prompt tokens cut from the left.
    """

    id: str
    seed: int
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    prompt_cut: int


@dataclass(slots=True)
class _Text:
    """A text while it grows."""

    prompt: list[int]
    limit: int
    generator: torch.Generator
    new: list[int] = field(default_factory=list)
    stopped: bool = False


def generate(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Any],
    side: Side = "student",
    *,
    seed: int = 10,
    sampling: Sampling = GREEDY,
    max_new_tokens: int = 128,
    max_prompt: int = 256,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Answer the prompt of every row.

    In float32 the answers are the same whatever ``batch_size``, the order of the rows and the padding.

    Args:
        model: A Hugging Face causal language model.
        tokenizer: Its tokenizer, for decoding and for the end of text.
        rows: Prepared rows; the prompt is what comes before the response on ``side``.
        side: Whose tokens the model reads.
        seed: Seed; each example draws its own numbers from it and its id.
        sampling: Greedy by default.
        max_new_tokens: Longest answer in tokens.
        max_prompt: Longest prompt in tokens; longer ones are cut from the left but keep a leading bos token.
        batch_size: Texts in one forward.
        progress: Called with (answers done, answers in all).

    Raises:
        EvaluationError: The model's logits are not numbers, or depend on padding.
    """
    model = unwrap(model)
    prompts = [cut_prompt(row, side, tokenizer, positions_of(model.config), max_new_tokens, max_prompt) for row in rows]
    texts = [
        _Text(prompt.ids, prompt.limit, text_generator(seed, row.id, model.device))
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    # Heads are often larger than the tokenizer's vocabulary: what stands for no token must not be chosen.
    decoder = Decoder(model, stop_tokens(model, tokenizer), sampling, vocabulary=_entries(tokenizer))
    decoder.run(texts, batch_size, progress)
    return [
        Answer(
            id=row.id,
            seed=seed,
            text=tokenizer.decode(text.new, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            tokens=tuple(text.new),
            finish_reason="stop" if text.stopped else "length",
            prompt_tokens=len(prompt.ids),
            prompt_cut=prompt.cut,
        )
        for row, prompt, text in zip(rows, prompts, texts, strict=True)
    ]


def _entries(tokenizer: Any) -> int:
    """One more than the largest id of a vocabulary, which may have holes: its length is less then."""
    return max(tokenizer.get_vocab().values()) + 1


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokenizer's end of text, and what the model's generation settings stop at: the end of its answers too."""
    return frozenset(token for token in [tokenizer.eos_token_id, *answer_ends(model)] if token is not None)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as a model reads it.

    Attributes:
        ids: Its tokens.
        cut: Tokens that it lost on the left.
        limit: Tokens that its answer may have.
    """

    ids: list[int]
    cut: int
    limit: int


def cut_prompt(row: Any, side: Side, tokenizer: Any, positions: int, max_new_tokens: int, max_prompt: int) -> Prompt:
    """The prompt of a row by whole tokens, so that the answer has its room, or at least half of the model's positions.

    Raises:
        EvaluationError: The prompt has no token.
    """
    ids = row.teacher_ids if side == "teacher" else row.student_ids
    whole = [int(token) for token in ids[: row.teacher_response if side == "teacher" else row.student_response]]
    if not whole:
        raise EvaluationError(f"example {row.id}: its prompt has no token", "use a template with a text of its own")
    # An answer that may be longer than the model reads leaves the prompt half of its positions all the same.
    room = min(max_prompt, max(positions - max_new_tokens, positions // 2))
    kept = _cut(whole, tokenizer.bos_token_id, room)
    return Prompt(kept, len(whole) - len(kept), min(max_new_tokens, positions - len(kept)))


def positions_of(config: Any) -> int:
    """Tokens that a model can tell apart by position."""
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def _cut(prompt: list[int], bos: int | None, room: int) -> list[int]:
    if len(prompt) <= room:
        return prompt
    keep_first = room > 1 and prompt[0] == bos
    return [prompt[0], *prompt[1 - room :]] if keep_first else prompt[-room:]


class Decoder:
    """The decoding loop: batches by prompt length, a key-value cache, finished texts leave.

    Attributes:
        decisions: Tokens chosen so far.
        settled: How many of them were too close and taken from the text's logits computed alone.
        deviation: Largest difference seen between logits of a batch and logits of the text alone, relative as `MARGIN`.
    """

    def __init__(self, model: Any, stops: frozenset[int], sampling: Sampling, vocabulary: int | None = None) -> None:
        self.model = model
        self.stops = stops
        self.sampling = sampling
        self.vocabulary = vocabulary
        self.exact = next(model.parameters()).dtype == torch.float32
        self.decisions = 0
        self.settled = 0
        self.deviation = 0.0
        accepted = inspect.signature(model.forward).parameters
        # transformers (5.24) gives `past_key_values` this name; a model's own code may still have the older one.
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"
        self._takes_positions = "position_ids" in accepted
        # Else logits are formed for every token of a prompt.
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def run(self, texts: Sequence[Any], batch_size: int, progress: Callable[[int, int], None] | None = None) -> None:
        """Grow every text until it is done."""
        # Prompts of like length go together; the last of a batch is its shortest, with the most padding (`_choose`).
        waiting = sorted(texts, key=lambda text: -len(text.prompt))
        with evaluating(self.model):
            for start in range(0, len(waiting), batch_size):
                self._run_batch(waiting[start : start + batch_size])
                if progress:
                    progress(min(start + batch_size, len(waiting)), len(waiting))

    def _run_batch(self, live: list[_Text]) -> None:
        ids, mask = pad([text.prompt for text in live])
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        # Padding lies on the left, so positions are counted from the first real token.
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        # With the config: it says which layers keep a window or a recurrent state in place of all keys.
        cache = DynamicCache(config=self.model.config)
        while live:
            logits = self._forward(ids, mask, positions, cache)
            kept = [
                index for index, token in enumerate(self._choose(logits, live)) if _grow(live[index], token, self.stops)
            ]
            if len(kept) < len(live):
                live = [live[index] for index in kept]
                chosen = torch.tensor(kept, dtype=torch.long, device=mask.device)
                mask, positions = mask[chosen], positions[chosen]
                cache.reorder_cache(chosen)  # `batch_select_indices` knows no recurrent states
            ids = torch.tensor([[text.new[-1]] for text in live], device=mask.device)
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            positions = positions[:, -1:] + 1

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """(B, V) float32 logits of the next token; the cache grows."""
        extra = {"position_ids": positions} if self._takes_positions else {}
        extra[self._cache_name] = cache
        out = self.model(input_ids=ids, attention_mask=mask, use_cache=True, **extra, **self._last_only)
        return out.logits[:, -1, : self.vocabulary].float()

    def _choose(self, logits: Tensor, live: list[_Text]) -> list[int]:
        noise = None if self.sampling.greedy else _noise(logits, live)
        tokens, safe = choose(logits, noise, self.sampling, MARGIN * _magnitude(logits) if self.exact else None)
        chosen = tokens.tolist()
        for index in (~safe).nonzero()[:, 0].tolist() if self.exact else []:
            own = None if noise is None else noise[index : index + 1]
            chosen[index] = int(choose(self._alone(live[index], logits[index]), own, self.sampling)[0])
            self.settled += 1
        if len(live[-1].new) == 1:  # its first use of the cache, and it has the most padding of the batch
            self._alone(live[-1], logits[-1])
        self.decisions += len(live)
        return chosen

    def _alone(self, text: _Text, batched: Tensor) -> Tensor:
        """(1, V) logits of the text by itself, the one form that every batch agrees on; checks the batch against it."""
        ids = torch.tensor([text.prompt + text.new], device=batched.device)
        # No mask and no positions: alone, a text is read as the model does by default.
        logits = self.model(input_ids=ids, use_cache=False, **self._last_only).logits
        alone = logits[:, -1, : self.vocabulary].float()
        deviation = float((alone[0] - batched).abs().amax() / _magnitude(alone)[0])
        self.deviation = max(self.deviation, deviation)
        if deviation > BROKEN[self.exact]:
            raise EvaluationError(
                f"the logits of {type(self.model).__name__} change by {deviation:.1e} with padding or cache",
                "set evaluate.batch_size to 1; if that fails too, this architecture cannot be evaluated by generation",
            )
        if self.exact and deviation > MARGIN / 2:
            warnings.warn(
                f"rounding of {deviation:.1e} exceeds what answers are safe against: a few may depend on the batch",
                stacklevel=2,
            )
        return alone


def _grow(text: _Text, token: int, stops: frozenset[int]) -> bool:
    """Add a token; true while the text goes on."""
    if token in stops:
        text.stopped = True
    else:
        text.new.append(token)
    return not text.stopped and len(text.new) < text.limit


def _noise(logits: Tensor, live: Sequence[_Text]) -> Tensor:
    """(B, V) uniform draws, each row from its own text's generator."""
    noise = torch.empty_like(logits)
    for row, text in zip(noise, live, strict=True):
        # For the whole vocabulary at every step, so that how many numbers a text has used follows from its length.
        row.uniform_(generator=text.generator)
    return noise


def _magnitude(logits: Tensor) -> Tensor:
    """(B,) largest absolute logit, at least 1: rounding errors grow with it."""
    return torch.maximum(logits.amax(-1), -logits.amin(-1)).clamp(min=1.0)
