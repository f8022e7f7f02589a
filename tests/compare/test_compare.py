from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sra_core.compare import ModelScores, compare_runs, read_run, read_runs
from sra_core.errors import EvaluationError
from sra_core.evaluate import Agreement, agreement_table
from tests.compare.store import write_run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    good = write_run(store, {"teacher": 0.1, "initial": 0.9, "student": 0.3}, seeds=(10, 20))
    bad = write_run(
        store, {"teacher": 0.1, "initial": 0.9, "student": 0.6}, seeds=(10, 20), learning_rate=1e-3, objective="sft"
    )
    return good, bad


@pytest.fixture(scope="module")
def comparison(folders):
    return compare_runs([read_run(folders[0], "good"), read_run(folders[1], "bad")], resamples=300)


def test_systems_that_are_the_same_are_shown_once(comparison):
    assert comparison.systems == ["teacher", "initial student", "good", "bad"]
    assert comparison.students == ["good", "bad"]
    assert comparison.pair == ("good", "bad")


def test_other_teachers_are_shown_apart(tmp_path):
    runs = [
        read_run(write_run(tmp_path, {"teacher": wrong, "student": 0.5}, learning_rate=wrong), name)
        for name, wrong in (("a", 0.1), ("b", 0.2))
    ]
    assert compare_runs(runs, resamples=50).systems == ["teacher (a)", "teacher (b)", "a", "b"]


def test_scores_are_those_of_the_files(comparison, folders):
    table = pq.read_table(folders[0] / "likelihood-test-student.parquet")
    bits = table["nats"].to_numpy().sum() / math.log(2) / table["bytes"].to_numpy().sum()
    assert comparison.metrics["bits_per_byte"].scores["good"].estimate == pytest.approx(bits)
    answers = [pq.read_table(path) for path in sorted(folders[0].glob("answers-test-student-*"))]
    rouge = 100 * np.mean(np.concatenate([part["rougeL"].to_numpy() for part in answers]))
    score = comparison.metrics["rougeL"].scores["good"]
    assert score.estimate == pytest.approx(rouge)
    assert (score.examples, score.seeds) == (40, 2)


def test_the_reference_meets_the_others_its_start_and_its_teacher(comparison, folders):
    pairs = [("good", "bad"), ("good", "initial student"), ("good", "teacher")]
    assert list(comparison.metrics["rougeL"].pairs) == pairs
    runs = [read_run(folder, name) for folder, name in zip(folders, ("good", "bad"), strict=False)]
    other = compare_runs(runs, reference="bad", resamples=20)
    assert list(other.metrics["rougeL"].pairs) == [("bad", "good"), ("bad", "initial student"), ("bad", "teacher")]
    with pytest.raises(EvaluationError, match="'sft' is not one of the runs"):
        compare_runs(runs, reference="sft")


def test_teachers_that_are_the_same_are_one_whatever_others_there_are(tmp_path):
    runs = [
        read_run(write_run(tmp_path, {"teacher": teacher, "student": wrong}, learning_rate=wrong), name)
        for name, teacher, wrong in (("a", 0.1, 0.5), ("b", 0.2, 0.6), ("c", 0.1, 0.7), ("d", 0.2, 0.8))
    ]
    assert compare_runs(runs, resamples=20).systems == ["teacher (a)", "teacher (b)", "a", "b", "c", "d"]


def test_every_pair_on_request(folders):
    runs = [read_run(folder, name) for folder, name in zip(folders, ("good", "bad"), strict=False)]
    comparison = compare_runs(runs, all_pairs=True, resamples=300)
    pairs = comparison.metrics["rougeL"].pairs
    assert list(pairs) == [
        ("good", "bad"),
        ("good", "initial student"),
        ("good", "teacher"),
        ("bad", "initial student"),
        ("bad", "teacher"),
    ]
    assert pairs["good", "bad"].difference.low > 0
    assert comparison.metrics["bits_per_byte"].pairs["good", "bad"].difference.high < 0


def test_breakdowns_partition_the_examples(comparison, folders):
    titles = [(part.metric.name, part.title) for part in comparison.breakdowns]
    assert titles == [(m, t) for m in ("bits_per_byte", "rougeL") for t in ("source", "prompt length")]
    for part in comparison.breakdowns:
        assert sum(scores["good"].examples for scores in part.groups.values()) == 40
    sources = comparison.breakdowns[2].groups
    assert set(sources) == {"dolly (26)", "self-instruct (14)"}
    tables = [pq.read_table(path).to_pylist() for path in folders[0].glob("answers-test-student-*")]
    dolly = [100 * row["rougeL"] for table in tables for row in table if row["source"] == "dolly"]
    assert sources["dolly (26)"]["good"].estimate == pytest.approx(np.mean(dolly))


