"""How closely a student says what its teacher says, span by span, on the vocabulary that both share.

Both centres of a span go through their own LM head's rows of the shared vocabulary (paper section 3, the quantities of
the span-logit term); the two distributions are compared by KL and by their likeliest token.

Shapes: K spans of one text or of a batch, d width, V shared vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sra_core.models import choose_layout, evaluating, mapped_states
from sra_core.models.batching import token_batches
from sra_core.models.likelihood import LOGIT_BYTES
from sra_core.models.texts import join
from sra_core.objective import Head, pool_spans

__all__ = ["Agreement", "teacher_agreement"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement with the teacher, one entry an example.

    Attributes:
        ids: Example ids, in the order of the rows given.
        kl: (E,) float64, KL(teacher || student) in nats, summed over the example's spans.
        same: (E,) int64, spans whose likeliest token is the same.
        spans: (E,) int64, spans compared.
    """

    ids: tuple[str, ...]
    kl: np.ndarray
    same: np.ndarray
    spans: np.ndarray

    @property
    def span_kl(self) -> float:
        """KL of a span in nats, averaged over the spans of an example, then over examples that have spans."""
        return self._mean(self.kl)

    @property
    def top1(self) -> float:
        """Share of spans with the same likeliest token, averaged alike."""
        return self._mean(self.same)

    def _mean(self, sums: np.ndarray) -> float:
        some = self.spans > 0
        return float((sums[some] / self.spans[some]).mean()) if some.any() else 0.0


def teacher_agreement(
    model: Any,
    rows: Sequence[Any],
    centers: Sequence[np.ndarray],
    student_head: Head,
    teacher_head: Head,
    *,
    layer: int = -1,
    temperature: float = 1.0,
    weighted: bool = True,
    tokens_per_batch: int = 4096,
) -> Agreement:
    """Compare a student with the teacher's centres on the same rows.

    Args:
        model: The student.
        rows: Prepared rows.
        centers: The teacher's centres of each row's spans at its last layer, (K, d_T) each.
        student_head: The student's rows of the shared vocabulary, (V, d_S).
        teacher_head: The teacher's, in the same order.
        layer: Student layer whose states are pooled; -1 is the last, the one that the LM head belongs to.
        temperature: Divides the logits of both.
        weighted: Whether the student's centres are attention-weighted, as the teacher's were.
        tokens_per_batch: Most student tokens in one forward; padding counts where the model is run padded.
    """
    counts = np.array([len(row.student_spans) for row in rows], dtype=np.int64)
    kl, same = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
    with evaluating(model):
        flat = choose_layout(model).flat
        for batch in token_batches([len(row.student_ids) for row in rows], tokens_per_batch, flat):
            text = np.repeat(np.arange(len(batch)), counts[batch])
            own = _centers(model, [rows[index] for index in batch], layer, weighted)
            theirs = torch.from_numpy(np.concatenate([centers[index] for index in batch])).to(own)
            values, equal = _compare(own, theirs, student_head, teacher_head, temperature)
            kl[batch] = np.bincount(text, values, len(batch))
            same[batch] = np.bincount(text, equal, len(batch)).astype(np.int64)
    return Agreement(tuple(row.id for row in rows), kl, same, counts)


def _centers(model: Any, rows: Sequence[Any], layer: int, weighted: bool) -> Tensor:
    """(K, d_S) centres of the spans of a batch."""
    device = next(model.parameters()).device
    ids, starts = join([row.student_ids for row in rows])
    longest = max(len(row.student_ids) for row in rows)
    states = mapped_states(model, ids.to(device), starts, [layer], longest, attention=weighted)
    (number,) = states.hidden
    ranges = np.concatenate([row.student_spans + at for row, at in zip(rows, starts.numpy(), strict=False)])
    spans = torch.from_numpy(ranges).to(device)
    return pool_spans(states.hidden[number], states.weights[number], spans, weighted)[0]


def _compare(
    own: Tensor, theirs: Tensor, student_head: Head, teacher_head: Head, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """KL(teacher || student) and equality of the likeliest token, (K,) each."""
    chunk = max(1, LOGIT_BYTES // (8 * max(1, len(student_head.weight))))  # float32 logits of both sides
    values, equal = [], []
    for student, teacher in zip(own.split(chunk), theirs.split(chunk), strict=True):
        log_q = (student_head.logits(student) / temperature).log_softmax(-1)
        log_p = (teacher_head.logits(teacher) / temperature).log_softmax(-1)
        values.append((log_p.exp() * (log_p - log_q)).sum(-1))
        equal.append(log_p.argmax(-1) == log_q.argmax(-1))
    return torch.cat(values).double().cpu().numpy(), torch.cat(equal).cpu().numpy()


def agreement_table(dataset: str, scored: Agreement) -> pa.Table:
    """Agreement with the teacher as a table: dataset, id, kl, same, spans."""
    return pa.table(
        {
            "dataset": [dataset] * len(scored.ids),
            "id": scored.ids,
            "kl": scored.kl,
            "same": scored.same,
            "spans": scored.spans,
        }
    )
