"""Files: formats, compression, folders, fsspec URLs, identity, and rows that cannot be read."""

from __future__ import annotations

import csv
import gzip
import json
import shutil

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from sra_core.errors import ConfigError, DataError

from .helpers import NO_HOLDOUT, corpus, kept, pairs, rejected, write_jsonl

ROWS = [
    {"instruction": "première", "context": "", "response": 'one, "two"\nthree'},
    {"instruction": "second", "context": "c", "response": "日本語 👩‍🚀"},
]


def write_csv(path, rows=ROWS):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write(path, rows=ROWS):
    """Write rows in the format that the file's name asks for."""
    plain = path.with_name(path.name.removesuffix(".gz").removesuffix(".zst"))
    if plain.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), plain)
    elif plain.suffix == ".csv":
        write_csv(plain, rows)
    else:
        write_jsonl(plain, rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
    if path.suffix == ".zst":
        half = len(plain.read_bytes()) // 2  # two frames in one file, as parallel compressors write
        path.write_bytes(zstandard.compress(plain.read_bytes()[:half]) + zstandard.compress(plain.read_bytes()[half:]))
    if path != plain:
        plain.unlink()
    return path


@pytest.mark.parametrize(
    "name",
    ["d.jsonl", "d.ndjson", "d.json", "d.jsonl.gz", "d.jsonl.zst", "d.JSONL", "d.csv", "d.csv.gz", "d.parquet"],
)
def test_every_format_gives_the_same_examples(tmp_path, name):
    found = kept(write(tmp_path / name), **NO_HOLDOUT)
    assert [(e.instruction, e.context, e.response) for e in found] == [
        (row["instruction"], row["context"], row["response"]) for row in ROWS
    ]
    assert {e.source for e in found} == {"d"}
    assert found[0].id == ("d:2" if ".csv" in name else "d:1")


def test_a_csv_record_is_named_by_the_line_it_starts_on(tmp_path):
    assert [e.id for e in kept(write(tmp_path / "d.csv"), **NO_HOLDOUT)] == ["d:2", "d:4"]


def test_a_folder_is_read_recursively_in_order_of_paths(tmp_path):
    write(tmp_path / "b.jsonl", pairs(1, 0))
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "z.jsonl.gz", pairs(1, 1))
    write(tmp_path / "c.parquet", pairs(1, 2))
    write(tmp_path / "a" / "y.csv", [{"text": "plain text in another layout"}])
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / ".hidden" / "h.jsonl", pairs(1, 3))
    write(tmp_path / "_SUCCESS.jsonl", pairs(1, 4))
    assert [e.id for e in kept(tmp_path, **NO_HOLDOUT)] == ["a/y:2", "a/z:1", "b:1", "c:1"]


def test_an_fsspec_url_is_read_like_a_local_folder(tmp_path):
    system = fsspec.filesystem("memory")
    write_jsonl(tmp_path / "d.jsonl", pairs(3))
    system.pipe("/corpus-test/x/d.jsonl", (tmp_path / "d.jsonl").read_bytes())
    system.pipe("/corpus-test/e.jsonl.gz", gzip.compress((tmp_path / "d.jsonl").read_bytes()))
    whole = kept("memory://corpus-test", deduplicate=False, **NO_HOLDOUT)
    assert [e.id for e in whole] == ["e:1", "e:2", "e:3", "x/d:1", "x/d:2", "x/d:3"]
    assert [e.id for e in kept("memory://corpus-test/x/d.jsonl", **NO_HOLDOUT)] == ["d:1", "d:2", "d:3"]


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "d.jsonl", pairs(2))
    assert len(kept("~/d.jsonl", **NO_HOLDOUT)) == 2


def test_identity_is_content_and_names_but_not_the_place(tmp_path):
    for place in ("one", "two"):
        write_jsonl(tmp_path / place / "sub" / "d.jsonl", pairs(5))
    first, second = corpus(tmp_path / "one").identity(), corpus(tmp_path / "two").identity()
    assert first == second
    assert str(tmp_path) not in json.dumps(first)
    assert corpus(tmp_path / "one" / "sub" / "d.jsonl").identity() == corpus(tmp_path / "two/sub/d.jsonl").identity()
    with (tmp_path / "two/sub/d.jsonl").open("a") as stream:
        stream.write(json.dumps(pairs(1, 9)[0]) + "\n")
    assert corpus(tmp_path / "two").identity() != first
    shutil.move(tmp_path / "one/sub/d.jsonl", tmp_path / "one/sub/e.jsonl")
    assert corpus(tmp_path / "one").identity() != first


