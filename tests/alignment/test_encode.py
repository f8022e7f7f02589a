"""PairEncoder: shared content only, limits kept on both sides at common cuts, nothing lost in silence."""

from __future__ import annotations

import pickle
import unicodedata
from itertools import product

import numpy as np
import pytest
from tokenizers import processors

from sra_core.alignment import AlignedExample, PairEncoder, align, token_bytes
from sra_core.alignment.positions import at_characters
from sra_core.corpus import Example, Rejected, Turn
from sra_core.errors import TokenizerError

from .test_real_tokenizers import EXPECTED, NAMES, fold, tables, tokenizer
from .texts import SHORT, fuzzed
from .tokenizers import byte_level, load

PROMPT = "Below is an instruction.\n\n### Instruction:\n{instruction}\n\n{context_block}### Response:\n"
CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
EXAMPLES = [
    *(Example(name, "Say something in " + name, text, source="short") for name, text in SHORT.items() if text.strip()),
    *(Example(f"fuzz-{seed}", fuzzed(seed + 50), "x" + fuzzed(seed) + "x", fuzzed(seed + 90)) for seed in range(4)),
]


def encoder(teacher, student, max_length: int = 4096, max_prompt: int = 2048, **options) -> PairEncoder:
    """An encoder for two tokenizers or names of tokenizers."""
    loaded = [tokenizer(each) if isinstance(each, str) else each for each in (teacher, student)]
    defaults = {"teacher_template": "plain", "student_template": "plain", "prompt": PROMPT}
    return PairEncoder(*loaded, max_length=max_length, max_prompt=max_prompt, **(defaults | options))


def sides(example: AlignedExample):
    yield example.teacher_ids, example.spans.teacher, example.teacher_response
    yield example.student_ids, example.spans.student, example.student_response


def assert_consistent(example: AlignedExample, names: tuple[str, str]) -> None:
    chars = example.spans.chars
    assert chars[0, 0] >= 0
    assert chars[-1, 1] <= len(example.response.encode())
    assert (chars[1:, 0] == chars[:-1, 1]).all()
    for (ids, ranges, response), name in zip(sides(example), names, strict=True):
        assert ids.dtype == np.int32
        assert response <= ranges[0, 0]
        assert (ranges[:, 0] < ranges[:, 1]).all()
        assert (ranges[1:, 0] >= ranges[:-1, 1]).all()
        assert ranges[-1, 1] <= len(ids) - (0 if example.truncated else 1)
        assert_stands_for(name, ids, ranges, example)


def assert_stands_for(name: str, ids: np.ndarray, ranges: np.ndarray, example: AlignedExample) -> None:
    """All spans together stand for the response between the first and the last cut."""
    inside = ids[ranges[0, 0] : ranges[-1, 1]].tolist()
    if tokenizer(name).unk_token_id in inside:
        return
    text = b"".join(tables(name)[k] or b"" for k in inside).decode("utf-8")
    first, last = int(example.spans.chars[0, 0]), int(example.spans.chars[-1, 1])
    wanted = EXPECTED[name](example.response.encode()[first:last].decode())
    assert (fold(text) if EXPECTED[name] is fold else text) == wanted


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        pytest.param(one, other, marks=pytest.mark.slow if NAMES.index(one) > NAMES.index(other) else ())
        for one, other in product(NAMES, repeat=2)
    ],
)
def test_truncation_is_synchronised_for_every_pair(teacher, student):
    whole = encoder(teacher, student)(EXAMPLES)
    limit = 60
    cut = encoder(teacher, student, max_length=limit, max_prompt=40)(EXAMPLES)
    truncated = 0
    for full, short in zip(whole, cut, strict=True):
        if isinstance(full, Rejected) or isinstance(short, Rejected):
            continue
        assert_consistent(full, (teacher, student))
        assert_consistent(short, (teacher, student))
        assert len(short.teacher_ids) <= limit
        assert len(short.student_ids) <= limit
        assert max(short.teacher_response, short.student_response) <= 40
        assert full.response.startswith(short.response)
        assert short.spans.chars.tolist() == full.spans.chars[: len(short.spans)].tolist()
        if short.truncated:
            truncated += 1
            assert len(short.response.encode()) == short.spans.chars[-1, 1]
            assert len(short.teacher_ids) == short.spans.teacher[-1, 1]
            assert len(short.student_ids) == short.spans.student[-1, 1]
            between = at_characters(full.response.encode(), full.spans.chars[:, 1])
            following = next((k for k in range(len(short.spans), len(full.spans)) if between[k]), None)
            if following is not None:  # on to the next cut between characters would not have fitted
                grown = [
                    len(ids) + spans[following, 1] - spans[len(short.spans), 0]
                    for ids, spans in ((short.teacher_ids, full.spans.teacher), (short.student_ids, full.spans.student))
                ]
                assert max(grown) > limit
        else:
            assert short.response == full.response
    assert truncated, "the limit must have cut some response"


