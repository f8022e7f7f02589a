"""Files as people have them: read right, or refused by name, and no word altered or lost in silence."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_core.config import CorpusConfig
from sra_core.corpus import Corpus, Example, Rejected, Turn
from sra_core.errors import ConfigError, DataError

from .helpers import NO_HOLDOUT, corpus, kept, pairs, rejected, splits, write_jsonl

ASK, ANSWER = {"role": "user", "content": "6*7?"}, {"role": "assistant", "content": "42"}
BAD = {"role": "assistant", "content": "41"}


def compressed(data: bytes) -> bytes:
    """Without the time, which would give the test another name in every process."""
    return gzip.compress(data, mtime=0)


@pytest.fixture
def file(tmp_path):
    return lambda *rows: write_jsonl(tmp_path / "d.jsonl", rows)


class PlaceError(Exception):
    """As libraries of file systems raise them: of no kind that Python knows."""


class Breaks(io.BytesIO):
    """A file of which the first bytes are read, then none: as from another machine."""

    def __init__(self, data, error, after=100_000):
        super().__init__(data)
        self.error, self.after = error, after

    def read(self, size=-1):
        if self.tell() + max(size, 0) > self.after:
            raise self.error
        return super().read(size)


def encoded(name, rows):
    if name.endswith(".parquet"):
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=500)
        return sink.getvalue()
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    if name.endswith(".zst"):
        return pa.compress(data, "zstd", asbytes=True)
    return compressed(data) if name.endswith(".gz") else data


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset"), PlaceError("payload"), TimeoutError()], ids=repr
)
@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.jsonl.gz", "d.jsonl.zst", "d.parquet"])
def test_a_place_that_breaks_off_is_an_error_and_no_end(name, error, monkeypatch):
    rows = [{"instruction": f"q{n}", "response": random.Random(n).randbytes(40).hex()} for n in range(5000)]
    if name.endswith(".csv"):
        data = b"instruction,response\n" + b"".join(f"{r['instruction']},{r['response']}\n".encode() for r in rows)
    else:
        data = encoded(name, rows)
    after = len(data) - 1 if name.endswith(".parquet") else 100_000  # a Parquet file is read from its end
    system = MemoryFileSystem()
    system.pipe_file(f"/breaks/{name}", data)
    monkeypatch.setattr(MemoryFileSystem, "open", lambda *args, **options: Breaks(data, error, after))
    with pytest.raises(
        DataError, match=rf"/breaks/{name} cannot be read on after row [\d,]+: .*{type(error).__name__}"
    ):
        kept(f"memory://breaks/{name}")
    system.rm("/breaks", recursive=True)


def only(path, **fields):
    (example,) = kept(path, **NO_HOLDOUT, **fields)
    return example


@pytest.mark.parametrize("closed", [True, False])
def test_rows_that_a_quote_takes_for_text_are_counted_one_by_one(tmp_path, closed):
    lines = ["instruction,response", *(f"q{n},answer {n}" for n in range(80))]
    lines[21] = 'q20,"answer 20'
    lines[61] = 'q60,"answer 60' if closed else lines[61]
    path = tmp_path / "d.csv"
    path.write_text("\n".join(lines) + "\n")
    lost = range(22, 63 if closed else 82)
    assert [each.id for each in rejected(path, max_malformed=100, **NO_HOLDOUT)] == [f"d:{line}" for line in lost]
    assert len(kept(path, max_malformed=100, **NO_HOLDOUT)) == 80 - len(lost)
    with pytest.raises(
        DataError, match=rf"d\.csv, line 22: not valid CSV.*goes on to line {lost[-1]}: is a quote missing"
    ):
        kept(path, max_malformed=0, **NO_HOLDOUT)


# What columns mean


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "q", "input": "c", "response": "a"}, ("q", "c", "a")),
        ({"instruction": "q", "context": "c", "output": "a"}, ("q", "c", "a")),
        ({"Instruction": "q", "Input": "c", "Output": "a"}, ("q", "c", "a")),
        ({"question": "q", "answer": "a"}, ("q", "", "a")),
        ({"Question ": "q", "ANSWER": "a"}, ("q", "", "a")),
        ({"question": "q", "context": "c", "answer": "a"}, ("q", "c", "a")),
        ({"prompt": "q", "completion": "a"}, ("q", "", "a")),
        ({"query": "q", "response": "a"}, ("q", "", "a")),
        ({"problem": "q", "solution": "a is 4", "answer": "4"}, ("q", "", "a is 4")),
        ({"inputs": "q", "targets": "a"}, ("q", "", "a")),
        ({"input": "q", "output": "a"}, ("q", "", "a")),
        ({"source": "q", "target": "a"}, ("q", "", "a")),
        ({"instruction": "q", "input": "c", "prompt": "Do this: q\nwith c\nnow:", "output": "a"}, ("q", "c", "a")),
        ({"prompt": "Below: q\n###", "input": "q", "output": "a"}, ("Below: q\n###", "", "a")),
        ({"prompt": "q", "completion": "a", "label": True}, ("q", "", "a")),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_column_is_read_as_what_its_name_means(tmp_path, row, expected, ending):
    path = tmp_path / f"d.{ending}"
    if ending == "csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, row)
            writer.writeheader()
            writer.writerow(row)
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        write_jsonl(path, [row])
    example = only(path)
    assert (example.instruction, example.context, example.response) == expected


@pytest.mark.parametrize("name", ["system", "system_prompt", "systemPrompt", "System Message"])
def test_a_system_prompt_is_used_beside_turns_and_pairs(file, name):
    assert only(file({name: "Be kind.", "conversations": [ASK, ANSWER]})).system == "Be kind."
    assert only(file({name: "Be kind.", "question": "q", "answer": "a"})).system == "Be kind."


@pytest.mark.parametrize(
    "history",
    [
        [["Count.", "One."]],
        '[["Count.", "One."]]',
        [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One."}],
    ],
)
def test_history_is_part_of_the_prompt(file, history):
    example = only(file({"instruction": "And now?", "input": "", "output": "Two.", "history": history}))
    assert example.history == (Turn("user", "Count."), Turn("assistant", "One."))
    assert example.instruction == "And now?"


def test_a_column_that_means_something_is_read_or_repeats_or_is_refused(file):
    example = only(file({"messages": [ASK, ANSWER], "prompt": "6*7?", "text": "<u>6*7?<a>42"}))
    assert example.response == "42"
    row = {"instruction": "q", "output": "a", "answer": "something else"}
    with pytest.raises(
        DataError, match="line 1: column `answer` holds words that no column which is read has"
    ) as caught:
        kept(file(row))
    assert "corpus.ignore: [answer]" in caught.value.problem
    assert only(file(row), ignore=["answer"]).response == "a"
    assert only(file(row), columns={"response": "answer"}).response == "something else"


def test_a_column_named_for_one_field_leaves_its_usual_one(file):
    path = file({"prompt": "Below: Name a fruit.", "input": "Name a fruit.", "output": "An apple."})
    example = only(path, columns={"instruction": "input"})
    assert (example.instruction, example.context) == ("Name a fruit.", "")


def test_columns_that_no_layout_knows_are_told_once_a_file(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": "q", "response": "a", "score": 3}] * 2)
    found = corpus(tmp_path)
    list(found)
    assert [note for note in found.notes() if "score" in note] == [
        f"{tmp_path}/a.jsonl: columns that are not read: `score`"
    ]


@pytest.mark.parametrize(
    ("row", "problem", "remedy"),
    [
        (
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            "preference pairs (`chosen`, `rejected`)",
            "response: chosen",
        ),
        ({"prompt": "q", "response_0": "a", "response_1": "b"}, "preference pairs", "response: response_0"),
        ({"message_id": "1", "parent_id": None, "text": "hi", "role": "prompter"}, "OpenAssistant", "messages"),
        ({"message_tree_id": "1", "prompt": {"text": "hi", "replies": []}}, "OpenAssistant", "messages"),
        ({"data": [{"instruction": "q", "response": "a"}]}, "a list of rows under `data`", "jq -c '.data[]'"),
    ],
)
def test_layouts_that_cannot_be_learned_are_refused_by_name(file, row, problem, remedy):
    with pytest.raises(DataError) as caught:
        kept(file(row))
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


def test_the_chosen_answer_of_a_preference_pair_is_learned_when_it_is_named(file):
    text = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert only(file(text), columns={"response": "chosen"}).response == "a"
    talk = {"prompt": "6*7?", "chosen": [ASK, ANSWER], "rejected": [ASK, BAD]}
    assert only(file(talk), columns={"messages": "chosen"}).response == "42"
    assert only(file(talk), columns={"response": "chosen"}).response == "42"


def test_prompt_and_completion_may_be_lists_of_turns(file):
    example = only(file({"prompt": [{"role": "system", "content": "s"}, ASK], "completion": [ANSWER]}))
    assert (example.system, example.instruction, example.response) == ("s", "6*7?", "42")


@pytest.mark.parametrize("label", [False, "False", 0])
def test_an_answer_that_a_label_calls_bad_is_dropped_and_counted(file, label):
    path = file({"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": "b", "label": label})
    assert only(path).response == "a"
    assert [item.reason for item in rejected(path)] == ["labelled_bad"]
    with pytest.raises(DataError, match=r"`label` is str \(sports\); only 0 and 1 .* corpus\.ignore: \[label\]"):
        kept(file({"prompt": "q", "completion": "a", "label": "sports"}))
    assert only(file({"text": "a", "label": 0})).is_text, "a class of texts is no verdict"


def test_only_values_that_repeat_are_a_source(file):
    rows = [{"instruction": f"q{n}", "response": f"a{n}", "source": f"tweet {n}"} for n in range(6)]
    assert {example.source for example in kept(file(*rows))} == {"d"}
    assert {example.source for example in kept(file(*rows), columns={"source": "source"})} == {
        r["source"] for r in rows
    }
    some = [{**row, "source": f"s{n % 2}"} for n, row in enumerate(rows)]
    assert {example.source for example in kept(file(*some))} == {"s0", "s1"}


# Turns


@pytest.mark.parametrize(
    "flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"loss_mask": 0}, {"mask": True}]
)
def test_turns_that_are_not_to_be_learned_are_context_only(file, flag):
    path = file({"messages": [ASK, ANSWER]}, {"messages": [ASK, {**BAD, **flag}]})
    assert only(path).response == "42"
    assert [item.reason for item in rejected(path)] == ["not_learned"]
    path = file({"messages": [ASK, {**BAD, **flag}, {"role": "user", "content": "Sure?"}, {**ANSWER, "weight": 1}]})
    for turns in ("last", "all"):
        example = only(path, turns=turns)
        assert example.history == (Turn("user", "6*7?"), Turn("assistant", "41"))
        assert rejected(path, turns=turns) == []


@pytest.mark.parametrize("flag", [{"weight": 0.5}, {"mask": 1}, {"train": "perhaps"}])
def test_a_wish_that_cannot_be_kept_is_refused(file, flag):
    with pytest.raises(DataError, match=rf"line 1: messages\[1\].{next(iter(flag))}"):
        kept(file({"messages": [ASK, {**ANSWER, **flag}]}))


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_goes_with_its_answer(file, key):
    path = file({"messages": [ASK, {**ANSWER, key: "Six sevens."}]})
    assert only(path).reasoning == "Six sevens."


CALL = [{"type": "function", "function": {"name": "weather", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([ASK, {"role": "assistant", "content": "Let me look.", "tool_calls": CALL}], "unsupported_tool_call"),
        ([ASK, {"role": "assistant", "content": None, "tool_calls": CALL}, ASK, ANSWER], "unsupported_tool_call"),
        ([ASK, {"role": "assistant", "tool_calls": CALL}, ASK, ANSWER], "unsupported_tool_call"),
        ([ASK, {"role": "assistant", "content": "", "function_call": {"name": "f"}}], "unsupported_tool_call"),
        *(
            ([ASK, {"from": role, "value": "{}"}, ASK, ANSWER], "unsupported_role")
            for role in ("tool_call", "Tool", "function-response", "observation")
        ),
        ([ASK, {"role": "tool", "content": {"a": 1}}, ASK, ANSWER], "unsupported_role"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ANSWER], "unsupported_content"),
    ],
)
def test_turns_of_tools_and_pictures_are_dropped_and_counted(file, turns, reason):
    assert [item.reason for item in rejected(file({"messages": turns}))] == [reason]


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"role": "assistant", "text": "Hello"}, "has no content; its keys are role, text"),
        ({"role": "assistant", "content": "a", "value": "b"}, "says different things under content and value"),
        ({"role": "assistant", "content": "a", "text": "b"}, "says different things under content and text"),
    ],
)
def test_a_turn_that_cannot_be_trusted_is_a_malformed_row(file, turn, reason):
    with pytest.raises(DataError, match=rf"line 1: messages\[1\] {reason}"):
        kept(file({"messages": [ASK, turn]}))


def test_keys_of_turns_that_are_not_read_are_told(file):
    found = corpus(file({"messages": [{**ASK, "name": "Ada", "id": None}, ANSWER]}))
    list(found)
    assert any("`messages[].name`" in note and "id" not in note.partition("not read")[2] for note in found.notes())


def test_turns_may_be_json_text_or_a_list_a_key(file):
    assert only(file({"messages": json.dumps([ASK, ANSWER])})).response == "42"
    assert only(file({"messages": {"role": ["user", "assistant"], "content": ["6*7?", "42"]}})).response == "42"


def test_a_last_question_without_an_answer_is_counted(file):
    path = file({"messages": [ASK, ANSWER, ASK]})
    assert only(path).response == "42"
    assert [item.reason for item in rejected(path)] == ["unanswered_turn"]


def test_two_system_prompts_are_not_guessed_between(file):
    with pytest.raises(DataError, match="two system prompts"):
        kept(file({"system": "a", "messages": [{"role": "system", "content": "b"}, ASK, ANSWER]}))


# Folders and saved data sets


def test_files_named_like_a_split_are_of_that_split(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", pairs(40))
    write_jsonl(tmp_path / "test-00000-of-00001.jsonl", pairs(2, 40))
    write_jsonl(tmp_path / "dev" / "part.jsonl", pairs(2, 42))
    (tmp_path / "README.md").write_text("hello")
    found = splits(tmp_path, validation_share=0.4, test_share=0.4)
    assert {split: sum(each == split for each in found.values()) for split in set(found.values())} == {
        "train": 40,
        "validation": 2,
        "test": 2,
    }
    notes = "\n".join(corpus(tmp_path).notes())
    for told in (
        "as train: train.jsonl",
        "as test: test-00000",
        "as validation: dev/part.jsonl",
        "not read: README.md",
    ):
        assert told in notes


def test_what_a_folder_does_not_bring_is_chosen_by_hash(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", pairs(200))
    write_jsonl(tmp_path / "test.jsonl", pairs(2, 200))
    found = splits(tmp_path, validation_share=0.3, test_share=0.3, max_validation=None)
    assert sum(split == "test" for split in found.values()) == 2
    assert 30 < sum(split == "validation" for split in found.values()) < 90


def test_the_config_says_which_file_is_which_split(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", pairs(3))
    write_jsonl(tmp_path / "held" / "a.jsonl", pairs(2, 3))
    write_jsonl(tmp_path / "other.jsonl", pairs(1, 9))
    found = splits(tmp_path, splits={"train": "test.jsonl", "test": ["held"]})
    assert list(found.values()) == ["test", "test", "train", "train", "train"]
    assert any(
        "not read: held/a.jsonl, other.jsonl" in note for note in corpus(tmp_path, splits={"train": "test"}).notes()
    )
    with pytest.raises(DataError, match=r"corpus\.splits\.test names gone"):
        corpus(tmp_path, splits={"test": "gone"})
    with pytest.raises(ConfigError, match=r"puts test\.jsonl into train and test"):
        corpus(tmp_path, splits={"train": "test.jsonl", "test": "test*"})
    with pytest.raises(ConfigError, match="single file"):
        corpus(tmp_path / "test.jsonl", splits={"train": "test"})


def test_a_name_that_says_two_splits_is_refused(tmp_path):
    write_jsonl(tmp_path / "train_test.jsonl", pairs(1))
    with pytest.raises(DataError, match=r"train_test.jsonl says two splits"):
        corpus(tmp_path)


@pytest.mark.parametrize("parts", [None, ("train", "validation", "test", "extra")])
def test_what_save_to_disk_wrote_is_read(tmp_path, parts):
    from datasets import Dataset, DatasetDict

    if parts is None:
        Dataset.from_list(pairs(3)).save_to_disk(tmp_path / "saved")
        assert [e.response for e in kept(tmp_path / "saved", **NO_HOLDOUT)] == ["answer 0", "answer 1", "answer 2"]
        return
    data = {name: Dataset.from_list(pairs(1, n)) for n, name in enumerate(parts)}
    DatasetDict(data).save_to_disk(tmp_path / "saved")
    found = splits(tmp_path / "saved", validation_share=0.4, test_share=0.4)
    assert found == {"answer 0": "train", "answer 1": "validation", "answer 2": "test"}
    assert "not read: extra" in corpus(tmp_path / "saved").notes()[0]
    assert splits(tmp_path / "saved", splits={"train": "extra"}, **NO_HOLDOUT) == {"answer 3": "train"}


# Encodings, delimiters, and files that are not what they are called


ROWS = [{"instruction": "Grüße?", "response": "señor"}]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)


def zipped(content: bytes) -> bytes:
    import zipfile

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("d.jsonl", content)
    return stream.getvalue()


def tarred(content: bytes) -> bytes:
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo("d.jsonl")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "problem", "remedy"),
    [
        ("d.jsonl", LINES.decode().encode("utf-16"), "UTF-16LE", "iconv -f UTF-16LE"),
        ("d.jsonl", LINES.decode().encode("utf-16-be"), "UTF-16BE", "iconv -f UTF-16BE"),
        ("d.csv", "instruction,response\na,b\n".encode("utf-16"), "UTF-16LE", "iconv"),
        ("d.jsonl", LINES.decode().encode("utf-32"), "UTF-32LE", "iconv"),
        ("d.jsonl", json.dumps({"data": ROWS}, indent=1).encode(), "holds its rows under `data`", "jq -c '.data[]'"),
        ("d.json", json.dumps(ROWS[0], indent=1).encode() * 2, "JSON objects over several lines", "jq -c '.'"),
        ("d.json", b"\n " + json.dumps(ROWS).encode(), "a JSON array", "jq -c '.[]'"),
        ("d.json.gz", compressed(json.dumps(ROWS).encode()), "a JSON array", "gzip -dc {path} | jq -c '.[]'"),
        ("d.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer", "git lfs pull"),
        ("d.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
        ("d.jsonl", b"<!DOCTYPE html><html></html>", "a web page", "/resolve/"),
        ("d.jsonl", zipped(LINES), "a zip archive", "unzip {path}"),
        ("d.jsonl.gz", compressed(tarred(LINES)), "a tar archive", "tar -xf {path}"),
        ("d.jsonl.gz", compressed(compressed(LINES)), "gzip inside of gzip", "gzip -dc"),
        ("d.csv", b"instruction,response,response\na,b,c\n", "two columns are called `response`", "a name of its own"),
    ],
)
def test_a_file_that_cannot_be_read_is_called_what_it_is(tmp_path, name, content, problem, remedy):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        kept(path, max_malformed=9)
    assert problem in caught.value.problem
    assert str(path) in caught.value.problem
    assert remedy.format(path=path) in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", compressed(LINES)),
        ("d.jsonl.gz", LINES),
        ("d.csv", "instruction;response\nGrüße?;señor\n".encode()),
        ("d.csv", "sep=,\ninstruction,response\nGrüße?,señor\n".encode()),
        ("d.csv", "\ufeffsep=;\r\ninstruction;response\r\nGrüße?;señor\r\n".encode()),
        ("d.csv", "instruction\tresponse\nGrüße?\tseñor\n".encode()),
        ("d.tsv", "instruction\tresponse\nGrüße?\tseñor\n".encode()),
        ("d.csv", "id|instruction|response\n1|Grüße?|señor\n".encode()),
    ],
)
def test_a_file_is_read_for_what_it_is(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    example = only(path)
    assert (example.instruction, example.response) == ("Grüße?", "señor")


@pytest.mark.parametrize("name", ["d.parquet", "d.jsonl"])
def test_only_the_columns_that_are_needed_are_read(tmp_path, name):
    years = pa.array([10**18], pa.timestamp("us"))  # a year that Python has no date for
    pq.write_table(pa.table({"instruction": ["q"], "response": ["a"], "when": years}), tmp_path / name)
    assert only(tmp_path / name).response == "a"
    with pytest.raises(DataError, match="line 1: column `when` holds a value that cannot be read"):
        kept(tmp_path / name, columns={"id": "when"})


@pytest.mark.parametrize("field", ["response", "instruction", "source", "id", "system"])
def test_half_of_a_character_is_called_so(file, field):
    row = b'{"instruction": "q", "response": "a", "id": "i", "%s": "x\\ud83d"}' % field.encode()
    with pytest.raises(DataError, match=f"line 1: .*(column `{field}` holds a lone surrogate|is there twice)"):
        kept(file(row))
    with pytest.raises(DataError, match="lone surrogate"):
        kept(file({"messages": [ASK, {"role": "assistant", "content": "x\ud83d"}]}))


def test_a_key_that_is_there_twice_loses_no_value_in_silence(file):
    with pytest.raises(DataError, match="line 1: not valid JSON: the key 'response' is there twice"):
        kept(file(b'{"instruction": "q", "response": "a", "response": "b"}'))


@pytest.mark.parametrize("cell", ['["a", "b"]', "['a', 'b']"])
def test_a_csv_cell_may_hold_a_list_of_references(tmp_path, cell):
    with (tmp_path / "d.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["instruction", "response"], ["q", cell], ["r", "[1] is it"]])
    config = CorpusConfig(source=str(tmp_path / "d.csv"), **NO_HOLDOUT)
    first, second = (item for _, item in Corpus(config, several=True))
    assert (first.response, first.references) == ("a", ("b",))
    assert (second.response, second.references) == ("[1] is it", ())
    assert kept(tmp_path / "d.csv", **NO_HOLDOUT)[0].response == cell


# Whatever is in a file is somewhere afterwards


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
COLUMNS = st.sampled_from(
    [
        *("instruction", "input", "context", "output", "response", "prompt", "completion", "question", "answer"),
        *("system", "text", "history", "label", "source", "id", "tools", "reasoning"),
    ]
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "wizard"]), "content": TEXT | st.none()},
    optional={"weight": st.sampled_from([0, 1, 0.5]), "reasoning_content": TEXT, "text": TEXT},
)
VALUE = TEXT | st.none() | st.booleans() | st.integers() | st.lists(TEXT, max_size=3) | st.lists(TURN, max_size=4)
ROW = st.dictionaries(COLUMNS, TEXT, max_size=5) | st.dictionaries(COLUMNS, VALUE, max_size=5)
CHAT = st.fixed_dictionaries({"messages": st.lists(TURN, max_size=6)}, optional={"system": TEXT, "prompt": TEXT})


def words_of(value) -> list[str]:
    """All texts in a value but those under keys that say how a turn is meant."""
    if isinstance(value, dict):
        return [text for key, each in value.items() if key != "role" for text in words_of(each)]
    if isinstance(value, list):
        return [text for each in value for text in words_of(each)]
    return [value.strip()] if isinstance(value, str) and value.strip() else []


@given(rows=st.lists(ROW | CHAT | st.binary(min_size=1, max_size=20), min_size=1, max_size=6), every=st.booleans())
@settings(max_examples=300, deadline=None)
def test_all_that_is_read_is_in_an_example_whole_or_counted(rows, every):
    """Each row gives examples that hold all its words, or is turned away with a reason, or is put aside as it is."""
    lines = [
        row.replace(b"\n", b"").replace(b"\r", b"") if isinstance(row, bytes) else json.dumps(row).encode()
        for row in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.jsonl"
        quarantine = Path(folder) / "quarantine.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        config = CorpusConfig(
            source=str(path), turns="all" if every else "last", deduplicate=False, max_malformed=99, **NO_HOLDOUT
        )
        found, items, refused = Corpus(config, quarantine), [], ""
        try:
            items = [item for _, item in found]
        except DataError as error:  # the file as a whole is refused, by name
            refused = error.problem
        if refused:  # a first line may also make the whole file a damaged archive
            assert str(path) in refused or "holds no rows" in refused
            return
        aside = [json.loads(line) for line in quarantine.read_text().splitlines()] if quarantine.exists() else []
    assert sum(isinstance(item, Rejected) and item.reason == "malformed" for item in items) == len(aside)
    lost = {record["line"] for record in aside}
    if any("what follows is lost" in record["reason"] for record in aside):
        return
    for number, row in enumerate(rows, 1):
        name = row.get("id") if isinstance(row, dict) else None
        if number in lost or not lines[number - 1].removeprefix(b"\xef\xbb\xbf").strip():
            continue
        own = [item for item in items if _is_of(item, number, name)]
        assert own, f"line {number} left no trace"
        if any(isinstance(item, Rejected) for item in own):
            continue
        held = [text for item in own if isinstance(item, Example) for text in (*item.texts(), item.source, item.id)]
        told = {column for column in row if any(f"`{column}`" in note for note in found.notes())}
        for text in words_of({key: value for key, value in row.items() if key not in {*told, "label"}}):
            escaped = json.dumps(text, ensure_ascii=False)[1:-1]  # tools are kept as JSON
            assert any(text in each or escaped in each or each.strip() in text for each in held if each.strip())


def _is_of(item, number, name):
    known = [f"d:{number}", *([str(name)] if name not in (None, "") else [])]
    return any(item.id == each or item.id.startswith((f"{each}#", f"{each}~")) for each in known)


def test_turns_of_an_unknown_shape_are_refused_as_turns(file):
    turns = [{"role": "user", "parts": [{"text": "6*7?"}]}, {"role": "model", "parts": [{"text": "42"}]}]
    with pytest.raises(DataError, match="`contents` holds turns") as caught:
        kept(file({"contents": turns}), **NO_HOLDOUT)
    assert "{messages: contents}" in caught.value.remedy
    with pytest.raises(DataError, match="has no content; its keys are role, parts"):
        kept(file({"contents": turns}), **NO_HOLDOUT, columns={"messages": "contents"})
    with pytest.raises(DataError, match=r"has the role None \(its keys are 'human', 'gpt'\); known roles"):
        kept(file({"conversations": [{"human": "6*7?", "gpt": "42"}]}), **NO_HOLDOUT)
