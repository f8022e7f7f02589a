from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_core.evaluate import find_leaks
from sra_core.evaluate.leaks import words

TEMPLATE = "Below is an instruction that describes a task.\n\n### Instruction:\n{}\n\n### Response:\n"


@dataclass
class Text:
    id: str
    prompt: str
    response: str


def sentence(seed: int, length: int = 40) -> str:
    random = np.random.default_rng(seed)
    return " ".join(f"w{number}" for number in random.integers(0, 5000, length))


def text(name: str, seed: int, length: int = 40) -> Text:
    return Text(name, TEMPLATE.format(sentence(seed, length)), sentence(seed + 100_000, length))


@pytest.fixture
def evaluation():
    return [text(f"e{index}", index) for index in range(30)]


@pytest.fixture
def training():
    return [text(f"t{index}", 1000 + index) for index in range(60)]


def test_unrelated_sets_do_not_leak(evaluation, training):
    report = find_leaks(evaluation, training)
    assert report.leaks == ()
    assert (report.evaluated, report.trained) == (30, 60)


def test_a_copied_prompt_is_exact_whatever_case_and_spacing(evaluation, training):
    training[7].prompt = TEMPLATE.format(sentence(3).upper().replace(" ", ",  "))
    (leak,) = find_leaks(evaluation, training).leaks
    assert (leak.id, leak.training, leak.kind, leak.part, leak.overlap) == ("e3", "t7", "exact", "prompt", 1.0)


def test_a_copied_response_is_exact_unless_it_is_short(evaluation, training):
    training[7].response = evaluation[3].response
    evaluation[4].response = training[8].response = "yes, in 1984"
    (leak,) = find_leaks(evaluation, training).leaks
    assert (leak.id, leak.kind, leak.part) == ("e3", "exact", "response")


@pytest.mark.parametrize(("shared", "found"), [(30, True), (20, False)])
def test_near_copies_are_measured_by_their_ngrams(evaluation, training, shared, found):
    """40 words hold 28 13-grams; a copy of the first 30 words holds 18 of them, of the first 20 words 8."""
    copied = sentence(3).split()[:shared] + [f"other{index}" for index in range(10)]
    training[7].prompt = TEMPLATE.format(" ".join(copied))
    leaks = find_leaks(evaluation, training).leaks
    assert [leak.id for leak in leaks] == (["e3"] if found else [])
    assert not found or leaks[0].overlap == pytest.approx(18 / 28)
    weaker = find_leaks(evaluation, training, overlap=8 / 28)
    assert weaker.ids == {"e3"}


def test_pieces_of_several_training_texts_do_not_add_up(evaluation, training):
    copied = sentence(3).split()
    for index in range(4):
        training[index].prompt = TEMPLATE.format(" ".join(copied[index * 7 : index * 7 + 17]))
    assert find_leaks(evaluation, training).leaks == ()


def test_the_template_is_no_evidence():
    long_template = "please read the following task with care and answer it in one short sentence of your own\n{}"
    make = lambda name, seed: Text(name, long_template.format(sentence(seed, 5)), sentence(seed + 50, 20))  # noqa: E731
    report = find_leaks([make(f"e{i}", i) for i in range(8)], [make(f"t{i}", 500 + i) for i in range(8)])
    assert report.leaks == ()
    again = find_leaks([make(f"e{i}", i) for i in range(8)], [make("t", 2)])
    assert again.ids == {"e2"}


def test_a_stock_question_is_no_evidence(evaluation, training):
    for row in [*evaluation[:12], training[0]]:
        row.prompt = TEMPLATE.format("Tell me something that I do not know yet")
    assert find_leaks(evaluation, training).leaks == ()


def test_each_of_several_references_is_looked_for(evaluation, training):
    """References of one example say nearly the same: what they share is evidence, unlike what examples share."""
    further = {"e3": [f"{evaluation[3].response} {sentence(500 + k, 20)}" for k in range(12)], "e4": [sentence(7)]}
    training[7].response = further["e3"][5]
    training[8].response = sentence(7)
    assert find_leaks(evaluation, training).ids == {"e3"}, "the first reference alone is near enough"
    leaks = find_leaks(evaluation, training, references=further).leaks
    assert [(leak.id, leak.training, leak.kind) for leak in leaks] == [("e3", "t7", "exact"), ("e4", "t8", "exact")]


def test_scripts_without_spaces(training):
    sentence_ja = "東京は日本の首都であり世界で最も人口の多い都市のひとつです"
    evaluation = [
        Text("ja", sentence_ja, "x"),
        Text("other", "北海道の冬はとても寒くて雪がたくさん降ることで知られています", "x"),
    ]
    training[0].prompt = sentence_ja + "ので訪れる人が多い"
    assert find_leaks(evaluation, training).ids == {"ja"}


def test_counts_and_table(evaluation, training):
    training[0].prompt = evaluation[1].prompt
    training[1].response = " ".join(evaluation[2].response.split()[:35])
    report = find_leaks(evaluation, training)
    assert report.counts() == {"exact_prompt": 1, "exact_response": 0, "near_prompt": 0, "near_response": 1}
    assert [(row["id"], row["training"]) for row in report.rows()] == [("e1", "t0"), ("e2", "t1")]


def plain(evaluation, training, ngram, overlap):
    def grams(value):
        value = value.split()
        return {tuple(value[i : i + ngram]) for i in range(len(value) - ngram + 1)}

    return {
        e.id
        for e in evaluation
        if grams(e.response)
        and any(len(grams(e.response) & grams(t.response)) / len(grams(e.response)) >= overlap for t in training)
    }


@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.5, 0.8]))
@settings(max_examples=40, deadline=None)
def test_near_copies_equal_a_comparison_of_all_pairs(seed, overlap):
    random = np.random.default_rng(seed)
    base = [f"w{seed}x{i}" for i in range(300)]

    def piece(name):
        start = int(random.integers(0, 260))
        return Text(name, f"{name} asks", " ".join(base[start : start + int(random.integers(9, 40))]))

    evaluation, training = [piece(f"e{i}") for i in range(2)], [piece(f"t{i}") for i in range(6)]
    exact = {e.id for e in evaluation if any(e.response == t.response for t in training)}
    assert (
        find_leaks(evaluation, training, ngram=5, overlap=overlap).ids
        == plain(evaluation, training, 5, overlap) | exact
    )


def test_time_is_linear():
    """Every training text shares a long phrase with every evaluation text: all pairs would take minutes."""
    phrase = sentence(1, 30)
    evaluation = [Text(f"e{i}", phrase, phrase + " " + sentence(i, 10)) for i in range(2000)]
    training = [Text(f"t{i}", phrase, phrase + " " + sentence(9000 + i, 10)) for i in range(2000)]
    start = time.perf_counter()
    find_leaks(evaluation, training)
    assert time.perf_counter() - start < 10


def test_words():
    assert words("Ｆｕｌｌ-width, Straße_2 don't") == ["full", "width", "strasse", "2", "don", "t"]
    assert words("हिन्दी 東京") == ["हिन्दी", "東", "京"], "marks belong to their letters"
