"""Splits and limits by hash of the content: where an example goes depends on nothing but its own text."""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass, field

from sra_core.config import CorpusConfig

__all__ = ["SPLITS", "Limit", "digest", "rank_of", "split_of"]

SPLITS = ("train", "validation", "test")


def digest(*parts: str) -> bytes:
    """16 bytes that stand for a sequence of texts; different sequences never run together."""
    joined = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.blake2b(joined.encode(), digest_size=16).digest()


def split_of(group: bytes, config: CorpusConfig) -> str:
    """The split of a digest.

    Test takes the lowest values and validation the highest, so changing the share of one leaves the other as it was.
    """
    position = int.from_bytes(group[:8], "big") / 2**64
    if position < config.test_share:
        return "test"
    return "validation" if position >= 1 - config.validation_share else "train"


def rank_of(key: bytes) -> int:
    """Place in the queue for a limited split, independent of the bytes that chose the split."""
    return int.from_bytes(key[8:], "big")


@dataclass(slots=True)
class Limit:
    """The lowest ranks of a split, at most ``size`` of them, found in one pass and then asked in a second one.

    Memory is one number an admitted example. Equal ranks (the same content twice) are admitted in order of arrival.
    """

    size: int | None
    _kept: list[int] = field(default_factory=list)
    _left: int = 0

    def offer(self, rank: int) -> None:
        """First pass: see a rank."""
        if self.size is None:
            return
        if len(self._kept) < self.size:
            heapq.heappush(self._kept, -rank)
        else:
            heapq.heappushpop(self._kept, -rank)

    def start(self) -> None:
        """Begin a second pass."""
        self._left = self._kept.count(self._kept[0]) if self._kept else 0

    def admits(self, rank: int) -> bool:
        """Second pass: whether this one is among the lowest."""
        if self.size is None:
            return True
        highest = -self._kept[0]
        if rank == highest:
            self._left -= 1
            return self._left >= 0
        return rank < highest
