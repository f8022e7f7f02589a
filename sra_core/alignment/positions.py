"""Where the tokens of a text are, in bytes of its UTF-8: characters are not the finest unit that two tokenizers share.

Where a text's tokens spell its bytes, the running sum of their lengths is exact and needs no offsets of the tokenizer,
which are then not asked for: that is faster, and offsets that leave white space out do no harm. Any other text is
tokenized with offsets of characters, mended, and turned into bytes of the same text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sra_core.alignment.cuts import clean_cuts
from sra_core.alignment.offsets import (
    Replacements,
    check_offsets,
    mend_offsets,
    offsets_of,
    reorders_marks,
    require_inside,
)
from sra_core.alignment.scripts import byte_widths, code_points
from sra_core.alignment.tokens import FastTokenizer, Spelling, backend_of, component_state

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = ["BytePositions", "at_characters"]

_SAMPLE = "A few words, naïve: 東京\n\tx = 17  # 👍\n"
"""A tokenizer that spells this spells most texts; one that does not is asked for offsets at once."""


def at_characters(text: bytes, positions: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Which positions, 0 to the length of the text, lie between characters."""
    # In UTF-8 the bytes 10xxxxxx continue a character. The end of a text is no byte of one.
    continues = np.append(np.frombuffer(text, np.uint8) & 0xC0 == 0x80, False)
    return ~continues[positions]


class BytePositions:
    """Tokenizes texts, without the tokenizer's own special tokens, and says where the tokens are.

    Raises:
        TokenizerError: a tokenizer without offsets, with wrong ones, or one that draws its tokens.
    """

    def __init__(self, tokenizer: FastTokenizer) -> None:
        check_offsets(tokenizer)
        self._tokenizer = tokenizer
        self._backend = backend_of(tokenizer)
        self._spelling = Spelling(self._backend)
        self._reorders = reorders_marks(self._backend)
        self._replacements = Replacements(self._backend)
        sample = self._backend.encode_batch([_SAMPLE], add_special_tokens=False)[0].ids
        self._spells = self._summed(sample, _SAMPLE.encode()) is not None

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """The tokens of texts, without offsets where most texts need none."""
        if self._spells:
            # This call keeps no offsets, and is faster for it.
            return self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return self._whole.encode_batch(texts, add_special_tokens=False)

    def of(
        self, text: str, data: bytes, encoding: Encoding, start: int, with_offsets: bool = False
    ) -> npt.NDArray[np.int32]:
        """(T, 2) where the tokens of a text are.

        Args:
            text: The text.
            data: Its UTF-8.
            encoding: Its tokens, from `encode` or elsewhere.
            start: The character before which no token that ends there is extended, see ``mend_offsets``.
            with_offsets: They are from elsewhere and have offsets of characters.

        Raises:
            TokenizerError: offsets beyond the text.
        """
        if self._spells:
            found = self._summed(encoding.ids, data)
            if found is not None:
                return found
            if not with_offsets:
                encoding = self._whole.encode_batch([text], add_special_tokens=False)[0]
        pieces = [self._spelling[token] for token in encoding.ids]
        offsets = offsets_of(encoding)
        require_inside(offsets, len(text), self._tokenizer)
        offsets = mend_offsets(text, offsets, start, self._reorders, self._replacements, pieces)
        if len(data) > len(text):
            # Bytes before each character; in a text of ASCII, which is as long in bytes, they are its number.
            before = np.append(0, byte_widths(code_points(text)).cumsum()).astype(np.int32)
            offsets = before[offsets]
        return _refined(offsets, pieces, data)

    @cached_property
    def _whole(self) -> Tokenizer:
        """The tokenizer with offsets that leave no white space out, as GPT-2's and RoBERTa's do by default."""
        if '"trim_offsets": true' not in json.dumps(component_state(self._backend.post_processor)):
            return self._backend
        from tokenizers import Tokenizer

        state = json.loads(self._backend.to_str())
        return Tokenizer.from_str(json.dumps({**state, "post_processor": None}))  # what trims, and adds special tokens

    def _summed(self, ids: list[int], data: bytes) -> npt.NDArray[np.int32] | None:
        """Running sums of the lengths of the tokens; None where they do not spell the text."""
        pieces = list(map(self._spelling.__getitem__, ids))
        # The method changes `pieces`: what is summed are lengths of what the text has.
        if b"".join(pieces) != data and not self._without_opening_spaces(ids, pieces, data):
            return None
        offsets = np.empty((len(ids), 2), np.int32)
        lengths = np.fromiter(map(len, pieces), np.int32, len(pieces))
        np.cumsum(lengths, out=offsets[:, 1])
        np.subtract(offsets[:, 1], lengths, out=offsets[:, 0])
        return offsets

    def _without_opening_spaces(self, ids: list[int], pieces: list[bytes], data: bytes) -> bool:
        """Take away the space that SentencePiece puts before a text, and often after an added token.

        Returns:
            Whether ``pieces`` spell the text then.
        """
        added = [k for k, token in enumerate(ids) if token in self._spelling.added]
        position = begin = 0
        for end in [*added, len(ids)]:
            part = b"".join(pieces[begin:end])
            if part and pieces[begin][:1] == b" " and not data.startswith(part, position):
                pieces[begin], part = pieces[begin][1:], part[1:]
            part += b"".join(pieces[end : end + 1])
            if not data.startswith(part, position):
                return False
            position, begin = position + len(part), end + 1
        return position == len(data)


def _refined(offsets: npt.NDArray[np.int32], pieces: Sequence[bytes], data: bytes) -> npt.NDArray[np.int32]:
    """Tell the tokens between two clean cuts apart where together they spell the bytes between them."""
    cuts = clean_cuts(offsets)
    several = np.flatnonzero(np.diff(cuts[:, 0]) > 1)
    refined = offsets.copy() if len(several) else offsets
    for k in several.tolist():
        (first, begin), (last, end) = cuts[k].tolist(), cuts[k + 1].tolist()
        spelled, text = b"".join(pieces[first:last]), data[begin:end]
        if spelled == text or (spelled == b" " + text and pieces[first]):  # SentencePiece's opening space
            lengths = np.array([len(piece) for piece in pieces[first:last]])
            lengths[0] -= len(spelled) - len(text)
            refined[first:last, 1] = begin + lengths.cumsum()
            refined[first:last, 0] = refined[first:last, 1] - lengths
    return refined
