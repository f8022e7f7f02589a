"""Tokenizers without offsets or with wrong ones are refused by name; what normalizers moved is mended."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from sra_core.alignment import PairEncoder, check_offsets, mend_offsets, token_bytes
from sra_core.alignment.offsets import reorders_marks
from sra_core.config import ModelRef
from sra_core.errors import TokenizerError
from sra_core.models import load_tokenizer

from .tokenizers import byte_level, load

Pairs = list[tuple[int, int]]


class Encoded:
    def __init__(self, ids: list[int], offsets: Pairs) -> None:
        self.ids = ids
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.ids)


class Lying:
    """A fast tokenizer whose backend changes the offsets that it gives."""

    name_or_path = "somebody/lying-tokenizer"

    def __init__(self, change: Callable[[str, Pairs], Pairs], name: str = "byte-level") -> None:
        self._real = load(name)
        self._change = change
        self.backend_tokenizer = self

    def __getattr__(self, name: str):
        owner = self._real if hasattr(self._real, name) else self._real.backend_tokenizer
        return getattr(owner, name)

    @property
    def normalizer(self):
        return self._real.backend_tokenizer.normalizer

    def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[Encoded]:
        found = self._real.backend_tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        return [Encoded(e.ids, self._change(t, e.offsets)) for t, e in zip(texts, found, strict=True)]


def in_bytes(text: str, offsets: Pairs) -> Pairs:
    return [(len(text[:a].encode()), len(text[:b].encode())) for a, b in offsets]


def normalized(text: str, offsets: Pairs) -> Pairs:
    """Positions in the composed text, as a tokenizer gives that normalizes before it looks."""
    return [
        (len(unicodedata.normalize("NFC", text[:a])), len(unicodedata.normalize("NFC", text[:b]))) for a, b in offsets
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text, offsets: [(0, 0)] * len(offsets), "has no character offsets"),
        (in_bytes, "gives offsets beyond the text"),
        (normalized, "has wrong offsets: they place"),
        (lambda text, offsets: [(max(a - 1, 0), max(b - 1, 0)) for a, b in offsets], "has wrong offsets"),
        (lambda text, offsets: [(a + (a > 9), b + (b > 9)) for a, b in offsets[:-1]] + offsets[-1:], "wrong offsets"),
    ],
    ids=["none", "bytes", "normalized", "shifted", "shifted-after-a-while"],
)
def test_wrong_offsets_are_refused_by_name(change, message):
    with pytest.raises(TokenizerError, match=f"somebody/lying-tokenizer .*{message}"):
        check_offsets(Lying(change))


def test_true_offsets_pass():
    check_offsets(Lying(lambda text, offsets: offsets))


def test_an_added_token_stands_for_its_own_letters():
    tokenizer = byte_level()
    tokenizer.add_tokens(["naïve", "東京"])
    assert "naïve" in tokenizer.tokenize("naïve")
    check_offsets(tokenizer)


def test_unigram_with_byte_fallback_reads_its_bytes():
    tokenizer = load("unigram-bytes")
    check_offsets(tokenizer)
    assert token_bytes(tokenizer)[tokenizer.convert_tokens_to_ids("<0xE6>")] == b"\xe6"


def test_a_tokenizer_that_draws_its_tokens_is_refused_by_name(tmp_path):
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.model.dropout = 0.1
    message = r"splits a text differently at every call \(BPE dropout 0\.1\)\.\n  -> Set \"dropout\" of the model"
    with pytest.raises(TokenizerError, match=f"The tokenizer byte-level {message}"):
        check_offsets(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(ModelRef(source=str(tmp_path)))
    tokenizer.backend_tokenizer.model.dropout = 0.0
    check_offsets(tokenizer)


def test_a_slow_tokenizer_is_refused_by_name():
    class Slow:
        is_fast = False
        name_or_path = "somebody/slow"

    with pytest.raises(TokenizerError, match=r"somebody/slow has no character offsets\.\n  -> Use a fast tokenizer"):
        check_offsets(Slow())


def test_the_encoder_refuses_a_tokenizer_whose_offsets_are_wrong():
    limits = {"prompt": "{instruction}", "max_length": 64, "max_prompt": 32}
    with pytest.raises(TokenizerError, match="lying"):
        PairEncoder(load("byte-level"), Lying(in_bytes), teacher_template="plain", student_template="plain", **limits)


def test_a_character_that_was_composed_away_belongs_to_the_token_before_it():
    text = "cafe\u0301 x"  # c a f e+accent space x; the composed letter's offsets cover the e alone
    mended = mend_offsets(text, np.array([(0, 3), (3, 4), (5, 6), (6, 7)], np.int32))
    assert mended.tolist() == [[0, 3], [3, 5], [5, 6], [6, 7]]


def test_white_space_that_no_token_covers_stays_between_tokens():
    offsets = np.array([(0, 2), (4, 6)], np.int32)
    assert mend_offsets("ab  cd  ", offsets).tolist() == offsets.tolist()
    assert mend_offsets("ab\u200b cd\x00 ", np.array([(0, 2), (4, 6)], np.int32)).tolist() == [[0, 3], [4, 7]]


def test_nothing_is_moved_across_the_start_of_the_response():
    offsets = np.array([(0, 2), (4, 6)], np.int32)  # "ab", two dropped characters, "cd"
    assert mend_offsets("ab\u200b\u200bcd", offsets, start=3).tolist() == [[0, 3], [4, 6]]
    assert mend_offsets("ab\u200b\u200bcd", offsets, start=2).tolist() == [[0, 2], [4, 6]]
    assert mend_offsets("ab\u200b\u200bcd", offsets, start=1).tolist() == [[0, 4], [4, 6]]


def test_offsets_without_gaps_come_back_as_they_are():
    for pairs in ([(0, 0), (0, 2), (2, 3)], [(0, 1), (0, 1), (1, 3)]):
        offsets = np.array(pairs, np.int32)
        assert mend_offsets("abc", offsets) is offsets
    empty = np.zeros((0, 2), np.int32)
    assert mend_offsets("\x00", empty).shape == (0, 2)


def test_marks_out_of_canonical_order_are_kept_together_only_if_the_tokenizer_reorders_them():
    text = "xe\u0301\u0323y"
    offsets = np.array([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)], np.int32)
    assert mend_offsets(text, offsets, reordered=True).tolist() == [[0, 1], [1, 4], [2, 4], [3, 4], [4, 5]]
    assert mend_offsets(text, offsets, reordered=False) is offsets
    ordered = "xe\u0323\u0301y"
    assert mend_offsets(ordered, offsets, reordered=True) is offsets


@pytest.mark.parametrize(
    ("normalizer", "expected"),
    [
        (None, False),
        (normalizers.Prepend("▁"), False),
        (normalizers.NFC(), True),
        (normalizers.Sequence([normalizers.Lowercase(), normalizers.NFKD()]), True),
    ],
)
def test_reordering_is_asked_of_the_normalizer(normalizer, expected):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    assert reorders_marks(backend) is expected