@pytest.mark.parametrize("student", NAMES)
@pytest.mark.parametrize("teacher", ["unigram", "byte-level", "word-piece"])
def test_a_long_response_may_lose_its_start_and_keep_its_end(teacher, student):
    whole = encoder(teacher, student)(EXAMPLES)
    limit = 60
    cut = encoder(teacher, student, max_length=limit, max_prompt=40, truncate="start")(EXAMPLES)
    truncated = 0
    for full, short in zip(whole, cut, strict=True):
        if isinstance(full, Rejected) or isinstance(short, Rejected):
            continue
        assert short.ended
        assert max(len(short.teacher_ids), len(short.student_ids)) <= limit
        assert full.response.endswith(short.response)
        for long, few in ((full.teacher_ids, short.teacher_ids), (full.student_ids, short.student_ids)):
            assert long[-1] == few[-1]
        if not short.truncated:
            assert short.response == full.response
            continue
        truncated += 1
        text = full.response.encode()
        lost = len(text) - len(short.response.encode())
        gone = len(full.spans) - len(short.spans)
        earlier = np.flatnonzero(at_characters(text, full.spans.chars[:gone, 0]))  # cuts between characters
        assert short.spans.chars[0, 0] == 0, "the cut is a common one"
        assert (short.spans.chars + lost).tolist() == full.spans.chars[-len(short.spans) :].tolist()
        grown = []
        for (ids, spans, start), (long, all_spans, first) in zip(sides(short), sides(full), strict=True):
            kept = len(ids) - start
            assert ids[start:].tolist() == long[-kept:].tolist(), "the tokens that the whole text has there"
            assert spans[0, 0] == start
            assert (spans - len(ids)).tolist() == (all_spans[-len(spans) :] - len(long)).tolist()
            if len(earlier):
                grown.append(len(ids) + all_spans[gone, 0] - max(all_spans[earlier[-1], 0], first))
        assert not grown or max(grown) > limit, "from the cut before on it would not have fitted"
    assert truncated, "the limit must have cut some response"


def test_long_responses_may_be_dropped_by_name():
    make = encoder("unigram", "byte-level", max_length=40, prompt="{instruction}\n", truncate="drop")
    long, short = make([Example("a", "Say it", "the quick brown fox " * 9), Example("b", "Say it", "the fox")])
    assert (long.reason, short.truncated) == ("too_long", False)
    assert "alignment.max_length is 40" in long.detail


ENDS = {"unigram": "</s>", "byte-fallback": "</s>", "word-piece": "[SEP]", "byte-level": "<|end|>"}


