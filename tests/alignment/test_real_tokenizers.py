"""Every ordered pair of real and trained tokenizers, on texts of many scripts.

What a span claims is checked against the text: on either side its tokens must stand for exactly the characters between
its cuts, through that tokenizer's own normalization.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest

from sra_core.alignment import SpanMap, align, check_offsets, clean_cuts, token_bytes
from sra_core.alignment.positions import BytePositions, at_characters

from .plain import plain_align
from .texts import LONG, SHORT, fuzzed
from .tokenizers import BUILDERS, load

NAMES = [name for name in BUILDERS if name != "unigram-bytes"]
"""Those of which every pair is tried; the one left out splits as byte-fallback does."""


def fold(text: str) -> str:
    """What is left of a text under every normalizer here: letters without accents and case, no spaces, no controls."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", spaced(text)).lower())
    return "".join(c for c in decomposed if unicodedata.category(c)[0] not in "MZC")


def spaced(text: str) -> str:
    """SentencePiece cannot tell U+2581 from a space."""
    return text.replace("\u2581", " ")


EXPECTED: dict[str, Callable[[str], str]] = {
    "mistral": spaced,
    "tekken": str,
    "deepseek": str,
    "smollm2": str,
    "byte-level": str,
    "byte-fallback": spaced,
    "unigram-bytes": lambda text: spaced(text).replace("<0x41>", "A"),  # it takes a typed <0x41> for its entry
    "qwen": lambda text: unicodedata.normalize("NFC", text),
    "unigram": fold,
    "word-piece": fold,
}


@cache
def tables(name: str) -> list[bytes | None]:
    return token_bytes(tokenizer(name))


@cache
def specials(name: str) -> set[int]:
    return set(tokenizer(name).added_tokens_decoder)


def tokenizer(name: str):
    found = load(name)
    if found is None:
        pytest.skip(f"the package that ships {name} is not installed")
    return found


@cache
def reader(name: str) -> BytePositions:
    return BytePositions(tokenizer(name))


@cache
def encoded(name: str, text: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    positions = reader(name)
    (encoding,) = positions.encode([text])
    offsets = positions.of(text, text.encode(), encoding, 0)
    return tuple(encoding.ids), tuple((a, b) for a, b in offsets.tolist())


def assert_stands_for(name: str, text: str, ranges: np.ndarray, chars: np.ndarray) -> None:
    (ids, _), data = encoded(name, text), text.encode()
    expected, table, unknown, added = EXPECTED[name], tables(name), tokenizer(name).unk_token_id, specials(name)
    for (first, last), (begin, end) in zip(ranges.tolist(), chars.tolist(), strict=True):
        inside = ids[first:last]
        if unknown in inside:
            continue
        spelled = b"".join(table[k] or b"" for k in inside)
        if not at_characters(data, np.array([begin, end])).all():
            assert spelled == data[begin:end], "a cut inside a character is right only to the byte"
            continue
        found = spelled.decode("utf-8")
        wanted = expected(data[begin:end].decode())
        found = fold(found) if expected is fold else found
        opens = first == 0 or ids[first - 1] in added
        before = " " if opens and found == " " + wanted else ""  # SentencePiece starts a text with a space
        assert found == before + wanted, (name, data[begin:end], inside)


def assert_valid(teacher: str, student: str, text: str) -> SpanMap:
    (_, teacher_offsets), (_, student_offsets) = encoded(teacher, text), encoded(student, text)
    spans = align(teacher_offsets or [], student_offsets or [])
    assert_stands_for(teacher, text, spans.teacher, spans.chars)
    assert_stands_for(student, text, spans.student, spans.chars)
    assert (spans.chars[1:, 0] == spans.chars[:-1, 1]).all()
    return spans


@pytest.mark.parametrize("name", NAMES)
def test_offsets_of_every_tokenizer_here_can_be_trusted(name):
    check_offsets(tokenizer(name))


@pytest.mark.parametrize("student", NAMES)
@pytest.mark.parametrize("teacher", NAMES)
def test_spans_stand_for_the_same_text_on_both_sides(teacher, student):
    for text in SHORT.values():
        spans = assert_valid(teacher, student, text)
        (_, a), (_, b) = encoded(teacher, text), encoded(student, text)
        last = min(max((y for _, y in a), default=0), max((y for _, y in b), default=0))
        if len(spans) and last and text[-1:].isalnum():
            assert spans.chars[-1, 1] == last, "the last common cut is the end that both sides reach"
    for seed in range(6):
        assert_valid(teacher, student, fuzzed(seed))


@pytest.mark.parametrize("student", NAMES)
@pytest.mark.parametrize("teacher", NAMES)
def test_equals_the_plain_alignment_on_fuzzed_mixtures(teacher, student):
    for seed in range(100, 103):
        text = fuzzed(seed, 24)
        (_, a), (_, b) = encoded(teacher, text), encoded(student, text)
        spans = align(a, b, 3)
        plain = plain_align(a, b, 3)
        assert spans.teacher.tolist() == [list(pair) for pair in plain["teacher"]]
        assert spans.student.tolist() == [list(pair) for pair in plain["student"]]


BYTE_EXACT: Sequence[str] = ("mistral", "tekken", "deepseek", "smollm2", "byte-level", "byte-fallback", "unigram-bytes")


@pytest.mark.parametrize("name", BYTE_EXACT)
def test_tokenizers_that_keep_every_byte_leave_no_gap(name):
    for text in [*SHORT.values(), *(fuzzed(seed) for seed in range(20))]:
        spans = assert_valid(name, name, text)
        assert spans.chars[0, 0] == 0
        assert spans.chars[-1, 1] == len(text.encode())
        assert len(spans) == len(clean_cuts(encoded(name, text)[1])) - 1


@pytest.mark.parametrize("teacher", ["mistral", "qwen", "word-piece"])
@pytest.mark.parametrize(
    "text",
    [pytest.param(text, id=name, marks=pytest.mark.slow if "200kB" in name else ()) for name, text in LONG.items()],
)
def test_long_lines(teacher, text):
    spans = assert_valid(teacher, "byte-level", text)
    assert len(spans) >= 1
    assert spans.chars[-1, 1] == len(text.encode())


def test_marks_that_a_normal_form_reorders_stay_with_their_letter():
    text = "xe\u0302\u0301\u0323y"  # NFC: the dot below comes first
    spans = assert_valid("qwen", "byte-level", text)
    assert spans.chars.tolist() == [[0, 1], [1, 8], [8, 9]]


def test_decomposed_letters_stay_whole_under_a_composing_normalizer():
    text = unicodedata.normalize("NFD", "Việt Nam có người Huế")
    spans = assert_valid("qwen", "byte-level", text)
    starts = [text.encode()[begin:].decode()[0] for begin in spans.chars[:, 0].tolist()]
    assert not any(unicodedata.combining(character) for character in starts)
    assert spans.chars[-1, 1] == len(text.encode())
