"""Shared vocabulary: tokens of the two sides that stand for the same bytes (paper section 3.3, which compares strings).

Shapes: V pairs. Special tokens stand for no bytes; they pair by their role alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sra_core.alignment.tokens import BYTE_PIECE, backend_of, token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["SharedVocabulary", "shared_vocabulary"]

_ROLES = tuple(f"{role}_token_id" for role in ("eos", "bos", "unk", "pad", "sep", "cls", "mask"))


@dataclass(frozen=True, slots=True, eq=False)
class SharedVocabulary:
    """Token pairs of the two sides, in the order of the student's ids.

    ``teacher_ids[v]`` and ``student_ids[v]`` stand for the same bytes. The first ``exact`` pairs are one-to-one; the
    rest, there only on request, map a student token that the teacher lacks to the teacher's first token of its bytes.
    """

    teacher_ids: npt.NDArray[np.int32]
    """(V,)"""
    student_ids: npt.NDArray[np.int32]
    """(V,), each id once"""
    exact: int
    teacher_size: int
    """Entries of the teacher's whole vocabulary."""
    student_size: int

    def __len__(self) -> int:
        return len(self.student_ids)


def shared_vocabulary(
    teacher_tokenizer: PreTrainedTokenizerFast,
    student_tokenizer: PreTrainedTokenizerFast,
    first_tokens: bool = False,
) -> SharedVocabulary:
    """Pair the tokens that stand for the same bytes.

    Args:
        teacher_tokenizer: A fast tokenizer.
        student_tokenizer: Likewise; the same one twice pairs every token.
        first_tokens: Also pair each student token left over with the first token of the teacher's own tokenization of
            the same bytes. It widens what the logit term sees; teacher ids then repeat, so mass is counted repeatedly.

    Raises:
        TokenizerError: a slow tokenizer.
    """
    teacher = token_bytes(teacher_tokenizer)
    student = teacher if student_tokenizer is teacher_tokenizer else token_bytes(student_tokenizer)
    known = _by_bytes(teacher, teacher_tokenizer)
    # The likeliest of each side with one another; what a side has more of for the same bytes stays unpaired.
    pairs = {
        s: t
        for text, tokens in _by_bytes(student, student_tokenizer).items()
        for s, t in zip(tokens, known.get(text, ()), strict=False)
    }
    for t, s in _roles(teacher_tokenizer, student_tokenizer):
        # One token may have several roles (end and padding): it is paired by the first.
        if s not in pairs and t not in pairs.values():
            pairs[s] = t
    ordered = sorted(pairs.items())
    exact = len(ordered)
    # Behind the exact pairs: GOLD takes the first pair of a teacher's token for the one of the same bytes.
    if first_tokens:
        left = [(s, text) for s, text in enumerate(student) if text and s not in pairs]
        ordered += _first_tokens(left, teacher, known, teacher_tokenizer)
    ids = np.array(ordered, np.int32).reshape(-1, 2)
    return SharedVocabulary(ids[:, 1].copy(), ids[:, 0].copy(), exact, len(teacher), len(student))


def _by_bytes(table: list[bytes | None], tokenizer: PreTrainedTokenizerFast) -> dict[bytes, list[int]]:
    """The tokens that stand for each byte string (an entry and its <0xNN> twin, ##s and s), likeliest first."""
    found: dict[bytes, list[int]] = {}
    for k, text in enumerate(table):
        if text is not None:
            found.setdefault(text, []).append(k)
    for tokens in found.values():
        if len(tokens) > 1:
            names = dict(zip(tokens, tokenizer.convert_ids_to_tokens(tokens), strict=True))
            tokens.sort(key=lambda k: (bool(BYTE_PIECE.fullmatch(names[k])), not names[k].startswith("##"), k))
    return found


def _roles(teacher: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast) -> list[tuple[int, int]]:
    pairs = ((getattr(teacher, role, None), getattr(student, role, None)) for role in _ROLES)
    return [(t, s) for t, s in pairs if t is not None and s is not None]


def _first_tokens(
    left: list[tuple[int, bytes]],
    teacher: list[bytes | None],
    known: dict[bytes, list[int]],
    tokenizer: PreTrainedTokenizerFast,
) -> list[tuple[int, int]]:
    """(student id, teacher id) of the first token of the teacher's tokenization of each student token's bytes.

    Bytes that are no text of their own, or before which the tokenizer puts a space, take the longest entry that they
    start with instead.
    """
    texts = [text.decode("utf-8", "replace") for _, text in left]
    encodings = backend_of(tokenizer).encode_batch(texts, add_special_tokens=False)
    pairs = []
    for (s, text), encoding in zip(left, encodings, strict=True):
        first = encoding.ids[0] if encoding.ids else None
        piece = None if first is None else teacher[first]
        if piece is None or not text.startswith(piece):
            first = next((known[text[:n]][0] for n in range(len(text), 0, -1) if text[:n] in known), None)
        if first is not None:
            pairs.append((s, first))
    return pairs
