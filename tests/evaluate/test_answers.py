from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sra_core.compare import ANSWER_SCHEMA, read_answers, rouge_scores
from sra_core.evaluate import AnswerSet, AnswerSettings, generate
from sra_core.evaluate.tables import is_made_from, write_table
from tests.models.rows import build_model, build_rows

from .test_generation import Words

SETTINGS = AnswerSettings(temperature=1.0, seeds=(10, 20), max_new_tokens=6)


class Loader:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return build_model("llama"), Words()


@pytest.fixture
def answers(tmp_path):
    return AnswerSet(tmp_path, "student", "student", SETTINGS, model="digest", shard_size=5)


def test_one_file_a_seed_and_shard_with_every_column(answers, rows):
    references = [f"t{index} t{index + 1}" for index in range(len(rows))]
    table = read_answers(answers.make(Loader(), rows, [[text] for text in references]))
    assert table.schema == ANSWER_SCHEMA
    assert len(list(answers.folder.iterdir())) == 6
    assert table["id"].to_pylist() == [row.id for row in rows] * 2
    assert table["seed"].to_pylist() == [10] * 12 + [20] * 12
    expected = generate(*Loader()(), rows, seed=20, sampling=SETTINGS.sampling, max_new_tokens=6)
    assert table["answer"].to_pylist()[12:] == [answer.text for answer in expected]
    assert table["tokens"].to_pylist()[12:] == [list(answer.tokens) for answer in expected]
    assert table["finish_reason"].to_pylist()[12:] == [answer.finish_reason for answer in expected]
    assert table["reference"].to_pylist()[:12] == references
    scores = rouge_scores(references, table["answer"].to_pylist()[:12])
    assert table["rougeL"].to_pylist()[:12] == scores["rougeL"].tolist()


def test_the_best_of_several_references_counts(answers, rows):
    alone = read_answers(answers.make(Loader(), rows))
    texts = alone["answer"].to_pylist()[:12]
    table = read_answers(answers.make(Loader(), rows, [["nothing like it", text] for text in texts]))
    assert table["reference"].to_pylist()[:12] == ["nothing like it"] * 12
    assert table["other_references"].to_pylist()[:12] == [[text] for text in texts]
    assert table["rougeL"].to_pylist()[:12] == [1.0 if text else 0.0 for text in texts]


def test_a_restart_does_only_what_is_missing(answers, rows):
    loader = Loader()
    paths = answers.make(loader, rows)
    whole = read_answers(paths)
    assert answers.make(loader, rows) == paths
    assert loader.calls == 1
    paths[1].unlink()
    paths[4].write_bytes(paths[4].read_bytes()[:200])
    kept = {path: path.stat().st_mtime_ns for path in paths if path not in (paths[1], paths[4])}
    seen = []
    again = answers.make(loader, rows, progress=lambda *p: seen.append(p))
    assert loader.calls == 2
    assert read_answers(again).equals(whole)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert seen[-1] == (24, 24)
    assert seen[0] == (19, 24)


def test_a_byte_that_changed_on_disk_is_found_and_its_file_made_again(answers, rows):
    paths = answers.make(Loader(), rows)
    whole = [path.read_bytes() for path in paths]
    text = read_answers(paths[:1])["answer"].to_pylist()[0].encode()
    assert whole[0].count(text) >= 1
    paths[0].write_bytes(whole[0].replace(text, text[::-1]))
    loader = Loader()
    answers.make(loader, rows)
    assert loader.calls == 1
    assert [path.read_bytes() for path in paths] == whole


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data[:20] + bytes(8) + data[28:]])
def test_a_table_counts_only_while_every_byte_of_it_does(tmp_path, damage):
    path = tmp_path / "likelihood-test-student.parquet"
    assert not is_made_from(path, "key")
    write_table(path, pa.table({"nats": [1.0, 2.0, 3.0] * 20}), "key")
    assert is_made_from(path, "key")
    assert not is_made_from(path, "other")
    path.write_bytes(damage(path.read_bytes()))
    assert not is_made_from(path, "key")


@pytest.mark.parametrize(
    "change",
    [{"model": "other"}, {"settings": replace(SETTINGS, max_new_tokens=5)}, {"settings": replace(SETTINGS, top_p=0.5)}],
)
def test_other_answers_are_not_reused(answers, rows, change):
    answers.make(Loader(), rows)
    loader = Loader()
    replace(answers, **change).make(loader, rows)
    assert loader.calls == 1


def test_other_prompts_or_references_are_not_reused(answers, rows):
    answers.make(Loader(), rows)
    loader = Loader()
    answers.make(loader, rows, [["other"]] * len(rows))
    answers.make(loader, rows, [["other", "as good"]] * len(rows))
    answers.make(loader, build_rows(12, seed=9))
    assert loader.calls == 3


def test_an_interrupted_run_leaves_whole_files_only(answers, rows):
    class Stop(Exception):
        pass

    def stop(done, total):
        if done > 7:
            raise Stop

    with pytest.raises(Stop):
        answers.make(Loader(), rows, progress=stop)
    left = list(answers.folder.iterdir())
    assert [path.name for path in left] == ["answers-test-student-10-00000.parquet"]
    assert len(pq.read_table(left[0])) == 5
