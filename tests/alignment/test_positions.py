"""Positions in bytes: against a plain reading of the tokens one by one; what offsets leave out or give to the wrong."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, processors
from transformers import PreTrainedTokenizerFast

from sra_core.alignment import PairEncoder, align, audit, shared_vocabulary, token_bytes
from sra_core.alignment.positions import BytePositions, at_characters
from sra_core.corpus import Example

from .plain import plain_align
from .strategies import tried
from .texts import ALPHABET, SHORT, fuzzed
from .tokenizers import byte_level, load

TEXTS = st.lists(
    st.sampled_from([*ALPHABET, "नमस्ते", "👩‍👩‍👧", "\r\n", "&amp;", "<br>", "<|end|>"]), min_size=1, max_size=12
)


def trimmed(normalizer: normalizers.Normalizer | None = None, **options: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE as RoBERTa has it: offsets without white space."""
    tokenizer = byte_level(trim_offsets=True)
    ends = ("<|end|>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing(ends, ends, trim_offsets=True, **options)
    if normalizer:
        tokenizer.backend_tokenizer.normalizer = normalizer
    return tokenizer


def read(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[list[int], np.ndarray]:
    positions = BytePositions(tokenizer)
    (encoding,) = positions.encode([text])
    return encoding.ids, positions.of(text, text.encode(), encoding, 0)


def plain_positions(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[tuple[int, int]]:
    """The definition: each token begins where the bytes of those before it end."""
    table, found, position = token_bytes(tokenizer), [], 0
    for token in ids:
        piece = table[token]
        size = len(tokenizer.convert_ids_to_tokens(token).encode() if piece is None else piece)
        found.append((position, position + size))
        position += size
    return found


LEFT, RIGHT = byte_level(280), byte_level(700)


@tried(150)
@given(TEXTS.map("".join), st.integers(0, 5))
@example("👩‍👩‍👧 नमस्ते", 0)
def test_two_byte_level_tokenizers_share_every_cut_between_equal_bytes(text: str, start: int):
    data, sides = text.encode(), []
    for tokenizer in (LEFT, RIGHT):
        ids, positions = read(tokenizer, text)
        assert positions.tolist() == [list(pair) for pair in plain_positions(tokenizer, ids)]
        sides.append((ids, positions))
    (left, first), (right, second) = sides
    spans, plain = align(first, second, start), plain_align(first.tolist(), second.tolist(), start)
    assert [spans.teacher.tolist(), spans.student.tolist(), spans.chars.tolist()] == [
        [list(pair) for pair in plain[name]] for name in ("teacher", "student", "chars")
    ]
    common = sorted({0, *first[:, 1].tolist()} & {0, *second[:, 1].tolist()})
    assert spans.chars.tolist() == [list(pair) for pair in pairwise([p for p in common if p >= start])]
    for (a, b), (c, d), (begin, end) in zip(spans.teacher, spans.student, spans.chars, strict=True):
        for tokenizer, inside in ((LEFT, left[a:b]), (RIGHT, right[c:d])):
            pieces = [token_bytes(tokenizer)[k] or b"<|end|>" for k in inside]
            assert b"".join(pieces) == data[begin:end]


@pytest.mark.parametrize("name", ["byte-level", "byte-fallback", "unigram-bytes", "mistral", "tekken", "deepseek"])
def test_offsets_made_finer_come_to_the_running_sum(name):
    tokenizer = load(name)
    if tokenizer is None:
        pytest.skip(f"the package that ships {name} is not installed")
    summed, by_offsets = BytePositions(tokenizer), BytePositions(tokenizer)
    by_offsets._spells = False
    for text in [*SHORT.values(), *(fuzzed(seed) for seed in range(20))]:
        text = text.replace("▁", "")
        encodings = [each.encode([text])[0] for each in (summed, by_offsets)]
        assert encodings[0].ids == encodings[1].ids
        pairs = zip((summed, by_offsets), encodings, strict=True)
        fast, slow = (each.of(text, text.encode(), encoding, 0) for each, encoding in pairs)
        assert fast.tolist() == slow.tolist(), text


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC(), normalizers.Lowercase()])
@pytest.mark.parametrize("prefix", [False, True])
def test_trimmed_offsets_cover_their_white_space_again(normalizer, prefix):
    tokenizer = trimmed(normalizer, add_prefix_space=prefix)
    text = "Def f(x):\n    return x  # e\u0301 東京\n\n  \tEnd "
    ids, positions = read(tokenizer, text)
    assert positions[0, 0] == 0
    assert positions[-1, 1] == len(text.encode())
    assert (positions[:, 0] < positions[:, 1]).all(), "white space has a width"
    assert len(align(positions, positions)) >= len(ids) - 2  # e and its accent are one token under NFC


def test_no_token_of_code_falls_out_of_the_spans_and_the_audit_says_so():
    code = "def f(x):\n        if x:\n\n            return {\n   'a' :   1 }\n"
    limits = {"teacher_template": "plain", "student_template": "plain", "max_length": 400, "max_prompt": 64}
    pair = trimmed(), byte_level()
    encoder = PairEncoder(*pair, prompt="{instruction}\n", **limits)
    (found,) = encoder([Example("a", "Code it.", code)])
    report = audit([found], shared_vocabulary(*pair), *pair)
    assert found.teacher_ids[0] == pair[0].eos_token_id, "RoBERTa's opening token"
    assert (report.teacher_outside, report.student_outside) == (0, 0)
    assert report.overall.teacher.tokens == len(found.teacher_ids) - found.teacher_response - 1
    word = load("word-piece"), pair[1]
    (left,) = PairEncoder(*word, prompt="{instruction}\n", **limits)([Example("a", "Say it.", "hello  ")])
    report = audit([left], shared_vocabulary(*word), *word)
    spans = left.spans.student
    assert report.student_outside == len(left.student_ids) - left.student_response - 1 - np.diff(spans).sum() > 0
    assert report.metrics()["alignment/student_tokens_outside"] == report.student_outside


@pytest.mark.parametrize(
    ("rule", "text", "replaced"),
    [
        (("&amp;", "&"), "ab &amp;b &amp;&amp; x", ["&amp;"]),
        (("<br>", "\n"), "one<br>two <br><br> x", ["<br>"]),
        (("\r\n", "\n"), "one\r\ntwo\r\n\r\n x", ["\r\n"]),
        (("<p>", "\n\n"), "one<p>two <p> x", ["<p>"]),
        (("...", "…"), "so... on ...", ["..."]),
        (("&nbsp;", " "), "a&nbsp;b &nbsp; c", ["&nbsp;"]),
        ((Regex(r"\[[0-9]+\]"), "#"), "a[12]b[3] c[444]", ["[12]", "[3]", "[444]"]),
    ],
    ids=["entity", "br", "crlf", "paragraph", "dots", "nbsp", "regex"],
)
@pytest.mark.parametrize("first", [None, normalizers.NFC()], ids=["bare", "nfc"])
@pytest.mark.parametrize("trim", [True, False])
def test_what_one_rule_replaced_is_cut_nowhere_and_goes_to_the_token_that_stands_for_it(
    rule, text, replaced, first, trim
):
    tokenizer = trimmed() if trim else byte_level()
    replace = normalizers.Replace(*rule)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([first, replace]) if first else replace
    text = "say " + text
    ids, positions = read(tokenizer, text)
    data, table = text.encode(), token_bytes(tokenizer)
    spans = align(positions, [(k, k + 1) for k in range(len(data))])
    assert spans.chars[0, 0] == 0
    assert spans.chars[-1, 1] == len(data)
    for (begin, end), (a, b) in zip(spans.chars.tolist(), spans.teacher.tolist(), strict=True):
        spelled = b"".join(table[k] or b"" for k in ids[a:b]).decode()
        assert spelled == replace.normalize_str(data[begin:end].decode()), "a span stands for its own text"
    cuts = set(spans.chars.ravel().tolist())
    for part in replaced:
        place = data.find(part.encode())
        assert not cuts & set(range(place + 1, place + len(part))), part
        assert place in cuts, "the token before has nothing of it"


def test_dropped_and_composed_characters_still_go_to_the_token_before():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace("\u200b", ""), normalizers.Replace("&amp;", "&")]
    )
    text = "cafe\u0301 x\u200by\u200b&amp;"
    _, positions = read(tokenizer, text)
    starts = {len(text[:k].encode()) for k in (0, 1, 2, 3, 5, 8, 10)}
    assert starts <= set(positions[:, 0].tolist())
    assert len(text[:4].encode()) not in positions[:, 0].tolist()