@pytest.mark.parametrize(("teacher", "student"), [("unigram", "byte-level"), ("word-piece", "byte-fallback")])
def test_the_end_of_text_closes_both_sides_once_and_lies_in_no_span(teacher, student):
    (example,) = encoder(teacher, student)([Example("a", "Say it", "hello world, the quick")])
    ends = [load(name).convert_tokens_to_ids(ENDS[name]) for name in (teacher, student)]
    for (ids, ranges, _), end in zip(sides(example), ends, strict=True):
        assert ids[-1] == end
        assert (ids == end).sum() == 1, "word-piece's own [SEP] must not double it"
        assert ranges[-1, 1] == len(ids) - 1
    assert not example.truncated


def test_begin_of_text_is_added_for_plain_prompts_and_survives_a_prompt_cut():
    begins = byte_level()
    begins.add_special_tokens({"bos_token": "<|begin|>"})
    begin = begins.bos_token_id
    begins.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    make = encoder(begins, byte_level(), max_prompt=20, prompt="{instruction}")
    (example,) = make([Example("a", "the quick brown fox jumps over the lazy dog again and again", "hello")])
    assert example.teacher_ids[0] == begin
    assert begin not in example.student_ids
    assert example.teacher_response <= 20
    assert example.prompt_cut > 0


def test_long_prompts_are_cut_at_a_common_cut_where_they_are_the_same_text():
    instruction = " ".join(f"word{k} naïve 東京" for k in range(40))
    make = encoder("unigram", "byte-level", max_prompt=50, prompt="{instruction}\n")
    (example,) = make([Example("a", instruction, "hello world")])
    text = f"{instruction}\n"
    assert text.endswith(example.prompt)
    assert 0 < len(example.prompt) < len(text)
    student = load("byte-level")
    kept_ids = example.student_ids[: example.student_response].tolist()
    assert b"".join(token_bytes(student)[k] or b"" for k in kept_ids).decode() == example.prompt
    teacher_text = load("unigram").decode(example.teacher_ids[: example.teacher_response].tolist())
    assert teacher_text.count("東京") == example.prompt.count("東京") > 0
    whole = encoder("unigram", "byte-level", prompt="{instruction}\n")([Example("a", instruction, "hello world")])[0]
    lost = [whole.teacher_response - example.teacher_response, whole.student_response - example.student_response]
    assert example.prompt_cut == max(lost)
    assert example.spans.chars.tolist() == whole.spans.chars.tolist()


def test_different_prompts_are_cut_each_on_its_own():
    chat = byte_level()
    chat.chat_template = CHAT
    make = encoder("unigram", chat, student_template="chat", max_prompt=30, prompt="{instruction}\n")
    short, long = make(
        [Example("s", "the quick", "hello world"), Example("l", "the quick brown fox " * 9, "hello world")]
    )
    assert short.prompt_cut == 0
    assert max(long.teacher_response, long.student_response) <= 30
    assert long.prompt.endswith("<|assistant|>\n")
    assert long.spans.chars.tolist() == short.spans.chars.tolist()


def test_each_side_reads_its_own_template_and_only_the_response_is_aligned():
    chat = byte_level()
    chat.chat_template = CHAT
    example = Example(
        "a", "What?", "hello world", system="Be brief.", history=(Turn("user", "Hi"), Turn("assistant", "Ho"))
    )
    (mixed,) = encoder("unigram", chat, student_template="chat")([example])
    (plain,) = encoder("unigram", "byte-level")([example])
    assert mixed.prompt == "<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHo\n<|user|>\nWhat?\n<|assistant|>\n"
    assert "### Response:" in plain.prompt
    assert mixed.spans.chars.tolist() == plain.spans.chars.tolist()
    ids = mixed.student_ids[mixed.student_response : -1].tolist()
    assert chat.decode(ids) == "hello world" == mixed.response


def test_a_token_across_the_start_counts_as_response_and_lies_in_no_span():
    teacher, student = byte_level(), load("byte-fallback")
    (example,) = encoder(teacher, student, prompt="say th")([Example("a", "x", "e fox")])
    straddling = example.student_ids[example.student_response]
    assert student.convert_ids_to_tokens(int(straddling)) == "▁the"
    assert example.spans.student[0, 0] > example.student_response
    assert example.spans.chars.tolist() == [[1, 5]]
    assert example.response == "e fox"


