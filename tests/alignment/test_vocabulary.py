"""Shared vocabulary: by bytes, one-to-one, special tokens by role."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sra_core.alignment import shared_vocabulary, token_bytes

from .tokenizers import byte_level, load


def built(model: models.Model, special: dict[str, str] | None = None, **parts) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(special or {}))


def numbered(*pieces: str) -> dict[str, int]:
    return {piece: k for k, piece in enumerate(pieces)}


BYTE_LEVEL = built(
    models.BPE(numbered("<|e|>", "Ġthe", "the", "ing", "é", "Ã©", "Ċ", "Ġ", "A", "only"), []),
    {"eos_token": "<|e|>", "bos_token": "<|e|>"},
    pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
    decoder=decoders.ByteLevel(),
)
SENTENCE_PIECE = built(
    models.BPE(
        numbered("<unk>", "<s>", "</s>", "<0x0A>", "<0x41>", "▁the", "the", "▁", "A", "é", "other"),
        [],
        byte_fallback=True,
    ),
    {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"},
    pre_tokenizer=pre_tokenizers.Metaspace(),
)
WORD_PIECE = built(
    models.WordPiece(numbered("[UNK]", "[SEP]", "ing", "##ing", "the", "A"), unk_token="[UNK]"),
    {"unk_token": "[UNK]", "sep_token": "[SEP]"},
    decoder=decoders.WordPiece(),
)


def named(teacher: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast, **options) -> dict[str, str]:
    shared = shared_vocabulary(teacher, student, **options)
    names = [
        tokenizer.convert_ids_to_tokens(ids.tolist())
        for tokenizer, ids in ((student, shared.student_ids), (teacher, shared.teacher_ids))
    ]
    return dict(zip(*names, strict=True))


def test_entries_are_reduced_to_bytes_by_the_rules_of_their_family():
    assert token_bytes(BYTE_LEVEL) == [
        *(None, b" the", b"the", b"ing", b"\xe9", "é".encode(), b"\n", b" ", b"A", b"only"),
    ]
    assert token_bytes(SENTENCE_PIECE) == [
        *(None, None, None, b"\n", b"A", b" the", b"the", b" ", b"A", "é".encode(), b"other"),
    ]
    assert token_bytes(WORD_PIECE) == [None, None, b"ing", b"ing", b"the", b"A"]


def test_golden_pairs_between_families():
    assert named(BYTE_LEVEL, SENTENCE_PIECE) == {
        "</s>": "<|e|>",  # by role; <s> finds <|e|> taken
        "<0x0A>": "Ċ",
        "▁the": "Ġthe",
        "the": "the",
        "▁": "Ġ",
        "A": "A",  # the entry, not its <0x41> twin
        "é": "Ã©",
    }
    assert named(BYTE_LEVEL, WORD_PIECE) == {"##ing": "ing", "the": "the", "A": "A"}
    assert named(WORD_PIECE, BYTE_LEVEL) == {"ing": "##ing", "the": "the", "A": "A"}


def test_special_tokens_never_pair_by_their_text():
    marked = byte_level()
    marked.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    other = byte_level()
    other.add_tokens(["<|im_start|>"])  # here it is text
    shared = shared_vocabulary(marked, other)
    assert marked.convert_tokens_to_ids("<|im_start|>") not in shared.teacher_ids
    assert (marked.eos_token_id, other.eos_token_id) in zip(shared.teacher_ids, shared.student_ids, strict=True)


def test_an_added_token_stands_for_its_own_text():
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("  é", normalized=False)])
    assert token_bytes(tokenizer)[-1] == "  é".encode()


@pytest.mark.parametrize("name", ["byte-level", "unigram", "word-piece", "byte-fallback", "mistral"])
def test_the_same_tokenizer_twice_pairs_every_token_that_stands_for_text_with_itself(name):
    tokenizer = load(name)
    if tokenizer is None:
        pytest.skip(f"the package that ships {name} is not installed")
    shared = shared_vocabulary(tokenizer, tokenizer)
    assert np.array_equal(shared.teacher_ids, shared.student_ids)
    text = {k for k, found in enumerate(token_bytes(tokenizer)) if found is not None}
    roles = set(tokenizer.all_special_ids)
    assert set(shared.student_ids.tolist()) == text | roles


SMALL = itertools.permutations(["byte-level", "unigram", "word-piece", "byte-fallback"], 2)


@pytest.mark.parametrize(
    ("teacher", "student"), [*SMALL, ("mistral", "byte-level"), ("unigram", "mistral"), ("mistral", "qwen")]
)
def test_pairs_are_one_to_one_and_stand_for_the_same_bytes(teacher, student):
    first, second = load(teacher), load(student)
    if first is None or second is None:
        pytest.skip("a package that ships one of them is not installed")
    shared = shared_vocabulary(first, second)
    assert len(set(shared.teacher_ids.tolist())) == len(set(shared.student_ids.tolist())) == len(shared) == shared.exact
    assert (np.diff(shared.student_ids) > 0).all()
    left, right = token_bytes(first), token_bytes(second)
    assert shared.teacher_size == len(left)
    assert shared.student_size == len(right)
    for t, s in zip(shared.teacher_ids.tolist(), shared.student_ids.tolist(), strict=True):
        assert left[t] == right[s]
        assert left[t] is not None or (t in first.all_special_ids and s in second.all_special_ids)


@pytest.mark.parametrize(
    ("teacher", "student", "by_bytes", "by_strings"),
    [("mistral", "qwen", 29_235, 10_566), ("smollm2", "mistral", 21_757, 8_440)],
)
def test_golden_sizes_beat_raw_string_matching(teacher, student, by_bytes, by_strings):
    first, second = load(teacher), load(student)
    if first is None or second is None:
        pytest.skip("a package that ships one of them is not installed")
    assert len(set(first.get_vocab()) & set(second.get_vocab())) == by_strings
    assert len(shared_vocabulary(first, second)) == by_bytes


def test_first_tokens_extend_the_exact_pairs_without_changing_them():
    teacher, student = load("byte-fallback"), byte_level()
    exact, wide = shared_vocabulary(teacher, student), shared_vocabulary(teacher, student, first_tokens=True)
    assert np.array_equal(wide.student_ids[: wide.exact], exact.student_ids)
    assert np.array_equal(wide.teacher_ids[: wide.exact], exact.teacher_ids)
    assert len(wide) > len(exact)
    assert len(set(wide.student_ids.tolist())) == len(wide)
    left, right = token_bytes(teacher), token_bytes(student)
    for t, s in zip(wide.teacher_ids[wide.exact :].tolist(), wide.student_ids[wide.exact :].tolist(), strict=True):
        assert right[s].startswith(left[t])


def test_first_tokens_follow_the_teachers_own_tokenization():
    teacher = built(
        models.BPE(numbered("a", "b", "c", "ab", "bc"), [("b", "c"), ("a", "b")]),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    student = built(models.BPE(numbered("abc"), []), pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert named(teacher, student, first_tokens=True) == {"abc": "a"}  # a + bc, though ab is a longer prefix
    assert len(shared_vocabulary(teacher, student)) == 0