def test_identity_changes_with_every_field_that_shapes_the_examples(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", pairs(1))
    base = corpus(path).identity()
    changed = {
        "layout": "instruction",
        "columns": {"id": "n"},
        "turns": "all",
        "prompt": "{instruction}",
        "system": "s",
        "validation_share": 0.1,
        "test_share": 0.1,
        "max_train": 1,
        "max_validation": 1,
        "max_test": 1,
        "min_response": 2,
        "max_response": 9,
        "deduplicate": False,
        "max_malformed": 1,
    }
    for field, value in changed.items():
        assert corpus(path, **{field: value}).identity() != base, field


MALFORMED = {
    "not JSON": (b'{"instruction": "a", ', "not valid JSON"),
    "not an object": (b"[1, 2]", "a JSON list, not an object"),
    "not UTF-8": (b'{"instruction": "a", "response": "\xff"}', "not valid UTF-8 at byte 35"),
    "lone surrogate": (b'{"instruction": "a", "response": "\\ud800"}', "column `response` holds a lone surrogate"),
    "wrong type": (b'{"instruction": "a", "response": 7}', "column `response` holds int \\(7\\), not a text"),
    "missing column": (b'{"instruction": "a"}', "column `response` is missing"),
    "deep nesting": (b"[" * 100_000, "not valid JSON"),
    "huge number": (b'{"instruction": ' + b"9" * 5000 + b"}", "not valid JSON"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_line_stops_the_run_with_file_and_line(tmp_path, kind):
    raw, reason = MALFORMED[kind]
    path = write_jsonl(tmp_path / "d.jsonl", [*pairs(2), b"", raw, *pairs(2, 2)])
    with pytest.raises(DataError, match=f"{path}, line 4: {reason}") as caught:
        list(corpus(path))
    assert "corpus.max_malformed" in caught.value.remedy


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_line_is_put_aside_when_allowed_and_no_good_one_is_lost(tmp_path, kind):
    raw = MALFORMED[kind][0]
    path = write_jsonl(tmp_path / "d.jsonl", [*pairs(2), raw, *pairs(2, 2)])
    quarantine = tmp_path / "q" / "quarantine.jsonl"
    items = [item for _, item in corpus(path, quarantine, max_malformed=1)]
    assert [item.id for item in items] == ["d:1", "d:2", "d:3", "d:4", "d:5"]
    assert items[2].reason == "malformed"
    record = json.loads(quarantine.read_text())
    assert (record["file"], record["line"]) == (str(path), 3)
    assert record["reason"] in items[2].detail
    assert record["raw"] == (
        json.dumps(json.loads(raw))
        if kind in ("wrong type", "missing column", "lone surrogate")
        else raw.decode("utf-8", "backslashreplace")
    )


def test_more_malformed_lines_than_allowed_name_the_first(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [*pairs(1), b"{", *pairs(1, 1), b"}", b"]"])
    quarantine = tmp_path / "quarantine.jsonl"
    with pytest.raises(DataError, match=r"line 2: .*the first of 3 malformed rows, .*allows 2") as caught:
        list(corpus(path, quarantine, max_malformed=2))
    assert str(quarantine) in caught.value.remedy
    assert [json.loads(line)["line"] for line in quarantine.read_text().splitlines()] == [2, 4, 5]
    assert len(rejected(path, max_malformed=3)) == 3


def test_a_quarantine_left_by_an_earlier_pass_is_replaced(tmp_path):
    quarantine = tmp_path / "quarantine.jsonl"
    path = write_jsonl(tmp_path / "d.jsonl", [*pairs(1), b"{"])
    for _ in range(2):
        list(corpus(path, quarantine, max_malformed=5))
        assert len(quarantine.read_text().splitlines()) == 1
    write_jsonl(path, pairs(1))
    list(corpus(path, quarantine, max_malformed=5))
    assert not quarantine.exists()


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in pairs(3)) + b"\r\n\r\n")
    assert len(kept(path, **NO_HOLDOUT)) == 3
    path = tmp_path / "d.csv"
    path.write_bytes(b"\xef\xbb\xbfinstruction,response\r\na,b\r\n\r\nc,d\r\n")
    assert [e.instruction for e in kept(path, **NO_HOLDOUT)] == ["a", "c"]


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "garbage"])
def test_damaged_compressed_data_is_reported_with_its_line(tmp_path, ending, damage):
    path = write(tmp_path / f"d.jsonl.{ending}", pairs(20_000))
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "truncated": whole[:middle],
            "flipped": whole[:middle] + bytes(b ^ 0xFF for b in whole[middle : middle + 64]) + whole[middle + 64 :],
            "garbage": b"this is no archive",
        }[damage]
    )
    with pytest.raises(DataError, match=rf"{path}, line \d+: .*") as caught:
        list(corpus(path))
    if damage != "truncated":
        return
    assert "the compressed data is damaged or ends early" in caught.value.problem
    saved = kept(path, max_malformed=1, **NO_HOLDOUT)
    assert len(saved) > 1000
    assert [e.response for e in saved] == [f"answer {n}" for n in range(len(saved))]
    assert rejected(path, max_malformed=1, **NO_HOLDOUT)[0].id == f"d:{len(saved) + 1}"