def test_plain_text_has_no_prompt():
    (example,) = encoder("unigram", "byte-level")([Example("a", "", "the quick brown fox")])
    assert example.prompt == ""
    assert example.teacher_response == example.student_response == 0
    assert example.spans.chars[0, 0] == 0


def test_rejections_keep_their_place_and_say_why():
    chat = byte_level()
    chat.chat_template = "{{ messages[0]['content'] }} {{ messages[-1]['content'] | upper }}"
    make = encoder("word-piece", chat, student_template="chat", max_length=24)
    results = make([Example("blank", "x", " \n"), Example("shouted", "x", "hello")])
    assert [(item.id, item.reason) for item in results] == [("blank", "empty_response"), ("shouted", "template")]
    make = encoder("word-piece", "byte-level", max_length=24, prompt="{instruction}")
    results = make(
        [
            Example("ok", "a", "the"),
            Example("dropped", "a", "\u200b\u200b"),
            Example("long", "the fox " * 20 + "\n", "the"),
        ]
    )
    assert [getattr(item, "reason", "kept") for item in results] == ["kept", "no_span", "too_long"]
    assert "leave no room for a span" in results[2].detail


def test_the_map_is_that_of_align_over_the_whole_text():
    for teacher, student in (("unigram", "byte-level"), ("byte-fallback", "word-piece")):
        for example in EXAMPLES:
            (found,) = encoder(teacher, student)([example])
            if isinstance(found, Rejected) or not example.response.isascii():
                continue
            text = found.prompt + example.response
            offsets = []
            for name in (teacher, student):
                encoding = load(name).backend_tokenizer.encode(text)
                shift = len(found.prompt)
                special = encoding.special_tokens_mask
                offsets.append(
                    [
                        (0, 0) if mask else (a - shift, b - shift)
                        for (a, b), mask in zip(encoding.offsets, special, strict=True)
                    ]
                )
            if "\x00" not in text:
                assert found.spans == align(*offsets)


def test_the_result_does_not_depend_on_batching_and_pickles():
    make = encoder("unigram", "byte-level", max_length=64, max_prompt=40)
    together = make(EXAMPLES)
    alone = [make([example])[0] for example in EXAMPLES]
    for one, other in zip(together, alone, strict=True):
        assert type(one) is type(other)
        assert one.id == other.id
        if isinstance(one, AlignedExample):
            assert np.array_equal(one.teacher_ids, other.teacher_ids)
            assert np.array_equal(one.student_ids, other.student_ids)
            assert one.spans == other.spans == pickle.loads(pickle.dumps(one)).spans
    assert make([]) == []


def test_truncation_and_padding_set_in_a_tokenizer_do_not_apply():
    preset = byte_level()
    preset.backend_tokenizer.enable_truncation(4)
    preset.backend_tokenizer.enable_padding(length=512)
    (example,) = encoder("unigram", preset)([Example("a", "the quick", "hello world")])
    assert example.spans.chars[-1, 1] == len("hello world")
    assert len(example.student_ids) < 200


def test_a_tokenizer_without_an_end_of_text_is_refused():
    endless = byte_level()
    endless.eos_token = None
    with pytest.raises(TokenizerError, match=r"byte-level has no end-of-text token\.\n  -> Set eos_token"):
        encoder("unigram", endless)


def test_decomposed_and_composed_spellings_cover_the_whole_response():
    text = unicodedata.normalize("NFD", "Người Việt ở Huế")
    for name in ("unigram", "word-piece"):
        (example,) = encoder(name, "byte-level")([Example("a", "x", text)])
        assert example.spans.chars[-1, 1] == len(text.encode())
