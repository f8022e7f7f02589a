from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from sacrebleu.metrics import CHRF

from sra_core.compare import answer_scores, count_answers, rouge_scores, split_words


def f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall)


def test_the_packages_documented_example():
    """README of rouge-score: rouge1 precision 6/8 recall 6/9, rougeL precision 5/8 recall 5/9, stemmer on."""
    scores = rouge_scores(["The quick brown fox jumps over the lazy dog"], ["The quick brown dog jumps on the log."])
    assert scores["rouge1"][0] == pytest.approx(f1(6 / 8, 6 / 9))
    assert scores["rougeL"][0] == pytest.approx(f1(5 / 8, 5 / 9))


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [  # worked out by hand; the first four are the cases of the package's own tests
        ("testing one two", "testing", {"rouge1": f1(1, 1 / 3), "rouge2": 0, "rougeL": f1(1, 1 / 3)}),
        ("testing one two", "testing one", {"rouge1": f1(1, 2 / 3), "rouge2": f1(1, 1 / 2), "rougeL": f1(1, 2 / 3)}),
        ("", "testing one two", {"rouge1": 0, "rouge2": 0, "rougeL": 0}),
        ("testing one two", "", {"rouge1": 0, "rouge2": 0, "rougeL": 0}),
        ("friends had meetings", "friend had meeting", {"rouge1": 1, "rouge2": 1, "rougeL": 1}),
        ("a b c d e f", "d e f a b c", {"rouge1": 1, "rouge2": f1(4 / 5, 4 / 5), "rougeL": f1(1 / 2, 1 / 2)}),
    ],
)  # fmt: skip
def test_worked_examples(reference, answer, expected):
    scores = rouge_scores([reference], [answer])
    for name, value in expected.items():
        assert scores[name][0] == pytest.approx(value), name


def test_empty_answers_stay_in_the_average():
    scores = rouge_scores(["one two", "one two"], ["one two", "  "])
    assert scores["rougeL"].tolist() == [1.0, 0.0]
    assert np.mean(scores["rougeL"]) == 0.5


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="zip"):
        rouge_scores(["one"], [])


def test_what_pulls_an_average_down_is_counted():
    counts = count_answers(
        ["yes", "\N{ROCKET}", "no", ["...", "x"]], ["", "東京", " \n", "long"], ["stop", "length", "stop", "length"]
    )
    assert (counts.answers, counts.empty, counts.unfinished, counts.unscorable) == (4, 2, 2, 1)


SIGNS = "\u2019\u2018\u201c\u201d\u2013\u2014\u2026\u00a0\u2022\N{ROCKET}"
WORDS = (
    "the",
    "cats",
    "cat",
    "running",
    "run",
    "Runs",
    "don't",
    "it's",
    "e.g.",
    "U.S.",
    "3.14",
    "snake_case",
    "fairly",
)
SENTENCE = st.text(st.characters(max_codepoint=127)) | st.lists(st.sampled_from([*WORDS, *SIGNS])).map(" ".join)


@given(reference=SENTENCE, answer=SENTENCE)
@settings(max_examples=300, deadline=None)
def test_english_is_scored_as_rouge_score_scores_it_to_the_last_digit(reference, answer):
    expected = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(reference, answer)
    for name, values in rouge_scores([reference], [answer]).items():
        if reference.isascii() or split_words(reference):
            assert values[0] == expected[name].fmeasure
        else:
            assert np.isnan(values[0])


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ("好的，明白了。", "好的，明白了。", "不行"),
        ("Tôi bán bàn.", "tôi bán bàn", "Anh mua ghế."),
        ("Tôi bán bàn.", "To\u0302i ba\u0301n ba\u0300n.", "Anh mua ghế"),  # the same, its accents apart
        ("東京へ行きます", "東京へ行きます。", "ラーメンだ"),
        ("ภาษาไทย", "ภาษาไทย", "ครู"),
        ("ភាសាខ្មែរ", "ភាសាខ្មែរ", "ទឹក"),
        ("ພາສາລາວ", "ພາສາລາວ", "ນ້ຳ"),
        ("हिन्दी भाषा", "हिन्दी भाषा", "नमक"),
        ("Привет, мир", "Привет, мир!", "Да"),
        ("مرحبا بالعالم", "مرحبا بالعالم", "نعم"),
        ("한국어 문장", "한국어 문장", "아니요"),
    ],
)
def test_every_language_has_a_whole_scale(reference, right, wrong):
    found = answer_scores([reference] * 2, [right, wrong])
    for name in ("rouge1", "rougeL"):
        assert found[name].tolist() == [1.0, 0.0], name
    assert found["chrf"][0] > 0.6 > 0.2 > found["chrf"][1]


def test_words_of_scripts_without_spaces_are_their_characters():
    assert split_words("iPhone手机 ภา हिन्दी ラー x_1") == [
        "iPhone",
        "手",
        "机",
        "ภ",
        "า",
        "हिन्दी",
        "ラ",
        "ー",
        "x",
        "1",
    ]


def test_a_reference_without_words_has_no_rouge_and_no_zero():
    found = answer_scores(["\N{ROCKET}", ["...", "to the moon"], "..."], ["\N{ROCKET}", "to the moon", "a"])
    assert np.isnan(found["rougeL"]).tolist() == [True, False, True]
    assert found["rougeL"][1] == 1
    assert found["chrf"].tolist() == [1.0, 1.0, 0.0]


def test_chrf_is_sacrebleus_of_the_best_reference():
    expected = max(CHRF().sentence_score("the cat sat", [text]).score for text in ("a cat sits", "the cat sat down"))
    assert answer_scores([["a cat sits", "the cat sat down"]], ["the cat sat"])["chrf"][0] == expected / 100
