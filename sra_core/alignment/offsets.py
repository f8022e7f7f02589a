"""Ids and trustworthy character offsets out of a tokenizer: checked when it is taken on, mended where a rule is safe.

Refused, by name: tokenizers without offsets, and tokenizers whose offsets do not point at the text of their tokens
(bytes instead of characters, positions in the normalised text, shifted by a prefix). They are found by probing with a
text that mixes scripts. Mended: characters that a normalizer composed away or dropped and that no token covers (see
``close_gaps``).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from sra_core.alignment.cuts import IntArray, clean_cuts
from sra_core.alignment.tokens import USE_ANOTHER, backend_of, piece_reader, tokenizer_name
from sra_core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerFast

__all__ = ["Tokens", "check_offsets", "close_gaps", "encode_batch", "require_inside"]

PROBE = (
    "First 12 words, naïve cafe\u0301 \ufb01ne 東京 alpha Việt tie\u0302\u0301ng "
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 beta सप्ताह ภาษาไทย gamma \U00010348 delta 345"
)


class Tokens(NamedTuple):
    """One text, tokenized."""

    ids: npt.NDArray[np.int32]
    """(T,)"""
    offsets: npt.NDArray[np.int32]
    """(T, 2) half-open character offsets; special tokens that the tokenizer added are zero-width."""


def encode_batch(backend: Tokenizer, texts: Sequence[str], add_special_tokens: bool) -> list[Tokens]:
    """Tokenize texts; offsets are characters of the text as given."""
    return [_tokens(encoding) for encoding in backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)]


def _tokens(encoding: Encoding) -> Tokens:
    ids = np.array(encoding.ids, np.int32)
    flat = np.fromiter(chain.from_iterable(encoding.offsets), np.int32, 2 * len(ids))
    return Tokens(ids, flat.reshape(-1, 2))


def check_offsets(tokenizer: PreTrainedTokenizerFast) -> None:
    """Probe a tokenizer: do its offsets point at the characters that its tokens stand for?

    The letters and digits of the basic Latin alphabet, which every normalizer keeps up to case, must be the same in the
    tokens between two clean cuts and in the text there, all along a text of many scripts.

    Raises:
        TokenizerError: no offsets, offsets outside the text, or offsets that point elsewhere.
    """
    name = tokenizer_name(tokenizer)
    backend = backend_of(tokenizer)
    tokens = encode_batch(backend, [PROBE], False)[0]
    require_inside(tokens.offsets, len(PROBE), name)
    pieces, read = tokenizer.convert_ids_to_tokens(tokens.ids.tolist()), piece_reader(backend)
    unknown = tokenizer.unk_token_id
    cuts = clean_cuts(tokens.offsets).tolist()
    for (first, begin), (last, end) in pairwise(cuts):
        if unknown in tokens.ids[first:last]:
            continue
        expected = _latin(PROBE[begin:end])
        found = _latin(b"".join(map(read, pieces[first:last])).decode("utf-8", "ignore"))
        if expected != found:
            raise TokenizerError(
                f"The tokenizer {name} has wrong offsets: they place {pieces[first:last]} at {PROBE[begin:end]!r}.",
                USE_ANOTHER,
            )


def _latin(text: str) -> str:
    """Basic Latin letters and digits in lower case, accents and compatibility forms resolved."""
    return "".join(c for c in unicodedata.normalize("NFKD", text).lower() if c.isascii() and c.isalnum())


def require_inside(offsets: IntArray, length: int, name: str) -> None:
    """Refuse offsets that lie outside a text of ``length`` characters, or that cover nothing of it.

    Raises:
        TokenizerError: naming the tokenizer.
    """
    if len(offsets) and not offsets.any():
        raise TokenizerError(f"The tokenizer {name} has no character offsets.", USE_ANOTHER)
    if len(offsets) and (int(offsets.min()) < 0 or int(offsets.max()) > length):
        raise TokenizerError(f"The tokenizer {name} gives offsets outside the text.", USE_ANOTHER)


def close_gaps(text: str, offsets: npt.NDArray[np.int32], start: int = 0) -> npt.NDArray[np.int32]:
    """Give characters that no token covers, white space aside, to the token before them.

    Normalizers compose a letter and its accents into one character whose offsets cover the letter alone (NFC turns e
    and U+0301 into one token over the e), and some drop accents, controls or zero-width characters. Such a character
    is part of what the token before it stands for, so a cut must not fall between the two. White space stays between
    tokens, and nothing is moved across ``start``.

    Args:
        text: The text.
        offsets: (T, 2) half-open character offsets into it.
        start: No token that ends at or before this position is extended beyond it.

    Returns:
        (T, 2): ``offsets`` itself where there is nothing to mend.
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    if len(offsets) and ends[-1] == len(text) and (starts[1:] == ends[:-1]).all():
        return offsets
    cuts = clean_cuts(offsets)[1:]
    real = starts < ends
    after = np.minimum.accumulate(np.where(real, starts, len(text))[::-1])[::-1]
    after = np.append(after, len(text))[cuts[:, 0]]
    mended = offsets
    for (token, begin), end in zip(cuts[after > cuts[:, 1]].tolist(), after[after > cuts[:, 1]].tolist(), strict=True):
        run = next((k for k in range(begin, end) if text[k].isspace()), end)
        if begin <= start:
            run = min(run, start)
        if run > begin:
            mended = mended.copy() if mended is offsets else mended
            mended[token - 1, 1] = run
    return mended
