"""Evaluation examples that occur in the training data, exactly or nearly.

An example has leaked when its question or its answer stands in one training example: as a whole, after white space,
case and punctuation are set aside, or by a large share of its word n-grams. Time is linear in both texts: the n-grams
of the evaluation set are indexed, the training set streams past.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sra_core.compare import split_words

__all__ = ["Leak", "LeakReport", "find_leaks", "words"]

Part = Literal["prompt", "response"]
_PARTS: tuple[Part, Part] = ("prompt", "response")
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

    def rows(self) -> list[dict[str, Any]]:
        """The leaks as the rows of a table."""
        return [asdict(leak) for leak in self.leaks]


def words(text: str) -> list[str]:
    """Words without case, compatibility forms, white space and punctuation."""
    # Twice: folding the case of a normal form may leave one that is not.
    return split_words(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))


def find_leaks(
    evaluation: Sequence[Any],
    training: Iterable[Any],
    *,
    references: Mapping[str, Sequence[str]] | None = None,
    ngram: int = 13,
    overlap: float = 0.5,
) -> LeakReport:
    """Look for evaluation examples in the training data.

    Args:
        evaluation: Rows with ``id``, ``prompt`` and ``response``.
        training: The same of the training set; read once, in any order.
        references: Further responses by ``id``, of examples that have several: each is looked for like the first.
        ngram: Words in an n-gram. Texts with fewer words are compared as a whole only.
        overlap: Share of a prompt's or response's n-grams, in one training example, that makes it a near copy.

    What many evaluation examples share (a prompt template, a stock question) says nothing about any of them and is
    left out.
    """
    index = _Index(evaluation, references or {}, ngram)
    trained = 0
    for row in training:
        trained += 1
        index.see(row)
    return LeakReport(tuple(index.leaks(overlap)), len(evaluation), trained)


class _Index:
    """Whole texts and n-grams of the evaluation set, and the best match of each example so far.

    An example has one prompt and one response or more; each text is looked for by itself.
    """

    def __init__(self, rows: Sequence[Any], references: Mapping[str, Sequence[str]], ngram: int) -> None:
        self.ids = [row.id for row in rows]
        self.ngram = ngram
        self.template = _Template(rows)
        self.owners: dict[Part, list[int]] = {}
        self.whole: dict[Part, dict[int, list[int]]] = {}
        self.places: dict[Part, dict[int, list[int]]] = {}
        self.sizes: dict[Part, Counter[int]] = {}
        self.exact: dict[int, tuple[Part, str]] = {}
        self.best: dict[int, tuple[float, Part, str]] = {}
        self._index("prompt", [(number, self._prompt(row)) for number, row in enumerate(rows)])
        responses = [
            (number, words(text))
            for number, row in enumerate(rows)
            for text in dict.fromkeys((row.response, *references.get(row.id, ())))
        ]
        self._index("response", responses)

    def _prompt(self, row: Any) -> list[str]:
        return self.template.strip(words(row.prompt))

    def _index(self, part: Part, texts: list[tuple[int, list[str]]]) -> None:
        """Index the texts of one part, each with the number of its example."""
        # More examples than this share it: a stock question or phrase, no evidence of any of them.
        most = max(2, min(10, len(self.ids) // 20))
        owners = self.owners[part] = [number for number, _ in texts]
        whole, grams = defaultdict(list), defaultdict(list)
        for k, (_, text) in enumerate(texts):
            if text and (part == "prompt" or len(text) >= _SHORT):
                whole[hash(tuple(text))].append(k)
            for gram in self._grams(text):
                grams[gram].append(k)
        for index, kept in ((whole, self.whole), (grams, self.places)):
            kept[part] = {}
            for key, found in index.items():
                # By example, not by text: references of one example say nearly the same, which is evidence.
                if len({owners[k] for k in found}) <= most:
                    kept[part][key] = found
        # Of the n-grams that are evidence: what many share counts neither as found nor as missing.
        self.sizes[part] = Counter(k for found in self.places[part].values() for k in found)

    def _grams(self, text: list[str]) -> set[int]:
        shifted = [text[start:] for start in range(self.ngram)]
        # A number in place of the words saves memory. Python draws hashes anew in each process: they are never kept.
        return {hash(gram) for gram in zip(*shifted, strict=False)}

    def see(self, row: Any) -> None:
        """Compare one training example with the whole evaluation set."""
        texts: dict[Part, list[str]] = {"prompt": self._prompt(row), "response": words(row.response)}
        for part, text in texts.items():
            owners, places, sizes = self.owners[part], self.places[part], self.sizes[part]
            for k in self.whole[part].get(hash(tuple(text)), ()):
                self.exact.setdefault(owners[k], (part, row.id))
            hits = Counter(k for gram in self._grams(text) for k in places.get(gram, ()))
            for k, count in hits.items():
                # Within one training example: pieces of several do not add up.
                share = count / sizes[k]
                if share > self.best.get(owners[k], (0.0,))[0]:
                    self.best[owners[k]] = (share, part, row.id)

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
    # What the first and the last of a sorted list share, all between them share.
    first, last = min(texts), max(texts)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]
