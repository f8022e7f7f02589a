"""What the token-level baselines share: supervised positions of both sides and their pairing.

Legend: B texts, N tokens of the batch, n supervised positions of it, d width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sra_core.config import ObjectiveConfig
from sra_core.errors import ConfigError
from sra_core.objective.base import Objective
from sra_core.objective.batch import Batch, ObjectiveContext, StudentOutput
from sra_core.objective.head import Head
from sra_core.objective.logit import next_token_loss
from sra_core.objective.pooling import span_tokens
from sra_core.objective.terms import counts_of_texts

__all__ = [
    "Side",
    "TokenObjective",
    "log_likelihood",
    "pad",
    "paired",
    "predicted_spans",
    "rows_by_place",
    "single_tokens",
    "student_side",
    "teacher_ranges",
    "teacher_side",
]


@dataclass(frozen=True, slots=True)
class Side:
    """The supervised positions of one model, text by text.

    Args:
        rows: (n, d) states that predict a supervised token.
        source: (n,) the token read at each position.
        target: (n,) the token to predict.
        text: (n,) text of each, non-decreasing.
        rank: (n,) place within the text.
        place: (n,) place of the target in the batch.
        counts: (B,) positions a text.
        tokens: N.
    """

    rows: Tensor
    source: Tensor
    target: Tensor
    text: Tensor
    rank: Tensor
    place: Tensor
    counts: Tensor
    tokens: int

    @property
    def first(self) -> Tensor:
        """(B,) index of each text's first position."""
        return self.counts.cumsum(0) - self.counts


class TokenObjective(Objective):
    """``(1 - share) CE + share`` times the sum of the teacher's terms; a baseline implements :meth:`distill`.

    Terms: ``loss``, ``ce``, those of the baseline by name (``names``), ``spans``.
    """

    names: tuple[str, ...] = ()

    def __init__(self, config: ObjectiveConfig, context: ObjectiveContext) -> None:
        super().__init__(config)
        self.context = context
        # A dict of plain tensors: as buffers they would be in every checkpoint.
        self.constants: dict[str, Any] = {}

    @abstractmethod
    def distill(self, batch: Batch, student: StudentOutput, own: Side, teacher: Side) -> Mapping[str, Tensor]:
        """The teacher's terms, each a mean over what it compares."""

    def forward(self, batch: Batch, student: StudentOutput) -> dict[str, Tensor]:
        """The terms of one batch."""
        ce = next_token_loss(student.final, batch, student.head)
        terms = self.distill(batch, student, student_side(batch, student), teacher_side(batch))
        loss = (1 - self.teacher_share) * ce + self.teacher_share * torch.stack(list(terms.values())).sum()
        spans = torch.full((), float(len(batch.span_text)), device=loss.device)
        return {"loss": loss, "ce": ce, **terms, "spans": spans}

    def weights(self) -> dict[str, float]:
        """What each term weighs in the loss now."""
        return {"ce": 1 - self.teacher_share, **dict.fromkeys(self.names, self.teacher_share)}

    def head(self, name: str, device: torch.device) -> Head:
        """A constant head of the teacher on ``device``: moved once, and no part of the student's checkpoints."""
        head = self.constants.get(name) or getattr(self.context, name)
        if head is None:
            raise ConfigError(
                f"objective {self.config.name} needs the teacher's {name.replace('_', ' ')}, and the cache has none",
                "run the cache stage again with this objective",
            )
        if name not in self.constants or head.weight.device != device:
            self.constants[name] = head = head.constant().to(device)
        return head


def student_side(batch: Batch, student: StudentOutput) -> Side:
    """The student's supervised positions."""
    return _side(student.final, batch.input_ids, batch.labels, batch.starts, batch.targets)


