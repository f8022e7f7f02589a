from __future__ import annotations

import numpy as np
import pytest

from sra_core.compare import count_answers, rouge_scores


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
        ["yes", "日本", "no", "x"], ["", "東京", " \n", "long"], ["stop", "length", "stop", "length"]
    )
    assert (counts.answers, counts.empty, counts.unfinished, counts.unscorable) == (4, 2, 2, 1)
