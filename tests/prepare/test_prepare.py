"""The prepare stage: nothing lost, nothing done twice, the same bytes whatever the number of workers."""

from __future__ import annotations

import gc
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from sra_core import stages
from sra_core.alignment import PairEncoder, align
from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.doctor import check_models
from sra_core.errors import AlignmentError, DataError
from sra_core.models import load_tokenizers
from sra_core.prepare import audit_of
from sra_core.processes import Pool
from sra_core.runs import Run
from sra_core.shards import Manifest, PreparedSet
from sra_core.watch import Watcher
from tests.conftest import SmokeRun


def config_for(folder: Path, rows: list[dict], workers: int = 1) -> RunConfig:
    """The smoke recipe on rows of ours, with a store of its own."""
    folder.mkdir()
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = {"source": str(data), "max_train": None, "validation_share": 0, "test_share": 0}
    settings = {"store": str(folder / "store"), "corpus": corpus, "alignment": {"workers": workers}}
    return load_config("smoke", settings)


def many(count: int) -> list[dict]:
    return [{"instruction": f"Count to {k}.", "response": " ".join(map(str, range(k)))} for k in range(1, count + 1)]


def digests(manifest: Manifest) -> dict[str, str]:
    return {shard.name: shard.sha256 for shard in manifest.shards}


def test_spans_are_those_of_the_response_retokenized(smoke_run: SmokeRun) -> None:
    """Read a shard back and align its texts anew with the tokenizers that lie beside it."""
    manifest = smoke_run.results["prepare"]
    teacher, student = load_tokenizers(smoke_run.config, Path(manifest.folder))
    checked = 0
    for row in PreparedSet(manifest, "train"):
        sides = []
        for tokenizer, ids in ((teacher, row.teacher_ids), (student, row.student_ids)):
            text = row.prompt + row.response
            encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=True)
            if encoded.input_ids != [token for token in ids.tolist() if token != tokenizer.eos_token_id]:
                break  # a cut prompt tokenizes differently at its edge
            sides.append(np.array(encoded.offset_mapping) - len(row.prompt))
        if len(sides) == 2:
            spans = align(*sides)
            np.testing.assert_array_equal(spans.teacher, row.teacher_spans)
            np.testing.assert_array_equal(spans.student, row.student_spans)
            checked += 1
    assert checked >= 3


def test_workers_change_nothing(tmp_path: Path) -> None:
    rows = many(40)
    alone = stages.prepare(config_for(tmp_path / "a", rows))
    together = stages.prepare(config_for(tmp_path / "b", rows, 3))
    assert digests(alone) == digests(together)
    assert len(digests(alone)) == 5
    assert alone.counts == together.counts
    assert audit_of(alone) == audit_of(together)


