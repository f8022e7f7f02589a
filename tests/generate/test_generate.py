"""The corpus with the teacher's answers: what is in it, what is left out, and that it is read back as it was."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sra_core import stages
from sra_core.config import CorpusConfig, RunConfig
from sra_core.config.load import load_config, parse_overrides
from sra_core.corpus import Corpus, Example, Turn
from sra_core.errors import DataError, ManifestMismatch
from sra_core.evaluate import generate
from sra_core.generate import GENERATED, _answering, _judged, _lines, _row, identity, settings_for
from sra_core.models import load_model, load_tokenizer, name_answer_end
from sra_core.runs import Run
from sra_core.shards import PreparedSet
from sra_core.watch import counted
from tests.conftest import SmokeRun
from tests.corpus.helpers import NO_HOLDOUT, kept, splits, write_jsonl

EXAMPLES = [
    Example("a", "Say hello.", "Hello.", source="talk"),
    Example("b", "What is it?", "A cat.", context="A picture of a cat.", system="Be short.", source="talk"),
    Example(
        "c",
        "And then?",
        "It slept.",
        history=(Turn("user", "What did it do?"), Turn("assistant", "It ate.", "Cats eat.")),
        reasoning="After food comes sleep.",
        tools='[{"name": "look"}]',
        source="talk",
    ),
    Example("d", "", "A plain text, learned as it is.", source="talk"),
]


def config_of(run: SmokeRun, store: Path, **fields: object) -> RunConfig:
    """The finished run's config on a store of its own that holds what was prepared."""
    if not store.exists():
        shutil.copytree(run.store / "prepared", store / "prepared")
    return load_config("smoke", {"store": str(store), "tracking": {"enabled": False}, **fields})


def reading(config: RunConfig, folder: Path) -> RunConfig:
    """The config on a generated corpus, by the settings that the command prints."""
    return load_config("smoke", parse_overrides([*settings_for(config.corpus, folder), f"store={config.store}"]))


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.id for example in EXAMPLES])
def test_an_example_is_read_back_as_it_was_written(example: Example, tmp_path: Path) -> None:
    found = kept(
        write_jsonl(tmp_path / "train.jsonl", [dict(_row(example))]), columns={"source": "source"}, **NO_HOLDOUT
    )
    assert found == [example]


def test_training_responses_are_the_teachers_and_nothing_else_changes(smoke_run: SmokeRun, tmp_path: Path) -> None:
    config = config_of(smoke_run, tmp_path / "store")
    made = stages.generate(config)
    folder = Path(made.folder) / GENERATED
    before, after = (
        {(split, item.id): replace(item, source="") for split, item in Corpus(each) if isinstance(item, Example)}
        for each in (config.corpus, reading(config, folder).corpus)
    )
    held_out = {key: item for key, item in before.items() if key[0] != "train"}
    assert held_out
    assert {key: item for key, item in after.items() if key[0] != "train"} == held_out

    model, tokenizer = load_model(config.teacher, "float32", "cpu"), load_tokenizer(config.teacher)
    name_answer_end(model, tokenizer, config.teacher)
    rows = list(PreparedSet(smoke_run.results["prepare"], "train"))
    answers = generate(
        model,
        tokenizer,
        rows,
        "teacher",
        max_new_tokens=config.alignment.max_length,
        max_prompt=config.alignment.max_prompt,
    )
    said = {answer.id: answer.text.strip() for answer in answers if answer.text.strip()}
    learned = {name: item for (split, name), item in after.items() if split == "train"}
    assert {name: item.response for name, item in learned.items()} == said
    assert all(item.instruction == before["train", name].instruction for name, item in learned.items())
    unended = sum(answer.finish_reason == "length" for answer in answers)
    assert made.counts == {"answered_without_end": unended, "answered": len(rows) - unended}
    assert len(said) == len(rows)


def test_an_answer_that_was_cut_is_learned_without_an_end(smoke_run: SmokeRun, tmp_path: Path) -> None:
    config = config_of(smoke_run, tmp_path / "store")
    made = stages.generate(config)
    answers = pq.read_table(next(Path(made.folder).glob("answers-*.parquet"))).select(["id", "finish_reason"])
    ended = {row["id"]: row["finish_reason"] == "stop" for row in answers.to_pylist()}
    assert not all(ended.values())  # this teacher is random, and hardly ever ends
    prepared = stages.prepare(reading(config, Path(made.folder) / GENERATED))
    end = load_tokenizer(config.teacher).eos_token_id
    rows = list(PreparedSet(prepared, "train"))
    assert rows
    assert not any(int(row.teacher_ids[-1]) == end and not ended[row.id] for row in rows)