def test_cases_hold_every_answer_largest_gap_first(comparison):
    assert len(comparison.cases) == 40
    gaps = [abs(case.gap) for case in comparison.cases]
    assert gaps == sorted(gaps, reverse=True)
    case = comparison.cases[0]
    assert set(case.answers) == {"teacher", "initial student", "good", "bad"}
    assert case.gap == pytest.approx(case.scores["good"] - case.scores["bad"])


def test_lineage_shows_what_differs_only(comparison):
    assert comparison.differing["distill.learning_rate"] == ["0.0005", "0.001"]
    assert comparison.differing["objective.name"] == ["sra", "sft"]
    assert [name for name in comparison.differing if not name.startswith("quality.")] == [
        "objective.name",
        "distill.learning_rate",
    ]


def test_curves_and_costs_come_from_the_store(comparison):
    run = comparison.runs[0]
    assert run.curves["validation/bits_per_byte"][0] == (0, pytest.approx(6.4))
    assert len(run.curves["loss"]) == 21
    assert run.costs["distill: seconds"] == 431
    assert run.costs["distill: peak memory bytes"] == 3.2e9
    assert run.costs["distill: stored bytes"] > 100
    assert not any("bits per byte" in name for name in run.costs)


def test_answers_are_counted(comparison):
    counts = comparison.answers["good"]
    assert (counts.answers, counts.empty, counts.unfinished) == (80, 2, 12)
    assert any("3 test examples occur in the training data" in note for note in comparison.notes)


def test_only_shared_examples_are_compared(tmp_path):
    runs = [
        read_run(write_run(tmp_path, {"student": wrong}, skip=skip, learning_rate=wrong), name)
        for name, wrong, skip in (("a", 0.2, 0), ("b", 0.3, 10))
    ]
    comparison = compare_runs(runs, resamples=50)
    for result in comparison.metrics.values():
        assert (result.examples, result.missing) == (30, 10)
    assert any("30 examples that all share" in note for note in comparison.notes)


def test_texts_that_were_cut_elsewhere_are_not_compared(tmp_path):
    paths = [write_run(tmp_path, {"student": 0.2}, learning_rate=rate) for rate in (0.2, 0.3)]
    table = pq.read_table(paths[1] / "likelihood-test-student.parquet")
    size = table["bytes"].to_numpy().copy()
    size[:4] += 1
    changed = table.set_column(table.column_names.index("bytes"), "bytes", pa.array(size))
    pq.write_table(changed, paths[1] / "likelihood-test-student.parquet")
    comparison = compare_runs(read_runs([(None, path) for path in paths]), resamples=50)
    assert [run.name for run in comparison.runs] == ["sra learning_rate=0.2", "sra learning_rate=0.3"]
    assert comparison.metrics["bits_per_byte"].examples == 36
    assert comparison.metrics["rougeL"].examples == 40


def test_other_examples_under_the_same_ids_are_not_compared(tmp_path):
    paths = [write_run(tmp_path, {"student": 0.2}, learning_rate=rate) for rate in (0.2, 0.3)]
    file = next(paths[1].glob("answers-test-student-*.parquet"))
    table = pq.read_table(file)
    wanted = ["something else", *table["reference"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.column_names.index("reference"), "reference", pa.array(wanted)), file)
    comparison = compare_runs(read_runs([(None, path) for path in paths]), resamples=50)
    assert (comparison.metrics["rougeL"].examples, comparison.metrics["rougeL"].missing) == (39, 1)
    assert (comparison.metrics["bits_per_byte"].examples, comparison.metrics["bits_per_byte"].missing) == (39, 1)
    assert any("another text under the same id" in note for note in comparison.notes)
    assert table["id"][0].as_py() not in {case.id for case in comparison.cases}


def test_how_spans_weigh_is_no_difference_to_an_objective_without_spans(tmp_path):
    uld = write_run(tmp_path, {"student": 0.2}, objective="uld", more={"weighted_loss": True})
    runs = read_runs([("uld", uld), ("sra", write_run(tmp_path, {"student": 0.2}, more={"weighted_loss": False}))])
    assert list(compare_runs(runs, resamples=50).differing) == ["objective.name"]
    by_mass = write_run(tmp_path, {"student": 0.2}, more={"weighted_loss": True})
    runs = read_runs(
        [("by mass", by_mass), ("alike", write_run(tmp_path, {"student": 0.2}, more={"weighted_loss": False}))]
    )
    assert list(compare_runs(runs, resamples=50).differing) == ["objective.weighted_loss"]


