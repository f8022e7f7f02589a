"""Splits and limits by hash of the content: where an example goes depends on nothing but its own text."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from sra_core.config import CorpusConfig

__all__ = ["SPLITS", "Limit", "digest", "named_split", "rank_of", "split_of"]

SPLITS = ("train", "validation", "test")


def digest(*parts: str) -> bytes:
    """16 bytes that stand for a sequence of texts; different sequences never run together."""
    joined = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.blake2b(joined.encode(), digest_size=16).digest()


def split_of(group: bytes, config: CorpusConfig, brought: Collection[str] = ()) -> str:
    """The split of a digest.

    Test takes the lowest values and validation the highest, so changing the share of one leaves the other as it was.

    Args:
        group: The digest.
        config: How large the splits are.
        brought: Splits that the data brings itself: nothing else goes there.
    """
    # Pinned by a test: any other hash mixes training and test sets of results that were made before.
    position = int.from_bytes(group[:8], "big") / 2**64
    if position < config.test_share and "test" not in brought:
        return "test"
    return "validation" if position >= 1 - config.validation_share and "validation" not in brought else "train"


_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in file names that say which split a file is, as the `datasets` library reads them."""
_BETWEEN = re.compile(r"[-_. 0-9]+")


def named_split(path: str) -> str | None:
    """The split that a file's name says, or else its folder's, or that one's; empty where none says one.

    Returns:
        None where one name says two.
    """
    for part in reversed(path.lower().split("/")):
        words = set(_BETWEEN.split(part))
        found = [split for split, names in _WORDS.items() if words & set(names)]
        if found:
            return found[0] if len(found) == 1 else None
    return ""


def rank_of(key: bytes) -> int:
    """Place in the queue for a limited split, independent of the bytes that chose the split."""
    return int.from_bytes(key[8:], "big")


@dataclass(slots=True)
class Limit:
    """The lowest ranks of a split, at most ``size`` of them: found in one pass over the examples, asked in later ones.

    Memory is one number an admitted example.
    """

    size: int | None
    _kept: list[int] = field(default_factory=list)
    _offered: int = 0

    @property
    def admitted(self) -> int:
        """How many examples a later pass admits."""
        return self._offered if self.size is None else min(self.size, self._offered)

    def offer(self, rank: int) -> None:
        """First pass: a rank."""
        self._offered += 1
        if self.size is None:
            return
        # Negated, since heapq keeps the smallest on top: the highest of the ranks kept is the one that falls out.
        if len(self._kept) < self.size:
            heapq.heappush(self._kept, -rank)
        else:
            heapq.heappushpop(self._kept, -rank)

    def admits(self) -> Callable[[int], bool]:
        """For one later pass: whether a rank is among the lowest.

        Equal ranks (the same content twice) are admitted in order of arrival.
        """
        if self.size is None or not self._kept:
            return lambda rank: True
        highest = -self._kept[0]
        left = self._kept.count(-highest)

        def admits(rank: int) -> bool:
            nonlocal left
            if rank != highest:
                return rank < highest
            left -= 1
            return left >= 0

        return admits
