"""Where the texts of a batch lie, one after another. B texts, N tokens of the batch, T tokens of the longest text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Texts", "join"]


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """The one place where texts are padded, and where padding is taken away again.

    Args:
        starts: (B + 1,) first token of each text, and N.
        text: (N,) text of each token.
        positions: (N,) place of each token in its text.
        place: (N,) place of each token in a padded (B * T) batch.
        real: (B, T) whether a place of the padded batch holds a token.
    """

    starts: Tensor
    text: Tensor
    positions: Tensor
    place: Tensor
    real: Tensor

    @staticmethod
    def of(starts: Tensor, tokens: int, longest: int | None = None) -> Texts:
        """The texts that start there.

        Args:
            starts: (B + 1,).
            tokens: N.
            longest: T; unset reads it from ``starts``, for which a GPU is waited for.
        """
        lengths = starts.diff()
        longest = int(lengths.max()) if longest is None else longest
        count = torch.arange(len(lengths), device=starts.device)
        text = torch.repeat_interleave(count, lengths, output_size=tokens)
        positions = torch.arange(tokens, device=starts.device) - starts.index_select(0, text)
        real = torch.arange(longest, device=starts.device) < lengths[:, None]
        return Texts(starts, text, positions, text * longest + positions, real)

    def __len__(self) -> int:
        return len(self.text)

    @property
    def longest(self) -> int:
        """T."""
        return self.real.shape[1]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text; a GPU is waited for."""
        lengths: list[int] = self.starts.diff().tolist()
        return lengths

    def to(self, device: torch.device) -> Texts:
        """The same on another device; itself where it is there."""
        if self.text.device == device:
            return self
        return Texts(*(getattr(self, name).to(device) for name in self.__slots__))

    def padded(self, values: Tensor) -> Tensor:
        """(N, ...) values as (B, T, ...), zeros on the right of each text."""
        # Texts of one length need no padding, and no copy.
        if len(self) == self.real.numel():
            return values.reshape(*self.real.shape, *values.shape[1:])
        # index_copy, not a gather with repeats: its backward is a gather, which adds nothing up and so has one result
        rows = values.new_zeros(self.real.numel(), *values.shape[1:]).index_copy(0, self.place, values)
        return rows.view(*self.real.shape, *values.shape[1:])

    def flat(self, values: Tensor) -> Tensor:
        """(B, T, ...) values as (N, ...): the inverse of `padded`."""
        values = values.flatten(0, 1)
        return values if len(self) == len(values) else values.index_select(0, self.place)


def join(rows: Sequence[np.ndarray | Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token rows one after another: ids (N,) and starts (B + 1,), both long."""
    starts = np.cumsum([0, *(len(row) for row in rows)])
    return torch.from_numpy(np.concatenate(rows).astype(np.int64)), torch.from_numpy(starts)