def test_what_an_older_result_leaves_out_is_named_as_it_was(tmp_path):
    """Results from before the field stood for constant weights: that is 0, where the default is 1 now."""
    paths = [write_run(tmp_path, {"student": 0.2}, more=more) for more in ({"annealing": 1.0}, {}, {"other": 2})]
    names = [run.name for run in read_runs([(None, path) for path in paths])]
    assert names == ["sra annealing=1.0 other=none", "sra annealing=0.0 other=none", "sra annealing=0.0 other=2"]
    comparison = compare_runs(read_runs([(None, path) for path in paths[:2]]), resamples=50)
    assert comparison.differing == {"objective.annealing": ["1.0", "0.0"]}
    paths = [
        write_run(tmp_path, {"student": 0.2}, more=more) for more in ({"spans": "one_to_one"}, {"spans": "all"}, {})
    ]
    comparison = compare_runs(read_runs([(str(number), path) for number, path in enumerate(paths)]), resamples=50)
    assert comparison.differing == {"objective.spans": ["one_to_one", "all", "all"]}, (
        "written in either, it is one value"
    )


def test_one_run_is_set_against_its_start(folders):
    comparison = compare_runs([read_run(folders[0], "good")], resamples=50)
    assert comparison.pair == ("good", "initial student")
    assert comparison.differing == {}


def test_agreement_is_averaged_over_examples_with_spans():
    scored = Agreement(("a", "b", "c"), np.array([2.0, 0.0, 9.0]), np.array([1, 0, 3]), np.array([2, 0, 3]))
    ids, values, weights = ModelScores(agreement=agreement_table("test", scored)).values("span_kl")
    assert (ids, values.tolist(), weights.tolist()) == ([("test", "a"), ("test", "c")], [[1.0], [3.0]], [1.0, 1.0])
    assert ModelScores(agreement=agreement_table("test", scored)).values("top1")[1].tolist() == [[50.0], [100.0]]
    assert scored.span_kl == 2.0
    assert scored.top1 == 0.75


def test_an_old_store_without_the_student_still_compares(folders, tmp_path):
    import shutil

    alone = tmp_path / "evaluations" / folders[0].name
    shutil.copytree(folders[0], alone)
    run = read_run(alone)
    assert run.curves == {}
    assert run.models["student"].answers is not None
    assert run.results == {"evaluate": folders[0].name}
    assert folders[0].name not in run.lineage.values()


def test_errors_say_what_to_do(tmp_path, folders):
    with pytest.raises(EvaluationError, match="no finished evaluation"):
        read_run(tmp_path)
    with pytest.raises(EvaluationError, match="result of distill"):
        read_run(next((folders[0].parent.parent / "students").iterdir()))
    with pytest.raises(EvaluationError, match="two runs are called 'x'"):
        compare_runs([read_run(folders[0], "x"), read_run(folders[1], "x")])
    with pytest.raises(EvaluationError, match="no run"):
        compare_runs([])


SETS = ("test", "dialogsum", "self_inst")


@pytest.fixture(scope="module")
def on_three_sets(tmp_path_factory):
    store = tmp_path_factory.mktemp("sets")
    runs = [
        read_run(write_run(store, {"teacher": 0.1, "student": wrong}, seeds=(1, 2), datasets=SETS, objective=name))
        for name, wrong in (("sra", 0.2), ("sft", 0.5))
    ]
    return compare_runs(runs, resamples=300)


def test_each_data_set_has_its_scores_and_all_have_an_average(on_three_sets):
    result = on_three_sets.metrics["rougeL"]
    assert list(result.parts) == list(SETS)
    folder = on_three_sets.runs[0].folder
    for dataset, scores in result.parts.items():
        tables = [pq.read_table(path) for path in folder.glob(f"answers-{dataset}-student-*")]
        expected = 100 * np.mean(np.concatenate([table["rougeL"].to_numpy() for table in tables]))
        assert scores["sra"].estimate == pytest.approx(expected)
    mean = np.mean([scores["sra"].estimate for scores in result.parts.values()])
    assert result.scores["sra"].estimate == pytest.approx(mean)
    assert result.examples == 120
    assert result.pairs["sra", "sft"].difference.low > 0


def test_answers_of_equal_ids_in_two_data_sets_are_two_examples(on_three_sets):
    assert len(on_three_sets.cases) == 120
    assert {case.dataset for case in on_three_sets.cases} == set(SETS)


def test_leaks_are_noted_by_data_set(on_three_sets):
    run = on_three_sets.runs[0]
    run.counts = {"examples": 9, "dialogsum/leaked_near_prompt": 2, "dialogsum/excluded": 2}
    notes = compare_runs([run], resamples=20).notes
    assert notes == ["sra: 2 test examples of dialogsum occur in the training data; they are left out of the scores."]
