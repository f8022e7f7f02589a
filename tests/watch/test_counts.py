"""What a stage counted, as a person reads it: every count that is not 0 is told, in words."""

from __future__ import annotations

import re

import pytest

from sra_core.shards import Manifest
from sra_core.watch import counted


def made(stage: str, **counts: int) -> Manifest:
    return Manifest.model_construct(stage=stage, counts=counts)


def test_prepared_examples_add_up_in_one_sentence() -> None:
    counts = {"in": 2556, "left_out_by_corpus_max": 1872, "kept_train": 600, "truncated": 36, "kept_validation": 32}
    counts |= {"prompt_cut": 0, "kept_test": 48, "dropped_empty_response": 3, "dropped_too_long": 1}
    assert counted(made("prepare", **counts)) == (
        "kept 600 training, 32 validation, 48 test examples of 2,556; dropped 4 (3 empty_response, 1 too_long); "
        "1,872 left out by corpus.max_train, max_validation or max_test; 36 cut to alignment.max_length"
    )


def test_nothing_kept_is_said() -> None:
    assert counted(made("prepare", **{"in": 2, "dropped_no_span": 2})) == "kept no examples of 2; dropped 2 (2 no_span)"


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ({"examples": 600, "spans": 29475, "shared_vocabulary": 3299, "states": 0},
         "600 examples; 29,475 spans; 3,299 tokens in the shared vocabulary"),
        ({"steps": 130, "tokens": 90751, "skipped": 2}, "130 steps; 90,751 tokens; 2 steps skipped"),
        ({"leaked_exact_response": 1, "excluded": 1, "examples": 47, "teacher_unfinished_answers": 16},
         "1 with a response that the training data holds; 1 left out of the scores; 47 examples; "
         "16 answers of the teacher cut at the token limit"),
        ({"vicuna/examples": 80, "vicuna/without_likelihood": 2, "initial_empty_answers": 3,
          "teacher_empty_answers": 1},
         "80 examples of vicuna; 2 without a likelihood of vicuna; 3 answers of the initial student empty; "
         "1 answer of the teacher empty"),
        ({"vicuna/dropped_too_long": 4}, "4 dropped too long of vicuna"),
    ],
)  # fmt: skip
def test_other_stages_tell_every_count_in_words(counts: dict[str, int], line: str) -> None:
    assert counted(made("evaluate", **counts)) == line
    numbers = sorted(int(each.replace(",", "")) for each in re.findall(r"\d[\d,]*", line))
    assert numbers == sorted(count for count in counts.values() if count)