def test_a_text_that_one_side_normalizes_is_cut_inside_its_other_characters():
    composing = byte_level(280)
    composing.backend_tokenizer.normalizer = normalizers.NFC()
    text = "e\u0301 दुनिया 👍"
    assert unicodedata.normalize("NFC", text) != text
    _, positions = read(composing, text)
    thumb = positions[-4:] - positions[-4, 0]
    assert thumb.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]], "four tokens of a byte each"
    (letter,) = np.flatnonzero(positions[:, 1] == 3)[:1]
    assert at_characters(text.encode(), positions[letter]).all()
    assert len(align(positions, plain_positions(LEFT, LEFT(text).input_ids))) > len(text) - 2


@pytest.mark.parametrize("limit", range(16, 40))
def test_a_response_cut_short_ends_with_a_whole_character(limit: int):
    settings = {"teacher_template": "plain", "student_template": "plain", "prompt": "{instruction}"}
    encoder = PairEncoder(LEFT, byte_level(), max_length=limit, max_prompt=12, **settings)
    text = "👍🏽" * 20
    (found,) = encoder([Example("a", "👩‍👩‍👧" * 4 + "a", text)])
    assert found.truncated
    assert text.startswith(found.response)
    assert found.response
    assert found.spans.chars[-1, 1] == len(found.response.encode())
    assert len(found.spans) == len(found.response.encode()), "a span a byte"
    assert limit - 4 < len(found.teacher_ids) <= limit
    assert ("👩‍👩‍👧" * 4 + "a").endswith(found.prompt)
    assert LEFT.decode(found.teacher_ids[: found.teacher_response].tolist()) == found.prompt


@pytest.mark.parametrize("name", ["byte-fallback", "unigram-bytes", "mistral"])
def test_the_space_before_a_text_stands_for_nothing_of_it(name):
    tokenizer = load(name)
    if tokenizer is None:
        pytest.skip(f"the package that ships {name} is not installed")
    for text in ("東京 the", " 東京", "  the", "the</s>the</s>東", "</s> the", "   "):
        ids, positions = read(tokenizer, text)
        data, spelled = text.encode(), [(token_bytes(tokenizer)[k] or b"</s>") for k in ids]
        assert b"".join(data[a:b] for a, b in positions.tolist()) == data
        for piece, (a, b) in zip(spelled, positions.tolist(), strict=True):
            assert piece in (data[a:b], b" " + data[a:b])
