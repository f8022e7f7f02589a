"""Trustworthy character offsets out of a tokenizer: checked when it is taken on, mended where a rule is safe.

Refused, by name: tokenizers without offsets, and tokenizers whose offsets do not point at the text of their tokens
(bytes instead of characters, positions in the normalised text, shifted by a prefix). They are found by probing with a
text that mixes scripts. Mended: characters that a normalizer composed away, dropped, replaced or moved (see
``mend_offsets``).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sra_core.alignment.cuts import IntArray, clean_cuts
from sra_core.alignment.tokens import (
    USE_ANOTHER,
    FastTokenizer,
    Spelling,
    backend_of,
    component_state,
    component_types,
    read_byte_level,
    refuse_random,
    tokenizer_name,
)
from sra_core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = ["Replacements", "check_offsets", "mend_offsets", "offsets_of", "reorders_marks", "require_inside"]

# Decomposed accents, a ligature, joined emoji, characters of one to four bytes: what offsets go wrong at.
PROBE = (
    "First 12 words, naïve cafe\u0301 \ufb01ne 東京 alpha Việt tie\u0302\u0301ng "
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 beta सप्ताह ภาษาไทย gamma \U00010348 delta 345"
)
_LONGEST = 64
"""Characters that a rule is believed to replace by one token; every place in a gap costs a call of the normalizer."""
_DISORDERED = "q\u0307\u0323"  # in canonical order the dot below comes first


def offsets_of(encoding: Encoding) -> npt.NDArray[np.int32]:
    """(T, 2) character offsets of an encoded text."""
    return np.fromiter(chain.from_iterable(encoding.offsets), np.int32, 2 * len(encoding)).reshape(-1, 2)


def check_offsets(tokenizer: FastTokenizer) -> None:
    """Probe a tokenizer: do its offsets point at the characters that its tokens stand for?

    The letters and digits of the basic Latin alphabet, which every normalizer keeps up to case, must be the same in the
    tokens between two clean cuts and in the text there, all along a text of many scripts.

    Raises:
        TokenizerError: no offsets, offsets outside the text, offsets that point elsewhere, or tokens drawn at random.
    """
    refuse_random(tokenizer)
    backend = backend_of(tokenizer)
    spelling = Spelling(backend)
    encoding = backend.encode_batch([PROBE], add_special_tokens=False)[0]
    offsets = offsets_of(encoding)
    if not offsets.any():
        raise TokenizerError(f"The tokenizer {tokenizer_name(tokenizer)} has no character offsets.", USE_ANOTHER)
    require_inside(offsets, len(PROBE), tokenizer)
    for (first, begin), (last, end) in pairwise(clean_cuts(offsets).tolist()):
        # The unknown token spells its own name, and stands for any text.
        if tokenizer.unk_token_id in encoding.ids[first:last]:
            continue
        expected = _latin(PROBE[begin:end])
        found = _latin(b"".join(spelling[token] for token in encoding.ids[first:last]).decode("utf-8", "ignore"))
        if expected != found:
            pieces = tokenizer.convert_ids_to_tokens(encoding.ids[first:last])
            raise TokenizerError(
                f"The tokenizer {tokenizer_name(tokenizer)} has wrong offsets: they place {pieces} at "
                f"{PROBE[begin:end]!r}.",
                USE_ANOTHER,
            )


def _latin(text: str) -> str:
    """Basic Latin letters and digits in lower case, accents and compatibility forms resolved."""
    return "".join(c for c in unicodedata.normalize("NFKD", text).lower() if c.isascii() and c.isalnum())


def require_inside(offsets: IntArray, length: int, tokenizer: FastTokenizer) -> None:
    """Refuse offsets that reach beyond a text of ``length`` characters.

    Raises:
        TokenizerError: naming the tokenizer.
    """
    if len(offsets) and int(offsets.max()) > length:
        raise TokenizerError(f"The tokenizer {tokenizer_name(tokenizer)} gives offsets beyond the text.", USE_ANOTHER)


def reorders_marks(backend: Tokenizer) -> bool:
    """Whether the tokenizer's normalizer puts combining marks into canonical order (all Unicode normal forms do)."""
    return backend.normalizer is not None and _DISORDERED not in backend.normalizer.normalize_str(_DISORDERED)


class Replacements:
    """What a tokenizer's normalizer makes of pieces of a text.

    A rule that makes one character of several (`&amp;` -> `&`, CRLF -> LF) leaves the offsets of the last one to the
    token, and nobody the others. Whose they are is found by asking the normalizer again.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._normalizer = backend.normalizer
        self._byte_level = "ByteLevel" in component_types(component_state(self._normalizer))
        self._anchor = self._made("a")

    def _made(self, text: str) -> bytes:
        made = text if self._normalizer is None else self._normalizer.normalize_str(text)
        return read_byte_level(made) if self._byte_level else made.replace("\u2581", " ").encode()

    def dropped(self, part: str) -> bool:
        """Whether nothing is left of a part of a text."""
        return self._made("a" + part) == self._anchor  # behind a letter, see `begins`

    def begins(self, part: str, token: bytes) -> bool:
        """Whether what is made of a part, which is not the beginning of a text, begins with a token's bytes."""
        made = self._made("a" + part)  # a letter before it: some rules hold at the beginning of a text alone
        return bool(token) and made.startswith(self._anchor + token)