def test_a_worker_process_starts_light() -> None:
    heavy = ("torch", "transformers", "datasets", "pandas", "matplotlib")
    code = f"import sys, sra_core.prepare.tasks; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_order_of_what_was_turned_away_does_not_depend_on_the_workers(tmp_path: Path) -> None:
    rows = [row for k, row in enumerate(many(40)) for row in ([row, many(40)[k // 2]] if k % 5 == 0 else [row])]
    lists = []
    for workers in (1, 2):
        manifest = stages.prepare(config_for(tmp_path / str(workers), rows, workers))
        lists.append((Path(manifest.folder) / "rejected.jsonl").read_text())
    assert lists[0] == lists[1]
    assert lists[0].count("duplicate") == 8


def test_what_a_finished_shard_said_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(tmp_path / "a", [*many(40), {"instruction": "Say nothing.", "response": "\u200b"}])
    first = stages.prepare(config)
    report, folder = audit_of(first), Path(first.folder)
    (folder / "manifest.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(PairEncoder, "__call__", None)
        again = stages.prepare(config)
    assert again.content == first.content
    assert audit_of(again) == report
    (folder / "manifest.json").unlink()
    for note in folder.glob("*.arrow.audit.json"):  # as after a kill between a shard and its note
        note.write_text("{")
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.arrow")}
    assert stages.prepare(config).content == first.content
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.arrow")} == kept


def test_finished_shards_are_kept_when_the_stage_is_interrupted(tmp_path: Path) -> None:
    class Interrupt(Watcher):
        def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
            if done >= 16:
                raise KeyboardInterrupt

    config = config_for(tmp_path / "a", many(80))
    with pytest.raises(KeyboardInterrupt):
        stages.prepare(config, Interrupt())
    folder = next(_folders(tmp_path / "a"))
    assert not (folder / "manifest.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.arrow")}
    assert 2 <= len(kept) < 10  # those under way were finished too: at most four, however fast they are
    resumed = stages.prepare(config)
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    assert digests(resumed) == digests(stages.prepare(config_for(tmp_path / "b", many(80))))
    assert resumed.counts["kept_train"] == 80


def test_progress_knows_its_end(tmp_path: Path) -> None:
    """Rejected examples count as done, those that a limit leaves out are none, and both passes agree."""
    told: list[tuple[int, int]] = []

    class Notes(Watcher):
        def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
            told.append((done, total))

    rows = [*many(40), {"instruction": "What is too long? " + "word " * 200, "response": "x"}]
    config = config_for(tmp_path / "a", rows)
    config.corpus.max_train = 30
    config.alignment.truncate = "drop"
    config.alignment.gate.max_dropped = 1.0
    manifest = stages.prepare(config, Notes())
    assert told[-1] == (30, 30)
    assert {total for _, total in told} == {30}
    assert manifest.rows("train") < 30, "some are too long"
    assert manifest.counts["left_out_by_corpus_max"] == 11


def _folders(root: Path) -> Iterator[Path]:
    return (path for path in (root / "store" / "prepared").iterdir() if path.is_dir())


def test_bad_examples_are_counted_and_listed_and_good_ones_kept(tmp_path: Path) -> None:
    rows = [*many(10), {"instruction": "Say nothing.", "response": "   "}, many(3)[2]]
    manifest = stages.prepare(config_for(tmp_path / "a", rows))
    assert manifest.counts["in"] == 12
    assert manifest.counts["kept_train"] == 10
    assert manifest.counts["dropped_empty_response"] == 1
    assert manifest.counts["dropped_duplicate"] == 1
    listed = [json.loads(line) for line in (Path(manifest.folder) / "rejected.jsonl").read_text().splitlines()]
    assert {item["reason"] for item in listed} == {"empty_response", "duplicate"}
    assert all(item["id"] and item["detail"] for item in listed)


@pytest.mark.parametrize(("vocabulary", "told"), [(300, True), (301, False)])
def test_the_same_tokenizer_on_both_sides_is_told(vocabulary: int, told: bool, tmp_path: Path) -> None:
    class Heard(Watcher):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def message(self, text: str) -> None:
            self.lines.append(text)

    config = config_for(tmp_path / "same", many(12))
    model = "random:llama?layers=1&width=16&heads=2&seed=1&vocabulary="
    config.teacher.source, config.student.source = f"{model}300", f"{model}{vocabulary}"
    watch = Heard()
    stages.prepare(config, watch)
    assert any("have the same tokenizer" in line for line in watch.lines) is told


def test_nothing_left_to_train_on_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 empty_response"):
        stages.prepare(config_for(tmp_path / "a", [{"instruction": f"a{k}", "response": ""} for k in range(2)]))


def test_the_gate_stops_the_run_before_the_cache(smoke_run: SmokeRun) -> None:
    config = smoke_run.config.model_copy(deep=True)
    config.alignment.gate.max_tokens_per_span = 0.5
    assert Run(config).fingerprint("prepare") == smoke_run.results["prepare"].fingerprint, "nothing is made again"
    for stage in (stages.prepare, stages.cache):
        with pytest.raises(AlignmentError, match=r"max_tokens_per_span 0\.5"):
            stage(config)


def test_truncation_keeps_both_sides_on_the_same_text(smoke_run: SmokeRun) -> None:
    manifest = smoke_run.results["prepare"]
    tokenizers = load_tokenizers(smoke_run.config, Path(manifest.folder))
    limits = smoke_run.config.alignment
    assert manifest.counts["truncated"] > 0
    for row in PreparedSet(manifest, "train"):
        for tokenizer, ids, first in zip(
            tokenizers,
            (row.teacher_ids, row.student_ids),
            (row.teacher_response, row.student_response),
            strict=True,
        ):
            assert len(ids) <= limits.max_length
            assert tokenizer.decode(ids[first:], skip_special_tokens=True).strip() == row.response.strip()


def _parallelism(_: int) -> str | None:
    return os.environ.get("TOKENIZERS_PARALLELISM")


@pytest.mark.parametrize("users", [None, "true"])
def test_threads_tokenize_alone_unless_the_user_says_otherwise(
    users: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    if users:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", users)
    with Pool(_parallelism, 1) as pool:
        found = [*(each for k in range(20) for each in pool.submit(k)), *pool.drain()]
        frozen = gc.get_freeze_count()
    assert found == [users or "false"] * 20
    assert gc.get_freeze_count() == 0 < frozen
    assert os.environ.get("TOKENIZERS_PARALLELISM") == users


def test_a_folder_of_ten_kinds_of_files_is_read_or_counted_line_by_line(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "test").mkdir(parents=True)
    ask, answer = {"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "An apple."}
    turns = {
        "weights": [ask, {**answer, "weight": 0}],
        "calls": [ask, {"role": "assistant", "content": "Wait.", "tool_calls": [{"id": "1"}]}],
        "chat": [ask, {**answer, "content": "A pear it is.<|im_end|>"}],
    }
    rows: dict[str, list[dict[str, Any]]] = {
        "a-alpaca.jsonl": [{"instruction": "Say it.", "input": "x", "output": "Two.", "history": [["Count.", "One."]]}],
        "b-qa.jsonl": [{"Question": "Who?", "Answer": "Ada did."}],
        "c-kto.jsonl": [{"prompt": "p", "completion": "Bad one.", "label": False}],
        **{f"d-{name}.jsonl": [{"messages": each}] for name, each in turns.items()},
        "e-text.jsonl": [{"text": "A text with <|end|> in it."}],
        "test/f.jsonl": [{"prompt": "What?", "completion": "For the test."}],
    }
    for name, each in rows.items():
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in each))
    (data / "g.csv").write_text("sep=;\ninstruction;response\nName one.;One, two.\n")
    (data / "h.jsonl").write_bytes(gzip.compress(b'{"query": "Why?", "response": "So."}\n'))
    (data / "i.jsonl").write_text('{"instruction": "q", "response": "\\ud83d"}\n')
    (data / "notes.md").write_text("no data")
    config = config_for(tmp_path / "run", [])
    config.corpus = config.corpus.model_copy(
        update={"source": str(data), "validation_share": 0.0, "test_share": 0.0, "max_malformed": 1}
    )
    config.alignment.gate.max_dropped = 1.0
    counts = stages.prepare(config).counts
    assert counts["in"] == 11
    assert {
        name: count for name, count in counts.items() if name.startswith(("kept", "dropped", "end", "special"))
    } == {
        "kept_train": 6,
        "kept_test": 1,
        "dropped_not_learned": 1,
        "dropped_unsupported_tool_call": 1,
        "dropped_labelled_bad": 1,
        "dropped_malformed": 1,
        "end_stripped": 1,
        **({"special_as_text": counts["special_as_text"]} if "special_as_text" in counts else {}),
    }


@pytest.mark.parametrize(("student", "loads"), [("random:gpt2?layers=2&vocabulary=300", 2), ("teacher", 1)])
def test_each_tokenizer_is_loaded_once(
    student: str, loads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its checks, for the identity of the result and for the work: a large one takes seconds."""
    monkeypatch.setenv("SRA_CACHE_HOME", str(tmp_path / "cache"))
    config = config_for(tmp_path / "a", many(9))
    config.teacher.source, config.student.source = "random:llama?layers=2&vocabulary=400", student
    loaded = []
    original = AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **kw: (loaded.append(a), original(*a, **kw))[1])
    check_models(config)
    manifest = stages.prepare(config)
    assert len(loaded) == loads
    teacher, student_tokenizer = load_tokenizers(config, Path(manifest.folder))
    assert (teacher.get_vocab() == student_tokenizer.get_vocab()) is (loads == 1)
