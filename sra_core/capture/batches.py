"""Batches of similar length under a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["token_batches"]


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut examples, longest first, into batches whose padded size stays within ``budget`` tokens.

    Args:
        lengths: Tokens of each example.
        budget: Most tokens of one batch, padding included; an example longer than that is a batch of its own.

    Yields:
        Indices of the examples of each batch.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