def teacher_side(batch: Batch) -> Side:
    """The teacher's supervised positions, from its last layer's token states.

    Raises:
        ConfigError: The batch carries no token states.
    """
    states, ids, labels = batch.teacher_states, batch.teacher_ids, batch.teacher_labels
    starts, targets = batch.teacher_starts, batch.teacher_targets
    if states is None or ids is None or labels is None or starts is None or targets is None:
        raise ConfigError(
            "this objective compares tokens, and the cache holds span centres only",
            "run the cache stage with this objective, which stores token states, or choose objective sra or sft",
        )
    # The highest layer is the last one, after the final norm: what the teacher's head takes.
    return _side(states[max(states)].detach(), ids, labels, starts, targets)


def paired(own: Side, teacher: Side) -> tuple[Tensor, Tensor]:
    """Positions of the two sides with the same rank in the same text: indices into each side's rows."""
    # A text has positions of different number on the two sides: the rest of the longer one stays unpaired.
    mine = (own.rank < teacher.counts.index_select(0, own.text)).nonzero()[:, 0]
    theirs = teacher.first.index_select(0, own.text[mine]) + own.rank[mine]
    return mine, theirs


def pad(side: Side, values: Tensor) -> tuple[Tensor, Tensor]:
    """Values (n, ...) of a side's positions as (B, longest, ...) with zeros, and the mask of real ones."""
    texts, longest = len(side.counts), int(side.counts.max()) if len(side.counts) else 0
    padded = values.new_zeros(texts, longest, *values.shape[1:]).index_put((side.text, side.rank), values)
    mask = torch.arange(longest, device=values.device) < side.counts[:, None]
    return padded, mask


def teacher_ranges(batch: Batch) -> Tensor:
    """(K, 2) the spans' token ranges on the teacher's side.

    Raises:
        ConfigError: The batch carries none.
    """
    if batch.teacher_range is None:
        raise ConfigError(
            "this objective needs the teacher's token ranges of the spans, and the batch has none",
            "prepare the batch with teacher_range, which the prepared shards hold as teacher_spans",
        )
    return batch.teacher_range


def rows_by_place(side: Side) -> Tensor:
    """(N,) which of the side's rows predicts each token of the batch; n where none does."""
    # n is no row: reading it fails, where -1 would take the last row without a word.
    index = torch.full((side.tokens,), len(side.rows), dtype=torch.long, device=side.rows.device)
    index[side.place] = torch.arange(len(side.rows), device=side.rows.device)
    return index


def predicted_spans(side: Side, ranges: Tensor) -> Tensor:
    """(K,) whether a span has tokens and every one of them is predicted."""
    tokens, span = span_tokens(ranges)
    none = (rows_by_place(side).index_select(0, tokens) == len(side.rows)).long()
    return (ranges[:, 1] > ranges[:, 0]) & (none.new_zeros(len(ranges)).index_add(0, span, none) == 0)


def single_tokens(batch: Batch, own: Side, teacher: Side) -> tuple[Tensor, Tensor]:
    """Positions that predict the token of a span of one token on both sides: indices into each side's rows."""
    ranges = teacher_ranges(batch)
    single = (batch.span_range.diff() == 1)[:, 0] & (ranges.diff() == 1)[:, 0]
    single &= predicted_spans(own, batch.span_range) & predicted_spans(teacher, ranges)
    mine = rows_by_place(own).index_select(0, batch.span_range[single, 0])
    theirs = rows_by_place(teacher).index_select(0, ranges[single, 0])
    return mine, theirs


def log_likelihood(logits: Tensor, target: Tensor) -> Tensor:
    """(n,) log-probability of each row's target, from logits (n, V)."""
    return logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(-1)


def _side(states: Tensor, ids: Tensor, labels: Tensor, starts: Tensor, targets: Tensor) -> Side:
    text = torch.searchsorted(starts, targets, right=True) - 1
    counts = counts_of_texts(text, len(starts) - 1)
    rank = torch.arange(len(text), device=text.device) - (counts.cumsum(0) - counts).index_select(0, text)
    rows, source = (values.index_select(0, targets - 1) for values in (states, ids))
    return Side(rows, source, labels.index_select(0, targets), text, rank, targets, counts, len(ids))
