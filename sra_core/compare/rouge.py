"""ROUGE and chrF of generated answers, in any language.

ROUGE-1, ROUGE-2 and ROUGE-L are F1 by the rouge-score package with its stemmer (paper section 5). Its own tokenizer
drops all but a-z and 0-9; ours keeps the words of every language (see ``words``), and English has the same scores to
the last digit. chrF (package sacrebleu) compares runs of one to six characters and needs no words at all.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from sra_core.compare.words import split_words

__all__ = ["ANSWER_SCORES", "ROUGE_TYPES", "SCORING", "AnswerCounts", "answer_scores", "count_answers", "rouge_scores"]

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
ANSWER_SCORES = (*ROUGE_TYPES, "chrf")
SCORING = 2
"""Raise when the same answers get other scores than before: those that were scored by the old rules expire."""
STEMMED = 3
"""rouge-score stems words of more letters than these."""


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """What the averages are made of; nothing in here was dropped.

    Attributes:
        answers: All answers.
        empty: Answers without a character that is not white space; they score 0.
        unfinished: Answers cut at the token limit; they are scored as they are.
        unscorable: References without a word (an emoji, a row of dots): ROUGE has nothing to compare, its score is not
            a number and no part of an average.
    """

    answers: int
    empty: int
    unfinished: int
    unscorable: int


class _Words:
    """The words that ROUGE compares: NFC, lower case, English ones stemmed as rouge-score stems them."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        """Called by rouge-score."""
        words = split_words(unicodedata.normalize("NFC", text).lower())
        return [self._stemmer.stem(word) if len(word) > STEMMED and word.isascii() else word for word in words]


@lru_cache(maxsize=1)
def _rouge() -> Any:
    from rouge_score import rouge_scorer

    # Given a tokenizer, rouge-score ignores its own `use_stemmer`: `_Words` stems.
    return rouge_scorer.RougeScorer(list(ROUGE_TYPES), tokenizer=_Words())


@lru_cache(maxsize=1)
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()  # sacrebleu's defaults: one to six characters, beta 2, no words


def rouge_scores(references: Sequence[str | Sequence[str]], answers: Sequence[str]) -> dict[str, np.ndarray]:
    """F1 of each answer against its reference, or against the best of several.

    Returns:
        ``rouge1``, ``rouge2`` and ``rougeL``, each (E,) float64 between 0 and 1, in the order given. An empty answer
        scores 0 and stays in. Where no reference has a word the score is NaN, or in ASCII rouge-score's own 0.

    Raises:
        ValueError: The two sequences differ in length.
    """
    rows = [_rouge_of(_several(each), answer) for each, answer in zip(references, answers, strict=True)]
    columns = np.array(rows, dtype=np.float64).reshape(-1, len(ROUGE_TYPES)).T
    return dict(zip(ROUGE_TYPES, columns, strict=True))


def _rouge_of(references: Sequence[str], answer: str) -> list[float]:
    with_words = [each for each in references if _has_words(each)]
    if not with_words:
        return [0.0 if all(map(str.isascii, references)) else math.nan] * len(ROUGE_TYPES)
    found = _rouge().score_multi(targets=with_words, prediction=answer)
    return [found[name].fmeasure for name in ROUGE_TYPES]


def answer_scores(references: Sequence[str | Sequence[str]], answers: Sequence[str]) -> dict[str, np.ndarray]:
    """`rouge_scores`, all NaN where no reference has a word, and ``chrf``: (E,) between 0 and 1, of the best reference.

    Raises:
        ValueError: The two sequences differ in length.
    """
    scores = []
    for each, answer in zip(references, answers, strict=True):
        scores.append(_chrf().sentence_score(_nfc(answer), list(map(_nfc, _several(each)))).score)
    scorable = np.array([any(map(_has_words, _several(each))) for each in references], dtype=bool)
    rouge = {name: np.where(scorable, values, np.nan) for name, values in rouge_scores(references, answers).items()}
    return {**rouge, "chrf": np.array(scores, dtype=np.float64) / 100}


def _several(references: str | Sequence[str]) -> Sequence[str]:
    return [references] if isinstance(references, str) else references


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def count_answers(
    references: Sequence[str | Sequence[str]], answers: Sequence[str], finish_reasons: Sequence[str]
) -> AnswerCounts:
    """Count the answers that pull an average down without being wrong in an ordinary way."""
    return AnswerCounts(
        answers=len(answers),
        empty=sum(not answer.strip() for answer in answers),
        unfinished=sum(reason == "length" for reason in finish_reasons),
        unscorable=sum(not any(map(_has_words, _several(each))) for each in references),
    )


def _has_words(text: str) -> bool:
    return bool(split_words(unicodedata.normalize("NFC", text)))
