"""Words of any language, for scores and for the search of copies.

A word is a run of letters, their marks and digits, as Unicode has them. Chinese, Japanese, Thai, Lao, Khmer, Burmese
and Tibetan put no spaces between words: there a letter with its marks counts as one. Segmenters that know such words
need a dictionary a language and disagree with each other; characters are what is counted for these languages elsewhere.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

__all__ = ["COUNTED", "COUNTED_NOTE", "split_words"]

COUNTED = "Unicode words"
"""What ROUGE compares, in its name wherever a person reads it."""
COUNTED_NOTE = "ROUGE counts Unicode words; in Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan, characters."

_UNSPACED = "".join(
    rf"\p{{Script_Extensions={script}}}"
    for script in ("Han", "Hiragana", "Katakana", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")
)


@lru_cache(maxsize=1)
def _word() -> Any:
    import regex

    # V1: regex knows sets less or within sets (--, &&) in version 1 of its syntax alone.
    letter, word = r"\p{L}\p{Nl}", r"\p{L}\p{Nl}\p{M}\p{Nd}"
    return regex.compile(rf"(?V1)[[{_UNSPACED}]&&[{letter}]]\p{{M}}*|[[{word}]--[[{_UNSPACED}]&&[{letter}]]]+")


def split_words(text: str) -> list[str]:
    """The words of a text in NFC or another normal form; case, and what is no word, are for the caller to settle."""
    if text.isascii():  # the same, ten times as fast
        return "".join(character if character.isalnum() else " " for character in text).split()
    found: list[str] = _word().findall(text)
    return found
