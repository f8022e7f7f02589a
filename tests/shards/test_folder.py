"""Stage folders: whole or absent, receipts, verification, claims, and what is said about a result that is missing."""

from __future__ import annotations

import errno
import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sra_core.errors import ShardError, StorageError
from sra_core.shards import (
    PREPARED_SCHEMA,
    FileEntry,
    Manifest,
    PreparedSet,
    StageFolder,
    atomic_write,
    differences,
    fingerprint,
    prepared_batch,
    read_manifest,
    verify,
)
from tests.shards.make import prepared_rows, teacher_rows, write_teacher


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    folder = StageFolder(tmp_path / "store", "cache", {"layers": [2, 5], "cache": {"dtype": "float32"}})
    folder.path.mkdir(parents=True)
    return folder


def names(path: Path) -> set[str]:
    return {each.name for each in path.iterdir() if each.is_file()}


def test_prepared_rows_come_back(tmp_path: Path) -> None:
    rows = prepared_rows(7)
    folder = StageFolder(tmp_path, "prepare", {})
    entries = [
        folder.write_shard(f"{split}.arrow", split, [prepared_batch(part)], PREPARED_SCHEMA)
        for split, part in (("train", rows[:5]), ("test", rows[5:]))
    ]
    back = PreparedSet(folder.commit(shards=entries), "train")
    assert len(back) == 5
    for row, read in zip(rows[:5], back, strict=True):
        for name in ("id", "prompt", "response", "source", "teacher_response", "student_response"):
            assert getattr(read, name) == getattr(row, name)
        for name in ("teacher_ids", "student_ids", "teacher_spans", "student_spans"):
            assert getattr(read, name).tolist() == getattr(row, name).tolist()
            assert getattr(read, name).dtype == "int32"
    assert back.tokens("teacher").tolist() == [5, 6, 7, 8, 9]
    assert back.spans().tolist() == [0, 1, 2, 3, 4]


def write_half(path: Path, error: BaseException) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise error


def test_a_file_that_could_not_be_finished_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with pytest.raises(RuntimeError, match="midway"):
        write_half(path, RuntimeError("midway"))
    assert names(path.parent) == set()
    with atomic_write(path) as file:
        file.write(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_half(path, KeyboardInterrupt())
    assert path.read_bytes() == b"old"
    assert names(path.parent) == {"file"}


def test_a_full_disk_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no space left") as caught, atomic_write(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "finished work is kept" in caught.value.remedy
    assert names(tmp_path) == set()


def test_a_shard_counts_as_finished_only_with_its_receipt_and_all_its_bytes(folder: StageFolder) -> None:
    write_teacher(folder, [teacher_rows(3), teacher_rows(4, seed=1), teacher_rows(5, seed=2), teacher_rows(2, seed=3)])
    assert list(folder.finished_shards()) == [f"train-{n}.arrow" for n in range(4)]
    (folder.path / "train-0.arrow.receipt.json").unlink()
    flip_a_byte(folder.path / "train-1.arrow")
    (folder.path / "train-2.arrow").unlink()
    assert list(folder.finished_shards()) == ["train-3.arrow"]
    assert not (folder.path / "train-1.arrow.receipt.json").exists()


def test_a_shard_made_from_another_upstream_shard_is_made_again(folder: StageFolder) -> None:
    from sra_core.shards import teacher_batch, teacher_schema

    schema = teacher_schema([2, 5], "float32", 8)
    folder.write_shard("a.arrow", "train", [teacher_batch(teacher_rows(2), schema)], schema, source="1" * 64)
    assert list(folder.finished_shards({"a.arrow": "1" * 64})) == ["a.arrow"]
    assert folder.finished_shards({"a.arrow": "2" * 64}) == {}


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    made = [
        write_teacher(StageFolder(tmp_path / name, "cache", {}), [teacher_rows(9)], "int8", "zstd") for name in "ab"
    ]
    assert made[0].shards == made[1].shards
    assert made[0].content == made[1].content


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("fault", "cheap"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "bytes instead of"),
        (lambda path: path.write_bytes(path.read_bytes()[:-6] + b"ARROW2"), "does not end like an Arrow file"),
        (flip_a_byte, None),
    ],
)
def test_verification_sees_what_its_mode_promises(folder: StageFolder, fault, cheap: str | None) -> None:
    manifest = write_teacher(folder, [teacher_rows(3), teacher_rows(3, seed=1)])
    verify(folder.path, manifest.shards, full=True)
    fault(folder.path / "train-1.arrow")
    if cheap:
        with pytest.raises(ShardError, match=cheap):
            verify(folder.path, manifest.shards)
        assert folder.manifest() is None
    else:
        verify(folder.path, manifest.shards)
        assert folder.manifest() is not None
    with pytest.raises(ShardError, match=r"train-1\.arrow"):
        verify(folder.path, manifest.shards, full=True)
    assert folder.manifest(full=True) is None


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "", "a\\b", ".."])
def test_a_manifest_cannot_name_files_outside_its_folder(folder: StageFolder, name: str) -> None:
    with pytest.raises(ValidationError, match="leaves the stage folder"):
        FileEntry(name=name, bytes=0, sha256="0" * 64)
    write_teacher(folder, [teacher_rows(1)])
    text = folder.manifest_path.read_text().replace("train-0.arrow", name.replace("\\", "\\\\"))
    folder.manifest_path.write_text(text)
    with pytest.raises(ShardError, match="is not a manifest"):
        read_manifest(folder.path)
    assert folder.manifest() is None


