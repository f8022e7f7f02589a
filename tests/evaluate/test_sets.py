"""Data sets beside the corpus's own test split: read, cut, checked for leaks, scored by themselves and together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from sra_core import evaluate, stages
from sra_core.config import DatasetConfig, EvaluateConfig, RunConfig
from sra_core.config.load import load_config
from sra_core.errors import ConfigError, DataError, EvaluationError
from sra_core.runs import Run
from sra_core.shards import PreparedSet
from sra_core.watch import Watcher
from tests.conftest import SmokeRun


class Recorder(Watcher):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.tables: dict[str, Any] = {}
        self.figures: list[str] = []
        self.reports: dict[str, str] = {}

    def message(self, text: str) -> None:
        self.messages.append(text)

    def table(self, name: str, rows: Any) -> None:
        self.tables[name] = rows

    def figure(self, name: str, figure: Any) -> None:
        self.figures.append(name)

    def markdown(self, name: str, text: str) -> None:
        self.reports[name] = text


def dialogue(number: int) -> dict[str, str]:
    turns = [f"#Person{1 + turn % 2}#: We talk of thing {number} for the {turn}th time." for turn in range(6)]
    return {"dialogue": "\n".join(turns), "summary": f"Two persons talk of thing {number}."}


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def dialogues(tmp_path: Path) -> DatasetConfig:
    return DatasetConfig(
        name="talks",
        source=str(write(tmp_path / "talks.jsonl", [dialogue(number) for number in range(5)])),
        columns={"instruction": "dialogue", "response": "summary"},
        instruction="Summarize the following dialogue.",
    )


def with_sets(smoke_run: SmokeRun, *sets: DatasetConfig, **fields: Any) -> RunConfig:
    config = smoke_run.config.model_copy(deep=True)
    for name, value in {"datasets": list(sets), **fields}.items():
        setattr(config.evaluate, name, value)
    return config


def sets_of(config: RunConfig, smoke_run: SmokeRun, folder: Path, watch: Watcher | None = None) -> Any:
    return evaluate.evaluation_sets(config, smoke_run.results["prepare"], folder, watch or Watcher())


def test_a_file_is_read_whole_under_the_runs_prompt(smoke_run: SmokeRun, dialogues: DatasetConfig, tmp_path: Path):
    (own, talks), counts = sets_of(with_sets(smoke_run, dialogues), smoke_run, tmp_path)
    assert (own.name, talks.name) == ("test", "talks")
    assert counts["talks/examples"] == len(talks.questions) == 5
    first, row = talks.questions[0], dialogue(0)
    block = f"### Input:\n{row['dialogue']}\n\n"
    instruction = "Summarize the following dialogue."
    assert first.prompt == smoke_run.config.corpus.prompt.format(instruction=instruction, context_block=block)
    assert first.response == row["summary"]
    assert first.student_response > smoke_run.config.alignment.max_prompt, "questions are not cut"
    limit = smoke_run.config.alignment.max_length
    assert max(len(each.student_ids) for each in talks.rows) <= limit < len(first.student_ids)


def test_own_prompts_are_whole_again_where_preparing_cut_them(smoke_run: SmokeRun, tmp_path: Path):
    prepared = smoke_run.results["prepare"]
    rows = {row.id: row for row in PreparedSet(prepared, "test")}
    assert prepared.counts["truncated"]
    (own,), _ = sets_of(with_sets(smoke_run, leaks="off"), smoke_run, tmp_path)
    assert [row.id for row in own.questions] == list(rows)
    assert any(len(each.response) > len(rows[each.id].response) for each in own.questions)
    for each in own.questions:
        assert each.prompt.endswith(rows[each.id].prompt)
        assert each.response.startswith(rows[each.id].response)


def test_a_line_of_megabytes_is_asked_by_its_end_and_costs_a_few_times_its_size(
    smoke_run: SmokeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import tracemalloc

    words = " ".join(f"w{k} fox" for k in range(200_000))
    rows = [{"instruction": words, "response": "It is so."}, {"instruction": "Say it.", "response": words}]
    long = DatasetConfig(name="long", source=str(write(tmp_path / "long.jsonl", rows)))
    config = with_sets(smoke_run, long, max_prompt=30)
    tracemalloc.start()
    (_, found), _ = sets_of(config, smoke_run, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(words)
    assert [words in row.prompt + row.response for row in found.questions] == [True, True]
    assert [row.response for row in found.questions] == ["It is so.", words]

    few = " ".join(words.split()[:2000])
    write(tmp_path / "long.jsonl", [{"instruction": few, "response": "It is so."}])
    asked = []
    for far in (64, 10**9):
        monkeypatch.setattr("sra_core.alignment.encode._FAR", far)
        (_, found), _ = sets_of(config, smoke_run, tmp_path)
        (row,) = found.questions
        asked.append((row.teacher_response, row.teacher_ids[: row.teacher_response].tolist()[-30:]))
    assert asked[0][0] < asked[1][0], "the first of the prompt was not tokenized"
    assert asked[0][1] == asked[1][1]


def test_the_limit_on_examples_holds_for_each_set(smoke_run: SmokeRun, dialogues: DatasetConfig, tmp_path: Path):
    (own, talks), counts = sets_of(with_sets(smoke_run, dialogues, examples=2), smoke_run, tmp_path)
    assert (len(own.questions), len(talks.questions), counts["talks/examples"]) == (2, 2, 2)


@pytest.mark.parametrize("leaks", ["exclude", "report", "off"])
def test_leaks_are_looked_for_in_each_set(smoke_run: SmokeRun, tmp_path: Path, leaks: str):
    seen, *others = PreparedSet(smoke_run.results["prepare"], "train")
    question = seen.prompt.partition("### Instruction:\n")[2].partition("\n\n### Response")[0]
    long = max((row.response for row in others), key=lambda text: len(text.split()))
    rows: list[dict[str, object]] = [
        {"instruction": question, "response": seen.response},
        {"instruction": "New?", "response": "Quite new."},
        {"instruction": "Old?", "response": ["Of old.", long]},
    ]
    copied = DatasetConfig(name="copied", source=str(write(tmp_path / "c.jsonl", rows)))
    watch = Recorder()
    sets, counts = sets_of(with_sets(smoke_run, copied, leaks=leaks), smoke_run, tmp_path, watch)
    assert len(sets[-1].questions) == (1 if leaks == "exclude" else 3)
    assert any("of copied occur in the training data" in text for text in watch.messages) is (leaks != "off")
    found = {name: count for name, count in counts.items() if name.startswith("copied/leaked")}
    assert sum(found.values()) == (0 if leaks == "off" else 2)
    assert ("evaluate/leaks_copied" in watch.tables) is (leaks != "off")


def test_several_references_go_with_their_example(smoke_run: SmokeRun, tmp_path: Path):
    rows: list[dict[str, object]] = [
        {"instruction": "Name a colour.", "response": ["Red.", "Green.", "Blue."]},
        {"instruction": "Name a number.", "response": "Seven."},
        {"instruction": "Name nothing.", "response": []},
    ]
    config = with_sets(
        smoke_run, DatasetConfig(name="names", source=str(write(tmp_path / "n.jsonl", rows)), max_malformed=1)
    )
    sets, counts = sets_of(config, smoke_run, tmp_path)
    named = sets[-1]
    assert [row.response for row in named.questions] == ["Red.", "Seven."]
    assert named.references == {named.questions[0].id: ("Green.", "Blue.")}
    assert named.without(frozenset({named.questions[1].id})).references == named.references
    assert counts["names/dropped_malformed"] == 1


def test_what_cannot_be_read_or_aligned_is_counted(smoke_run: SmokeRun, tmp_path: Path):
    rows: list[dict[str, object]] = [{"instruction": "a?", "response": "b."}, {"instruction": 3, "response": "c"}]
    rows.append({"instruction": "d", "response": " "})
    source = str(write(tmp_path / "mixed.jsonl", rows))
    strict = with_sets(smoke_run, DatasetConfig(name="mixed", source=source))
    with pytest.raises(DataError, match=r"data set mixed: .*line 2") as error:
        sets_of(strict, smoke_run, tmp_path)
    assert "evaluate.datasets[mixed].max_malformed" in error.value.remedy
    config = with_sets(smoke_run, DatasetConfig(name="mixed", source=source, max_malformed=1))
    sets, counts = sets_of(config, smoke_run, tmp_path)
    assert len(sets[-1].questions) == 1
    assert (counts["mixed/dropped_malformed"], counts["mixed/dropped_empty_response"]) == (1, 1)
    assert (tmp_path / "quarantine-mixed.jsonl").exists()


def test_fields_for_hub_sets_are_refused_for_files(smoke_run: SmokeRun, dialogues: DatasetConfig, tmp_path: Path):
    for field, value in (("split", "test"), ("revision", "main"), ("subset", "one")):
        config = with_sets(smoke_run, dialogues.model_copy(update={field: value}))
        with pytest.raises(ConfigError, match=f"data set talks: .*{field} is set"):
            evaluate.identity(Run(config))


def test_identity_follows_content_and_not_place(smoke_run: SmokeRun, dialogues: DatasetConfig, tmp_path: Path):
    def made(each: DatasetConfig) -> Any:
        return evaluate.identity(Run(with_sets(smoke_run, each)))

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy = shutil.copy(dialogues.source, elsewhere / "talks.jsonl")
    assert made(dialogues) == made(dialogues.model_copy(update={"source": str(copy)}))
    write(Path(copy), [dialogue(9)])
    changes = [{"source": str(copy)}, {"name": "other"}, {"instruction": "Sum up."}, {"layout": "instruction"}]
    changes += [{"columns": {"instruction": "dialogue", "response": "dialogue"}}, {"max_malformed": 3}]
    for change in changes:
        assert made(dialogues) != made(dialogues.model_copy(update=change)), change


def test_what_python_leaves_beside_task_files_renames_nothing(smoke_run: SmokeRun, tmp_path: Path):
    tasks = tmp_path / "tasks"
    (tasks / "__pycache__").mkdir(parents=True)
    (tasks / "mine.yaml").write_text("task: mine\n")
    config = smoke_run.config.model_copy(deep=True)
    config.evaluate.lm_eval_folder = str(tasks)
    before = evaluate.identity(Run(config))
    (tasks / "__pycache__" / "utils.cpython-311.pyc").write_bytes(b"1")
    (tasks / ".mine.yaml.swp").write_bytes(b"1")
    assert evaluate.identity(Run(config)) == before
    (tasks / "utils.py").write_text("")
    assert evaluate.identity(Run(config)) != before


def test_plain_fine_tuning_is_scored_beside_the_teacher_that_is_named(tmp_path: Path):
    def name(objective: str = "sft", seed: int = 1, **evaluate: bool) -> str:
        config = load_config("smoke", {"store": str(tmp_path), "objective": {"name": objective}, "evaluate": evaluate})
        config.teacher.source = config.teacher.source.replace("seed=1", f"seed={seed}")  # the same tokenizer
        return Run(config).fingerprint("evaluate")

    assert name() != name(seed=3)
    assert name(teacher=False, agreement=True) != name(teacher=False, agreement=True, seed=3)
    assert name(teacher=False) == name(teacher=False, seed=3), "nothing of it is read"
    half = load_config("smoke", {"store": str(tmp_path), "objective": {"name": "sft"}})
    half.cache.compute_dtype = "bfloat16"
    assert Run(half).fingerprint("evaluate") != name()
    assert "teacher" not in Run(load_config("smoke", {"store": str(tmp_path)})).identity("evaluate")


def test_names_that_would_run_into_each_other_are_refused():
    def named(*names: str) -> list[DatasetConfig]:
        return [DatasetConfig(name=name, source="x.jsonl") for name in names]

    for names in (("a", "a"), ("test",), ("average",), ("student",)):
        with pytest.raises(ValidationError, match="must differ"):
            EvaluateConfig(datasets=named(*names))
    with pytest.raises(ValidationError, match="pattern"):
        DatasetConfig(name="S-NI", source="x.jsonl")
    assert EvaluateConfig(test_name="dolly", datasets=named("test")).test_name == "dolly"


def test_nothing_to_score_says_so(smoke_run: SmokeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from sra_core.evaluate import sets

    monkeypatch.setattr(sets, "PreparedSet", lambda manifest, split: [])
    with pytest.raises(EvaluationError, match="no test example"):
        sets_of(smoke_run.config, smoke_run, tmp_path)


@pytest.fixture(scope="module")
def scored(smoke_run: SmokeRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Any, Recorder]:
    """A finished evaluation on the own test split and one more set, sampled with two seeds."""
    store = tmp_path_factory.mktemp("scored")
    shutil.copytree(smoke_run.store, store / "store")
    rows: list[dict[str, object]] = [dict(dialogue(number)) for number in range(4)]
    rows[1]["summary"] = [rows[1]["summary"], "A talk.", "They speak."]
    talks = DatasetConfig(
        name="talks",
        source=str(write(store / "talks.jsonl", rows)),
        layout="instruction",
        columns={"instruction": "dialogue", "response": "summary"},
        instruction="Summarize.",
    )
    config = with_sets(smoke_run, talks, temperature=1.0, seeds=[1, 2], max_prompt=30)
    config.store = str(store / "store")
    watch = Recorder()
    return config, stages.evaluate(config, watch), watch


def test_every_set_has_scores_of_its_own_and_all_an_average(scored: tuple[RunConfig, Any, Recorder]):
    _, manifest, watch = scored
    metrics = manifest.metrics
    for metric in ("bits_per_byte", "rougeL", "rouge1", "rouge2"):
        parts = [metrics[f"evaluate/{dataset}/student/{metric}"] for dataset in ("test", "talks")]
        assert metrics[f"evaluate/average/student/{metric}"] == pytest.approx(np.mean(parts))
        assert metrics[f"evaluate/student/{metric}"] == parts[0], "the same name in runs without more sets"
    summary = watch.reports["summary"]
    assert "| bits per byte | test | talks | average |" in summary
    assert "initial student" in summary


def test_prompts_are_cut_at_the_evaluations_limit_alone(scored: tuple[RunConfig, Any, Recorder]):
    config, manifest, _ = scored
    table = pq.read_table(Path(manifest.folder) / "answers-talks-student-1-00000.parquet")
    assert set(table["prompt_tokens"].to_pylist()) == {config.evaluate.max_prompt}
    assert min(table["prompt_cut"].to_pylist()) > config.alignment.max_prompt
    assert all(text.startswith("Below is an instruction") for text in table["prompt"].to_pylist())


def test_answers_are_scored_against_all_references(scored: tuple[RunConfig, Any, Recorder]):
    config, manifest, _ = scored
    assert config.evaluate.generate == 2
    for model in ("teacher", "initial", "student"):
        table = pq.read_table(Path(manifest.folder) / f"answers-talks-{model}-1-00000.parquet")
        assert table["reference"].to_pylist() == [dialogue(number)["summary"] for number in range(2)]
        assert table["other_references"].to_pylist() == [[], ["A talk.", "They speak."]]


def test_tables_and_figures_have_the_same_names_in_every_run(
    scored: tuple[RunConfig, Any, Recorder], smoke_run: SmokeRun
):
    _, _, watch = scored
    plain = Recorder()
    evaluate.report_evaluation(smoke_run.results["evaluate"], plain)
    tables = {"evaluate/scores", "evaluate/differences", "evaluate/answers"}
    assert tables <= set(watch.tables)
    assert tables <= set(plain.tables)
    drawn = ["evaluate/learning_curves", "evaluate/scores", "evaluate/bits_per_byte_by_prompt_length"]
    assert [name for name in watch.figures if "rouge" not in name] == drawn
    assert [name for name in plain.figures if "rouge" not in name] == drawn
    assert {row["data set"] for row in watch.tables["evaluate/scores"]} == {"test", "talks", "all"}
    answers = watch.tables["evaluate/answers"][0]
    assert {"answer teacher", "answer initial student", "answer student"} <= set(answers)


def test_a_restart_does_only_the_missing_seed_of_the_missing_set(
    scored: tuple[RunConfig, Any, Recorder], monkeypatch: pytest.MonkeyPatch
):
    from sra_core.evaluate import generation

    config, before, _ = scored
    folder = Path(before.folder)
    (folder / "manifest.json").unlink()
    (folder / "answers-talks-student-2-00000.parquet").unlink()
    calls = []
    real = generation.generate

    def counted(model: Any, tokenizer: Any, rows: Any, *args: Any, **options: Any) -> Any:
        calls.append((len(rows), options["seed"]))
        return real(model, tokenizer, rows, *args, **options)

    monkeypatch.setattr(generation, "generate", counted)
    assert stages.evaluate(config).metrics == before.metrics
    assert calls == [(config.evaluate.generate, 2)]


def test_problems_of_data_sets_are_named_before_training_starts(smoke_run: SmokeRun, tmp_path: Path):
    good = write(tmp_path / "good.jsonl", [{"question": "a?", "answer": "b."}])
    broken = write(tmp_path / "broken.jsonl", [{"question": "a?", "answer": "b."}, {"question": "a?", "answer": 3}])
    evaluate.check_datasets(with_sets(smoke_run, DatasetConfig(name="good", source=str(good))))
    config = with_sets(smoke_run, DatasetConfig(name="broken", source=str(broken)))
    config.store = str(tmp_path / "store")
    with pytest.raises(DataError, match=r"data set broken: .*line 2: column `answer` holds int \(3\), not a text"):
        stages.run(config)
    assert not (tmp_path / "store").exists(), "before the first stage"
    empty = write(tmp_path / "empty.jsonl", [{"question": "a?", "answer": " "}])
    with pytest.raises(DataError, match=r"data set empty: .*holds no example to score.*empty_response"):
        evaluate.check_datasets(with_sets(smoke_run, DatasetConfig(name="empty", source=str(empty))))


def test_of_a_folder_with_a_test_file_that_file_is_scored(smoke_run: SmokeRun, tmp_path: Path):
    folder = tmp_path / "both"
    folder.mkdir()
    write(folder / "train.jsonl", [{"question": f"t{number}?", "answer": "b."} for number in range(4)])
    write(folder / "test.jsonl", [{"question": "new?", "answer": "c.</s>"}])
    found, _ = sets_of(with_sets(smoke_run, DatasetConfig(name="both", source=str(folder))), smoke_run, tmp_path)
    assert [row.response for row in found[-1].questions] == ["c."]


@pytest.mark.parametrize("value", ["off", False])
def test_off_is_off_however_yaml_reads_it(value: Any):
    assert EvaluateConfig(leaks=value).leaks == "off"
