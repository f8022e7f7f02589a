"""What a run ends on: questions without their template, and teacher and student side by side."""

from __future__ import annotations

import pyarrow as pa
import pytest

from sra_core.compare import ANSWER_SCHEMA, Interval
from sra_core.evaluate.stage import _metrics
from sra_core.evaluate.summary import summary

TEMPLATE = "Below is a task.\n\n### Q:\n{}\n\n### A:\n"


def answers(texts: list[str], scores: list[float]) -> pa.Table:
    count = len(texts)
    columns = {
        "id": [f"e{place}" for place in range(count)],
        "prompt": [TEMPLATE.format(f"What is {place}?") for place in range(count)],
        "reference": [f"It is | {place}." for place in range(count)],
        "answer": texts,
        "rougeL": scores,
    }
    return pa.table({name: columns.get(name, [None] * count) for name in ANSWER_SCHEMA.names})


def shown(student: pa.Table, teacher: pa.Table, samples: int = 3) -> list[str]:
    scores = {"student": {"rougeL": {"test": Interval(10.0, 9.0, 11.0, len(student), 1)}}}
    scores["teacher"] = scores["student"]
    return summary("run", scores, {"teacher": teacher, "student": student}, "", samples).splitlines()


def test_questions_lose_their_template_and_answers_stand_side_by_side() -> None:
    texts = ["bad", "good\nanswer", "", "middling"]
    lines = shown(answers(texts, [0.1, 0.9, 0.0, 0.5]), answers(["t0", "t1", "t2", "t3"], [1.0] * 4))
    assert [line for line in lines if line.startswith("###")] == ["### What is 1?", "### What is 3?", "### What is 0?"]
    assert "| It is \\| 1. | t1 | good answer |" in lines
    assert "The student's answer 1 of 4 by ROUGE-L." in lines


@pytest.mark.parametrize(
    ("sets", "own", "names"),
    [
        (["test"], True, ["evaluate/student/rougeL"]),
        (["talks"], False, ["evaluate/talks/student/rougeL"]),
        (
            ["test", "talks", "average"],
            True,
            ["evaluate/student/rougeL", *(f"evaluate/{name}/student/rougeL" for name in ("test", "talks", "average"))],
        ),
    ],
)
def test_every_score_has_a_name_also_without_a_test_split(sets: list[str], own: bool, names: list[str]) -> None:
    scores = {"student": {"rougeL": {name: Interval(10.0, 9.0, 11.0, 5, 1) for name in sets}}}
    assert [name for name, _ in _metrics(scores, sets[0], own)] == names


def test_one_prompt_alone_is_shown_whole_and_nothing_asked_shows_nothing() -> None:
    one = answers([""], [0.0])
    lines = shown(one, one, samples=1)
    assert "### Below is a task. ### Q: What is 0? ### A:" in lines
    assert "| It is \\| 0. | (empty) | (empty) |" in lines
    assert not [line for line in shown(one, one, samples=0) if line.startswith("###")]


def test_what_a_model_answers_is_not_rendered() -> None:
    lines = shown(answers(["![x](http://evil.example/a.png)"], [1.0]), answers(["<img src=x>"], [1.0]), samples=1)
    assert "| It is \\| 0. | \\<img src=x\\> | !\\[x\\](http\\://evil.example/a.png) |" in lines
