"""Evaluation examples that occur in the training data, exactly or nearly.

An example has leaked when its question or its answer stands in one training example: as a whole, after white space,
case and punctuation are set aside, or by a large share of its word n-grams. Time is linear in both texts: the n-grams
of the evaluation set are indexed, the training set streams past.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Leak", "LeakReport", "find_leaks", "words"]

Part = Literal["prompt", "response"]
_PARTS: tuple[Part, Part] = ("prompt", "response")
_WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+")
_SHORT = 8
"""Responses of fewer words (a date, a yes) recur by chance: alone they are no leak."""


@dataclass(frozen=True, slots=True)
class Leak:
    """One evaluation example that was seen in training.

    Attributes:
        id: The evaluation example.
        training: The training example that shares most with it.
        kind: ``exact`` or ``near``.
        part: Whether its prompt or its response was seen.
        overlap: Share of its n-grams found in that training example; 1 for exact ones.
    """

    id: str
    training: str
    kind: Literal["exact", "near"]
    part: Part
    overlap: float


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What a leak check found.

    Attributes:
        leaks: At most one an evaluation example: exact before near, larger overlap first.
        evaluated: Evaluation examples looked at.
        trained: Training examples looked at.
    """

    leaks: tuple[Leak, ...]
    evaluated: int
    trained: int

    @property
    def ids(self) -> frozenset[str]:
        """Evaluation examples to leave out."""
        return frozenset(leak.id for leak in self.leaks)

    def counts(self) -> dict[str, int]:
        """``exact_prompt``, ``exact_response``, ``near_prompt`` and ``near_response``."""
        found = Counter(f"{leak.kind}_{leak.part}" for leak in self.leaks)
        return {f"{kind}_{part}": found[f"{kind}_{part}"] for kind in ("exact", "near") for part in _PARTS}

    def columns(self) -> dict[str, list[Any]]:
        """The leaks as a table, column by column."""
        return {
            name: [getattr(leak, name) for leak in self.leaks] for name in ("id", "training", "kind", "part", "overlap")
        }


def words(text: str) -> list[str]:
    """Words without case, compatibility forms, white space and punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def find_leaks(
    evaluation: Sequence[Any], training: Iterable[Any], *, ngram: int = 13, overlap: float = 0.5
) -> LeakReport:
    """Look for evaluation examples in the training data.

    Args:
        evaluation: Rows with ``id``, ``prompt`` and ``response``.
        training: The same of the training set; read once, in any order.
        ngram: Words in an n-gram. Texts with fewer words are compared as a whole only.
        overlap: Share of a prompt's or response's n-grams, in one training example, that makes it a near copy.

    What many evaluation examples share (a prompt template, a stock question) says nothing about any of them and is
    left out.
    """
    index = _Index(evaluation, ngram)
    trained = 0
    for row in training:
        trained += 1
        index.see(row)
    return LeakReport(tuple(index.leaks(overlap)), len(evaluation), trained)


class _Index:
    """Whole texts and n-grams of the evaluation set, and the best match of each example so far."""

    def __init__(self, rows: Sequence[Any], ngram: int) -> None:
        self.ids = [row.id for row in rows]
        self.ngram = ngram
        self.template = _Template(rows)
        self.whole: dict[Part, dict[int, list[int]]] = {part: {} for part in _PARTS}
        self.places: dict[Part, dict[int, list[int]]] = {part: {} for part in _PARTS}
        self.sizes: dict[Part, Counter[int]] = {part: Counter() for part in _PARTS}
        self.exact: dict[int, tuple[Part, str]] = {}
        self.best: dict[int, tuple[float, Part, str]] = {}
        for part in _PARTS:
            self._index(part, [self._words(row, part) for row in rows])

    def _words(self, row: Any, part: Part) -> list[str]:
        return self.template.strip(words(row.prompt)) if part == "prompt" else words(row.response)

    def _index(self, part: Part, texts: list[list[str]]) -> None:
        most = max(2, min(10, len(texts) // 20))
        whole = defaultdict(list)
        for number, text in enumerate(texts):
            if text and (part == "prompt" or len(text) >= _SHORT):
                whole[hash(tuple(text))].append(number)
        self.whole[part] = {digest: numbers for digest, numbers in whole.items() if len(numbers) <= most}
        grams = [self._grams(text) for text in texts]
        shared = Counter(gram for found in grams for gram in found)
        for number, found in enumerate(grams):
            for gram in found:
                if shared[gram] <= most:
                    self.places[part].setdefault(gram, []).append(number)
                    self.sizes[part][number] += 1

    def _grams(self, text: list[str]) -> set[int]:
        return {hash(gram) for gram in zip(*(text[start:] for start in range(self.ngram)), strict=False)}

    def see(self, row: Any) -> None:
        """Compare one training example with the whole evaluation set."""
        for part in _PARTS:
            text = self._words(row, part)
            for number in self.whole[part].get(hash(tuple(text)), ()):
                self.exact.setdefault(number, (part, row.id))
            places = self.places[part]
            hits = Counter(number for gram in self._grams(text) for number in places.get(gram, ()))
            for number, count in hits.items():
                share = count / self.sizes[part][number]
                if share > self.best.get(number, (0.0,))[0]:
                    self.best[number] = (share, part, row.id)

    def leaks(self, overlap: float) -> list[Leak]:
        found = [Leak(self.ids[number], seen, "exact", part, 1.0) for number, (part, seen) in self.exact.items()]
        found += [
            Leak(self.ids[number], seen, "near", part, share)
            for number, (share, part, seen) in self.best.items()
            if share >= overlap and number not in self.exact
        ]
        return sorted(found, key=lambda leak: (leak.kind, -leak.overlap, leak.id))


class _Template:
    """Words that all prompts begin and end with: the template's, not an example's."""

    def __init__(self, rows: Sequence[Any]) -> None:
        prompts = [words(row.prompt) for row in rows]
        self.head = _common(prompts) if len(prompts) > 1 else []
        rest = [prompt[len(self.head) :][::-1] for prompt in prompts]
        self.tail = _common(rest)[::-1] if len(prompts) > 1 else []

    def strip(self, prompt: list[str]) -> list[str]:
        if self.head and prompt[: len(self.head)] == self.head:
            prompt = prompt[len(self.head) :]
        if self.tail and prompt[-len(self.tail) :] == self.tail:
            prompt = prompt[: -len(self.tail)]
        return prompt


def _common(texts: list[list[str]]) -> list[str]:
    """The words that all texts begin with."""
    first, last = min(texts), max(texts)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]
