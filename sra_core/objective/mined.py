"""Minimum edit distance (MinED of FuseLLM, arXiv 2401.10491): dynamic-programming token alignment, then KL.

Legend: n and m tokens of the student's and the teacher's side of one text, V shared vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sra_core.config import ObjectiveConfig
from sra_core.errors import ConfigError
from sra_core.objective.batch import Batch, ObjectiveContext, StudentOutput
from sra_core.objective.chunks import head_loss, slope_by_autograd
from sra_core.objective.tokens import Side, TokenObjective

__all__ = ["MinedObjective", "align_tokens", "edit_distances"]

LONGEST = 24  # characters of a token that count in an edit distance; longer tokens are rare and differ early


class MinedObjective(TokenObjective):
    """KL from the teacher's distribution, carried over to the student's vocabulary, at tokens aligned one to one.

    Tokens are aligned by the cheapest monotone path over edit distances.  Where a student token has exactly one
    teacher token and the two are the same, the target is the teacher's distribution at temperature tau over the shared
    vocabulary; elsewhere it is the next token itself, as in FuseLLM.  Vocabularies are mapped by exact match (FuseLLM's
    hard variant).  The mean over the student's supervised positions.
    """

    names = ("mined",)

    def __init__(self, config: ObjectiveConfig, context: ObjectiveContext) -> None:
        super().__init__(config, context)
        if context.student_tokens is None or context.teacher_tokens is None:
            raise ConfigError(
                "objective mined needs the text of every token of both vocabularies",
                "pass student_tokens and teacher_tokens in the objective's context",
            )
        self.texts = (context.student_tokens, context.teacher_tokens)
        same = torch.full((len(context.student_tokens),), -1, dtype=torch.long)
        same[context.shared_student_ids.cpu()] = context.shared_teacher_ids.cpu()
        self.same = same.numpy()
        # By the tokens of both sides: a text comes again in every epoch, and its table of distances is quadratic.
        self.known: dict[tuple[bytes, bytes], NDArray[np.int64]] = {}

    def distill(self, batch: Batch, student: StudentOutput, own: Side, teacher: Side) -> Mapping[str, Tensor]:
        """The term ``mined``."""
        device, tau = own.rows.device, self.config.temperature
        partner = self._partners(own, teacher).to(device)
        aligned = partner >= 0
        head = self.head("teacher_head", device)
        shared = self.context.shared_student_ids.to(device)

        def soft(logits: Tensor, teacher_rows: Tensor) -> Tensor:
            log_p = torch.log_softmax(head.logits(teacher_rows) / tau, -1)
            # Over the whole vocabulary, unlike p: what the student gives to tokens not shared counts against it.
            log_q = torch.log_softmax(logits / tau, -1).index_select(1, shared)
            return (log_p.exp() * (log_p - log_q)).sum(-1)

        def hard(logits: Tensor, target: Tensor) -> Tensor:
            return -torch.log_softmax(logits / tau, -1).gather(1, target[:, None])[:, 0]

        rows, alone = own.rows[aligned], own.rows[~aligned]
        total = head_loss(rows, student.head, slope_by_autograd(soft), (teacher.rows[partner[aligned]],))
        total = total + head_loss(alone, student.head, slope_by_autograd(hard), (own.target[~aligned],))
        return {"mined": total / max(1, len(own.rows))}

    def _partners(self, own: Side, teacher: Side) -> Tensor:
        """(n,) the teacher position of each student position, -1 where there is none; found once a text."""
        mine, theirs = own.source.cpu().numpy(), teacher.source.cpu().numpy()
        own_counts, counts = own.counts.tolist(), teacher.counts.tolist()
        pieces, start, first = [], 0, 0
        for length, width in zip(own_counts, counts, strict=True):
            found = self._align(mine[start : start + length], theirs[first : first + width])
            pieces.append(np.where(found >= 0, found + first, -1))
            start, first = start + length, first + width
        return torch.from_numpy(np.concatenate(pieces))

    def _align(self, mine: NDArray[np.int64], theirs: NDArray[np.int64]) -> NDArray[np.int64]:
        key = (mine.tobytes(), theirs.tobytes())
        if key not in self.known:
            student, teacher = self.texts
            path = align_tokens([student[i] for i in mine], [teacher[i] for i in theirs])
            safe = np.where(path >= 0, path, 0)
            # `self.same` is -1 where a token is not shared, which no id equals.
            same = theirs[safe] == self.same[mine] if len(theirs) else np.zeros(len(mine), dtype=bool)
            self.known[key] = np.where((path >= 0) & same, path, -1)
        return self.known[key]


def align_tokens(student: Sequence[str], teacher: Sequence[str]) -> NDArray[np.int64]:
    """The teacher token that stands alone against each student token, -1 where none or several do.

    The path runs from (0, 0) to the end, one step on either side or on both at a time, and costs the sum of the edit
    distances of the pairs that it visits; where steps tie, the one on both sides is taken.
    """
    if not student or not teacher:
        return np.full(len(student), -1, dtype=np.int64)
    cost = edit_distances(student, teacher)
    total = _accumulate(cost)
    row, column = len(student) - 1, len(teacher) - 1
    partners: list[list[int]] = [[] for _ in student]
    partners[row].append(column)
    while row or column:
        row, column = _previous(total, row, column)
        partners[row].append(column)
    return np.array([columns[0] if len(columns) == 1 else -1 for columns in partners], dtype=np.int64)


def edit_distances(left: Sequence[str], right: Sequence[str]) -> NDArray[np.int64]:
    """(n, m) Levenshtein distances between all pairs, spaces left out, at most 24 characters of each."""
    a, a_length = _codes(left)
    b, b_length = _codes(right)
    n, m = len(left), len(right)
    row = np.broadcast_to(np.arange(b.shape[1] + 1), (n, m, b.shape[1] + 1)).copy()
    result = np.where(a_length[:, None] == 0, b_length[None, :], 0)
    for i in range(a.shape[1]):
        previous, row = row, np.empty_like(row)
        row[..., 0] = i + 1
        for j in range(b.shape[1]):
            change = a[:, None, i] != b[None, :, j]
            row[..., j + 1] = np.minimum(previous[..., j] + change, np.minimum(previous[..., j + 1], row[..., j]) + 1)
        done = np.take_along_axis(row, np.broadcast_to(b_length[None, :, None], (n, m, 1)), -1)[..., 0]
        result = np.where(a_length[:, None] == i + 1, done, result)
    return result


def _codes(tokens: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Code points of the tokens, padded, and their lengths."""
    bare = ["".join(token.split())[:LONGEST] for token in tokens]
    lengths = np.array([len(token) for token in bare], dtype=np.int64)
    codes = np.zeros((len(bare), max(1, int(lengths.max()))), dtype=np.int64)
    for place, token in enumerate(bare):
        codes[place, : len(token)] = [ord(character) for character in token]
    return codes, lengths


def _accumulate(cost: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cheapest cost of a path to each pair, one anti-diagonal at a time."""
    n, m = cost.shape
    # A border that no path crosses: half of the largest number, so that adding a cost does not overflow.
    total = np.full((n + 1, m + 1), np.iinfo(np.int64).max // 2, dtype=np.int64)
    total[0, 0] = 0
    for diagonal in range(n + m - 1):
        # Pairs of one anti-diagonal depend on the two before it alone, never on each other.
        row = np.arange(max(0, diagonal - m + 1), min(n, diagonal + 1))
        column = diagonal - row
        best = np.minimum(total[row, column], np.minimum(total[row, column + 1], total[row + 1, column]))
        total[row + 1, column + 1] = best + cost[row, column]
    return total[1:, 1:]


def _previous(total: NDArray[np.int64], row: int, column: int) -> tuple[int, int]:
    # Both sides first: of equal steps `min` takes the first.
    steps = [(row - 1, column - 1), (row - 1, column), (row, column - 1)]
    possible = [step for step in steps if min(step) >= 0]
    return min(possible, key=lambda step: total[step])
