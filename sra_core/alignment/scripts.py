"""The script of every character, for figures by script: fast enough for every response of a corpus."""

from __future__ import annotations

import unicodedata

import numpy as np
import numpy.typing as npt

__all__ = ["SCRIPTS", "byte_widths", "code_points", "script_numbers"]

SCRIPTS = (
    *("Space", "Mark", "Punctuation", "Digit", "Symbol", "Emoji", "Other"),
    *("Arabic", "Armenian", "Bengali", "Cyrillic", "Devanagari", "Ethiopic", "Georgian", "Greek", "Gujarati"),
    *("Gurmukhi", "Han", "Hangul", "Hebrew", "Hiragana", "Kannada", "Katakana", "Khmer", "Lao", "Latin", "Malayalam"),
    *("Mongolian", "Myanmar", "Oriya", "Sinhala", "Tamil", "Telugu", "Thai", "Tibetan"),
)
"""Names; scripts of letters come after the classes of all other characters, so a larger number is a stronger claim."""

_NUMBERS = {name.upper(): number for number, name in enumerate(SCRIPTS)} | {"CJK": SCRIPTS.index("Han")}
_CLASSES = {"Z": "Space", "M": "Mark", "P": "Punctuation", "N": "Digit", "S": "Symbol", "C": "Other", "L": "Other"}
_UNSEEN = 255
# Filled as code points are met, so that unicodedata is asked once for each of them.
_table = np.full(0x110000, _UNSEEN, np.uint8)


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """(characters,) code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def byte_widths(points: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """(characters,) bytes that each code point takes in UTF-8."""
    return 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)


def script_numbers(points: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """(characters,) indices into ``SCRIPTS`` of code points."""
    numbers = _table[points]
    if (numbers == _UNSEEN).any():
        for point in np.unique(points[numbers == _UNSEEN]).tolist():
            _table[point] = _number(chr(point))
        numbers = _table[points]
    return numbers


def _number(character: str) -> int:
    category = unicodedata.category(character)
    if category[0] in "LM" or category == "Nl":
        # The first or second word of the name is the script: LATIN SMALL LETTER A, FULLWIDTH LATIN SMALL LETTER A.
        words = unicodedata.name(character, "").split()
        named = next((_NUMBERS[word] for word in words[:2] if word in _NUMBERS), None)
        if named is not None and named >= _NUMBERS["ARABIC"]:
            return named
    if category == "So" and ord(character) >= 0x2600:  # from the block Miscellaneous Symbols on
        return _NUMBERS["EMOJI"]
    if character.isspace():
        return _NUMBERS["SPACE"]
    return _NUMBERS[_CLASSES[category[0]].upper()]