@given(st.text(min_size=1))
def test_names_that_are_accepted_stay_inside(name: str) -> None:
    try:
        entry = FileEntry(name=name, bytes=0, sha256="0" * 64)
    except ValidationError:
        return
    root = Path("/store/teacher/abc")
    assert (root / entry.name).as_posix().startswith("/store/teacher/abc")
    assert ".." not in Path(entry.name).parts


def test_a_manifest_is_stale_when_what_it_read_has_changed(tmp_path: Path) -> None:
    upstream = StageFolder(tmp_path, "prepare", {"a": 1})
    first = upstream.commit(shards=[upstream.write_shard("x.arrow", "train", [], PREPARED_SCHEMA)])
    folder = StageFolder(tmp_path, "cache", {"b": 1})
    folder.commit(upstream=[first])
    assert folder.manifest([first]) is not None
    rows = [prepared_batch(prepared_rows(2))]
    second = upstream.commit(shards=[upstream.write_shard("x.arrow", "train", rows, PREPARED_SCHEMA)])
    assert folder.manifest([second]) is None


def test_fingerprints_differ_in_every_part_and_not_in_order() -> None:
    base = {"layers": [2, 5], "cache": {"dtype": "int8", "compression": "none"}, "prepared": {"corpus": {"x": None}}}
    assert fingerprint(base) == fingerprint(dict(reversed(base.items())))
    assert len(fingerprint(base)) == 16
    others = [
        {**base, "layers": [5, 2]},
        {**base, "cache": {"dtype": "int8", "compression": "zstd"}},
        {**base, "prepared": {"corpus": {"x": 0}}},
        {**base, "extra": None},
    ]
    assert len({fingerprint(other) for other in [base, *others]}) == 5


def test_differences_name_every_leaf() -> None:
    wanted = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    found = {"a": {"b": 1, "c": [1, 3]}, "e": 5}
    assert list(differences(wanted, found)) == [("a.c", [1, 2], [1, 3]), ("d", 4, None), ("e", None, 5)]
    assert list(differences(wanted, wanted)) == []


def test_a_missing_result_is_explained_by_the_nearest_one(tmp_path: Path) -> None:
    wanted = StageFolder(tmp_path, "cache", {"cache": {"dtype": "int8"}, "layers": [2, 3]})
    assert "no result of cache in" in wanted.missing("sra cache")[0]
    for identity in (
        {"cache": {"dtype": "bfloat16"}, "layers": [2, 3]},
        {"cache": {"dtype": "float32"}, "layers": [9]},
    ):
        StageFolder(tmp_path, "cache", identity).commit()
    problem, remedy = wanted.missing("sra cache")
    assert "cache.dtype (wanted 'int8', found 'bfloat16')" in problem
    assert "layers" not in problem
    assert remedy == "run `sra cache` with this config first"
    wanted.path.mkdir()
    wanted.manifest_path.write_text("{")
    assert "is damaged" in wanted.missing("sra cache")[0]


def test_one_process_at_a_time_holds_a_folder_and_partial_files_of_dead_ones_go(folder: StageFolder) -> None:
    (folder.path / ".train-0.arrow.99999.partial").write_bytes(b"left over")
    told = []
    with folder.lock():
        assert names(folder.path) == set()
        other = StageFolder(folder.path.parents[1], "cache", folder.identity)
        with pytest.raises(StorageError, match="in use by another process"), other.lock(lambda: told.append(1), 0.05):
            pass
    assert told == [1]
    with folder.lock(timeout=0):
        pass


def test_a_claim_is_exclusive_and_free_after_release(folder: StageFolder) -> None:
    other = StageFolder(folder.path.parents[1], "cache", folder.identity)
    claim = folder.claim("a.arrow")
    assert claim is not None
    assert folder.claim("a.arrow") is None
    assert other.claim("a.arrow") is None
    free = other.claim("b.arrow")
    assert free is not None
    free.release()
    claim.release()
    again = other.claim("a.arrow")
    assert again is not None
    again.release()


def claim_and_die(store: str, identity: dict, name: str) -> None:
    import os
    import signal

    folder = StageFolder(store, "cache", identity)
    assert folder.claim(name) is not None
    (folder.path / f".{name}.{os.getpid()}.partial").write_bytes(b"half a shard")
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_claim_of_a_killed_process_is_free_at_once_and_its_partial_file_goes(folder: StageFolder) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=claim_and_die, args=(str(folder.path.parents[1]), folder.identity, "a.arrow")
    )
    process.start()
    process.join(20)
    assert process.exitcode == -9
    assert any(name.endswith(".partial") for name in names(folder.path))
    claim = folder.claim("a.arrow")
    assert claim is not None
    assert names(folder.path) == set()
    claim.release()


def test_manifests_refuse_what_they_do_not_know(folder: StageFolder) -> None:
    manifest = write_teacher(folder, [teacher_rows(1)])
    values = json.loads(folder.manifest_path.read_text())
    assert "folder" not in values
    assert Manifest.model_validate(values).content == manifest.content
    with pytest.raises(ValidationError):
        Manifest.model_validate({**values, "surprise": 1})