CSV_FAULTS = {
    "cells": (b"a,b,c\n", "3 cells under a header of 2"),
    "utf-8": (b"a,\xff\n", "not valid UTF-8"),
    "quotes": (b'"a"x,b\n', "not valid CSV"),
    "white space before quotes": (b'"a", "b"\n', "a cell has white space before its quotes"),
    "and a comma in them": (b'"a", "b, c"\n', "a cell has white space before its quotes"),
}


@pytest.mark.parametrize("kind", CSV_FAULTS)
def test_a_malformed_csv_row_is_put_aside_with_its_raw_text(tmp_path, kind):
    raw, reason = CSV_FAULTS[kind]
    path = tmp_path / "d.csv"
    path.write_bytes(b'instruction,response\nq1,"a\n1"\n' + raw + b"q2,a2\n")
    quarantine = tmp_path / "q.jsonl"
    items = [item for _, item in corpus(path, quarantine, max_malformed=1)]
    assert [item.id for item in items] == ["d:2", "d:4", "d:5"]
    record = json.loads(quarantine.read_text())
    assert record["line"] == 4
    assert record["reason"].startswith(reason)
    assert record["raw"] == raw.rstrip().decode("utf-8", "backslashreplace")


def test_a_cell_may_begin_with_white_space_and_a_quote(tmp_path):
    rows = [("q", ' "Yes", he said, "why not?"'), (' "Why?"', "a")]
    with (tmp_path / "d.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("instruction", "response"), *rows])
    assert [(e.instruction, e.response) for e in kept(tmp_path / "d.csv", **NO_HOLDOUT)] == rows


def test_invalid_text_inside_parquet_loses_only_its_row(tmp_path):
    answers = pa.array([b"fine", b"\xff\xfe", b"good"]).cast(pa.binary())
    broken = pa.StringArray.from_buffers(3, answers.buffers()[1], answers.buffers()[2])
    table = pa.table({"instruction": ["a", "b", "c"], "response": broken})
    pq.write_table(table, tmp_path / "d.parquet")
    items = [item for _, item in corpus(tmp_path / "d.parquet", max_malformed=1)]
    assert [getattr(item, "reason", "kept") for item in items] == ["kept", "malformed", "kept"]


def test_a_damaged_parquet_file_is_a_data_error(tmp_path):
    path = write(tmp_path / "d.parquet")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"d\.parquet, row 1: damaged or not Parquet"):
        list(corpus(path))


def test_a_json_array_is_refused_with_the_command_that_turns_it_into_lines(tmp_path):
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(pairs(3), indent=1))
    with pytest.raises(DataError, match="a JSON array") as caught:
        list(corpus(path))
    assert "jq -c" in caught.value.remedy


@pytest.mark.parametrize("name", ["gone.jsonl", "./gone", "gone/data.parquet"])
def test_a_missing_file_is_a_data_error(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        corpus(name)


def test_a_folder_or_file_without_data_is_a_data_error(tmp_path):
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(DataError, match="no file that can be read"):
        corpus(tmp_path)
    with pytest.raises(DataError, match="no file that can be read"):
        corpus(tmp_path / "notes.md")
    with pytest.raises(DataError, match="holds no rows"):
        list(corpus(write_jsonl(tmp_path / "empty.jsonl", [])))


def test_an_unknown_file_system_is_a_data_error():
    with pytest.raises(DataError, match="no file system for it"):
        corpus("nowhere://bucket/data")


def test_a_file_that_cannot_be_opened_is_a_data_error(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", pairs(1))
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")
    for read in (list, lambda found: found.identity()):
        with pytest.raises(DataError, match=r"b\.jsonl cannot be read: FileNotFoundError"):
            read(corpus(tmp_path))


def test_a_place_that_cannot_be_reached_is_a_data_error(monkeypatch):
    def refused(*_):
        raise RuntimeError("Unable to locate credentials")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "isfile", refused)
    with pytest.raises(DataError, match=r"memory://bucket/d\.jsonl cannot be read: .*credentials"):
        corpus("memory://bucket/d.jsonl")


@pytest.mark.parametrize("field", [{"revision": "main"}, {"subset": "x"}, {"hub_split": "test"}, {"streaming": True}])
def test_hub_fields_are_refused_for_files(tmp_path, field):
    path = write_jsonl(tmp_path / "d.jsonl", pairs(1))
    with pytest.raises(ConfigError, match=f"corpus.{next(iter(field))}"):
        corpus(path, **field)