def mend_offsets(
    text: str,
    offsets: npt.NDArray[np.int32],
    start: int = 0,
    reordered: bool = True,
    replacements: Replacements | None = None,
    tokens: Sequence[bytes] = (),
) -> npt.NDArray[np.int32]:
    """Make offsets cover all that their tokens stand for, where a normalizer changed the text.

    A character that no token covers, white space aside, is given to the token before it: NFC composes a letter and its
    accents into one character whose offsets cover the letter alone, and other normalizers drop accents, controls or
    zero-width characters. Where several characters were replaced by the token that follows, they are given to that
    one. A letter whose marks a normal form puts into another order is kept whole: each token that
    ends among its marks is extended to the last one. So no cut falls inside what one token stands for. White space
    stays between tokens, and nothing is moved across ``start``.

    Args:
        text: The text.
        offsets: (T, 2) half-open character offsets into it.
        start: No token that ends at or before this position is extended beyond it.
        reordered: Whether the tokenizer reorders marks, see ``reorders_marks``.
        replacements: What the tokenizer's normalizer makes of texts, and
        tokens: the bytes that each token stands for; with neither, no rule that replaces several characters is sought.

    Returns:
        (T, 2): ``offsets`` itself where there is nothing to mend.
    """
    mended = _close_gaps(text, offsets, start, replacements, tokens)
    # Cheap tests first: ASCII has no marks, and a text in NFC has them in canonical order.
    if reordered and not text.isascii() and not unicodedata.is_normalized("NFC", text):
        for begin, end in _disordered_marks(text):
            ends = mended[:, 1]
            short = (ends > max(begin, start)) & (ends < end) & (mended[:, 0] < ends)
            if short.any():
                mended = np.stack([mended[:, 0], np.where(short, np.int32(end), ends)], axis=1)
    return mended


def _close_gaps(
    text: str,
    offsets: npt.NDArray[np.int32],
    start: int,
    replacements: Replacements | None,
    tokens: Sequence[bytes],
) -> npt.NDArray[np.int32]:
    starts, ends = offsets[:, 0], offsets[:, 1]
    if len(offsets) and ends[-1] == len(text) and not np.count_nonzero(starts[1:] > ends[:-1]):
        return offsets  # every token starts where text before it is covered already: there is no gap
    cuts = clean_cuts(offsets)[1:]
    # A token of no width covers nothing: it must not end a gap.
    first = np.where(starts < ends, starts, len(text))
    after = np.append(np.minimum.accumulate(first[::-1])[::-1], len(text))[cuts[:, 0]]
    gaps = after > cuts[:, 1]
    mended = offsets.copy()
    for (token, begin), end in zip(cuts[gaps].tolist(), after[gaps].tolist(), strict=True):
        if replacements and end < len(text):
            following = next(k for k in range(token, len(first)) if first[k] == end)
            part = slice(max(begin, end - _LONGEST), int(ends[following]))
            end = _replaced_from(text, part, end, replacements, tokens[following])
            mended[following, 0] = end
        run = next((k for k in range(begin, end) if text[k].isspace()), end)
        if begin <= start:
            run = min(run, start)
        if run > begin:
            mended[token - 1, 1] = run
    return mended if (mended != offsets).any() else offsets


def _replaced_from(text: str, part: slice, start: int, replacements: Replacements, token: bytes) -> int:
    """Where the text begins that a token stands for: at its own start, or at a place in the gap before it."""
    gap = text[part.start : start]
    # White space stays between tokens, unless it is what the token itself begins with.
    if (gap.isspace() and not token[:1].isspace()) or replacements.dropped(gap):
        return start
    places = range(part.start, start)
    found = next((k for k in places if replacements.begins(text[k : part.stop], token)), start)
    while found < start and replacements.dropped(text[found]):
        found += 1  # that went before the rule came to the rest
    return found


def _disordered_marks(text: str) -> Iterator[tuple[int, int]]:
    """Letters whose combining marks are not in canonical order: the letter's position, the end of its marks."""
    classes = [unicodedata.combining(character) for character in text]
    end = 0
    for k, (one, other) in enumerate(pairwise(classes)):
        if one > other > 0 and k >= end:
            begin = k
            while begin > 0 and classes[begin]:
                begin -= 1
            end = next((m for m in range(k, len(text)) if not classes[m]), len(text))
            yield begin, end