def test_answers_without_an_end_that_would_look_whole_are_left_out_and_all_is_counted(
    smoke_run: SmokeRun, tmp_path: Path
) -> None:
    config = config_of(smoke_run, tmp_path / "store")
    longest = config.alignment.max_length
    answers = {
        "answer": ["ends", "short, but cut", "x " * longest, "", "to half of a question"],
        "finish_reason": ["stop", "length", "length", "stop", "stop"],
        "prompt_tokens": [4] * 5,
        "prompt_cut": [0] * 4 + [3],
    }
    table = pa.table({"id": ["one", "two", "three", "four", "half"], **answers})
    judged = _judged(config, table)
    fates = [fate for _, fate in judged.values()]
    assert fates == ["answered", "cut_answer", "answered_without_end", "empty_answer", "cut_prompt"]

    cut_at_the_start = config.model_copy(
        update={"alignment": config.alignment.model_copy(update={"truncate": "start"})}
    )
    assert _judged(cut_at_the_start, table)["three"][1] == "cut_answer"

    rows = [{"id": name, "instruction": f"Q {name}", "response": "r"} for name in [*judged, "five"]]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    config = config.model_copy(update={"corpus": CorpusConfig(source=str(path), min_response=1, **NO_HOLDOUT)})
    counts = Counter[str]()
    lines = [json.loads(line) for line in _lines(config, judged, counts)["train"]]
    assert [(row["id"], row["response"]) for row in lines] == [("one", "ends"), ("three", "x " * longest)]
    left_out = {"cut_answer": 1, "empty_answer": 1, "cut_prompt": 1, "not_asked": 1}
    assert counts == {"answered": 1, "answered_without_end": 1, **left_out}
    for fate in counts:
        told = smoke_run.results["cache"].model_copy(update={"stage": "generate", "counts": {fate: 3}})
        assert counted(told).startswith(("3 training responses", "3 examples left out"))


@pytest.mark.parametrize(("template", "kept_thought"), [("chat", "Six sevens."), ("plain", "")])
def test_an_answer_is_learned_after_what_the_teacher_was_asked_with(
    template: str, kept_thought: str, tmp_path: Path
) -> None:
    row = {"id": "one", "instruction": "6*7?", "response": "42", "reasoning_content": "Six sevens."}
    path = write_jsonl(tmp_path / "train.jsonl", [row])
    config = load_config("smoke", {"corpus": {"source": str(path), **NO_HOLDOUT}, "teacher": {"template": template}})
    (line,) = _lines(config, {"one": ("It is 42.", "answered")}, Counter[str]())["train"]
    assert json.loads(line).get("reasoning_content", "") == kept_thought


def test_a_split_that_was_empty_is_not_chosen_from_the_answers(smoke_run: SmokeRun, tmp_path: Path) -> None:
    rows = [{"id": f"{n}", "instruction": f"Q{n}", "response": "r"} for n in range(50)]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    config = config_of(smoke_run, tmp_path / "store").model_copy(
        update={"corpus": CorpusConfig(source=str(path), **NO_HOLDOUT)}
    )
    answers = {f"{n}": (f"Answer {n}.", "answered") for n in range(50)}
    (tmp_path / "made").mkdir()
    for split, lines in _lines(config, answers, Counter[str]()).items():
        (tmp_path / "made" / f"{split}.jsonl").write_text("".join(lines))
    made = splits(tmp_path / "made", validation_share=0.4, test_share=0.4)
    assert Counter(made.values()) == {"train": 50}


def test_a_stopped_stage_keeps_its_answers(
    smoke_run: SmokeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(smoke_run, tmp_path / "store")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("sra_core.generate._lines", stopped)
        with pytest.raises(KeyboardInterrupt):
            stages.generate(config)
    folder = Run(config).folder("generate").path
    assert not (folder / "manifest.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("answers-*.parquet")}
    assert kept
    stages.generate(config)
    assert kept == {path.name: path.stat().st_mtime_ns for path in folder.glob("answers-*.parquet")}


def test_what_is_missing_is_told(smoke_run: SmokeRun, tmp_path: Path) -> None:
    with pytest.raises(ManifestMismatch, match="no result of prepare"):
        stages.generate(load_config("smoke", {"store": str(tmp_path / "none")}))
    text = write_jsonl(tmp_path / "train.jsonl", [{"text": f"A text of some length, number {n}."} for n in range(40)])
    config = load_config("smoke", {"store": str(tmp_path / "store"), "corpus": {"source": str(text)}})
    stages.prepare(config)
    with pytest.raises(DataError, match="no training example has a prompt"):
        stages.generate(config)


def test_the_identity_is_the_prompts_the_teacher_and_how_it_answers(smoke_run: SmokeRun, tmp_path: Path) -> None:
    def of(**fields: object) -> dict[str, object]:
        return identity(Run(config_of(smoke_run, tmp_path / "store", **fields)))

    assert of() == of(evaluate={"max_new_tokens": 7, "generate": 3, "seeds": [10, 20]}, seed=3)
    assert of() != of(evaluate={"temperature": 1.0})
    assert of() != of(alignment={"max_prompt": 9})
    longest = _answering(config_of(smoke_run, tmp_path / "store")).evaluate.max_new_tokens
    assert longest == smoke_run.config.alignment.max_length


def test_settings_of_the_source_are_set_back_over_those_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: smoke\nname: mine\ncorpus:\n  columns: {instruction: asked, response: said}\n  ignore: [draft]\n"
        "  splits: {train: part-*.jsonl}\n  layout: dolly\n"
    )
    mine, smoke = load_config(str(tmp_path / "mine.yaml")), load_config("smoke")
    read = parse_overrides(settings_for(mine.corpus, tmp_path))
    expected = smoke.corpus.model_copy(update={"source": str(tmp_path)})
    assert load_config(str(tmp_path / "mine.yaml"), read).corpus == expected
    assert settings_for(smoke.corpus, tmp_path) == [f"corpus.source={tmp_path}"]
