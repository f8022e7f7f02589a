"""Stores behind a URL: what is made is sent, what is finished is fetched and checked, claims hold between machines."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from sra_core.errors import ShardError, StorageError
from sra_core.shards import Remote, StageFolder, TeacherSet, is_url, local_copy
from sra_core.shards.remote import Lease
from tests.shards.make import teacher_rows, write_teacher

IDENTITY = {"layers": [2, 5]}


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "bucket").mkdir()
    return f"file://{tmp_path}/bucket"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes the process look like another machine: one with an empty local copy."""

    def become(name: str) -> None:
        monkeypatch.setenv("SRA_CACHE_HOME", str(tmp_path / name))

    return become


def test_urls_are_told_from_folders(machine) -> None:
    machine("a")
    assert is_url("s3://bucket/store")
    assert not is_url("/data/store")
    assert not is_url("sra-store")
    assert local_copy("s3://bucket/a") != local_copy("s3://bucket-a")
    assert local_copy("s3://bucket/a").parts[-3:-1] == ("a", "stores")


def test_what_one_machine_makes_another_reads(url: str, tmp_path: Path, machine) -> None:
    machine("a")
    rows = teacher_rows(7)
    made = write_teacher(StageFolder(url, "cache", IDENTITY), [rows[:4], rows[4:]])
    stored = tmp_path / "bucket" / "teacher" / made.fingerprint
    assert {path.name for path in stored.iterdir()} >= {"manifest.json", "train-0.arrow", "train-0.arrow.receipt.json"}
    machine("b")
    folder = StageFolder(url, "cache", IDENTITY)
    assert not folder.path.exists()
    found = folder.manifest()
    assert found.content == made.content
    assert found.folder == str(folder.path) != made.folder
    assert [row.id for row in TeacherSet(found, "train")] == [row.id for row in rows]


def test_files_are_fetched_once(url: str, tmp_path: Path, machine) -> None:
    machine("a")
    made = write_teacher(StageFolder(url, "cache", IDENTITY), [teacher_rows(3)])
    machine("b")
    folder = StageFolder(url, "cache", IDENTITY)
    folder.manifest()
    (tmp_path / "bucket" / "teacher" / made.fingerprint / "train-0.arrow").unlink()
    assert folder.manifest() is not None
    (folder.path / "train-0.arrow").unlink()
    assert folder.manifest() is None


@pytest.mark.parametrize("finished", [True, False])
def test_what_lies_here_of_an_earlier_result_is_not_taken_for_the_new_one(url: str, machine, finished: bool) -> None:
    machine("b")
    write_teacher(StageFolder(url, "cache", IDENTITY), [teacher_rows(3)])
    machine("a")
    folder = StageFolder(url, "cache", IDENTITY)
    folder.reset()
    made = write_teacher(folder, [teacher_rows(3, spread=2.0)])  # as many bytes, and others
    machine("b")
    again = StageFolder(url, "cache", IDENTITY)
    if not finished:
        assert again.finished_shards() == {shard.name: shard for shard in made.shards}
    wanted = teacher_rows(3, spread=2.0)
    for row, back in zip(wanted, TeacherSet(again.manifest(), "train"), strict=True):
        np.testing.assert_array_equal(back.centers[5], row.centers[5])


def test_an_object_that_is_not_what_its_entry_says_is_refused(url: str, tmp_path: Path, machine) -> None:
    machine("a")
    made = write_teacher(StageFolder(url, "cache", IDENTITY), [teacher_rows(3)])
    path = tmp_path / "bucket" / "teacher" / made.fingerprint / "train-0.arrow"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    machine("b")
    folder = StageFolder(url, "cache", IDENTITY)
    with pytest.raises(ShardError, match="does not match its checksum"):
        folder.fetch(made.shards)
    assert folder.manifest() is None
    assert not list(folder.path.glob("*.arrow"))
    assert folder.finished_shards() == {}


def test_finished_shards_of_other_machines_count_without_being_fetched(url: str, tmp_path: Path, machine) -> None:
    machine("a")
    made = write_teacher(StageFolder(url, "cache", IDENTITY), [teacher_rows(3), teacher_rows(2, seed=1)])
    machine("b")
    folder = StageFolder(url, "cache", IDENTITY)
    folder.path.mkdir(parents=True)
    assert folder.finished_shards() == {shard.name: shard for shard in made.shards}
    assert not list(folder.path.glob("*.arrow"))
    with (tmp_path / "bucket" / "teacher" / made.fingerprint / "train-1.arrow").open("ab") as file:
        file.write(b"more")
    assert list(folder.finished_shards()) == ["train-0.arrow"]


def test_a_claim_holds_between_machines(url: str, machine) -> None:
    machine("a")
    first = StageFolder(url, "cache", IDENTITY)
    claim = first.claim("train-0.arrow")
    machine("b")
    second = StageFolder(url, "cache", IDENTITY)
    assert second.claim("train-0.arrow") is None
    claim.release()
    again = second.claim("train-0.arrow")
    assert again is not None
    again.release()


def test_a_lease_that_is_kept_is_respected_and_an_abandoned_one_taken_over(url: str) -> None:
    remote = Remote(f"{url}/claims")
    owner, other = Lease(remote, "x", seconds=0.6), Lease(remote, "x", seconds=0.6)
    assert owner.acquire()
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        assert not other.acquire()
        time.sleep(0.1)
    owner._stop.set()  # as if the process had died: nobody rewrites the claim
    owner._beat.join()
    assert not other.acquire()
    time.sleep(0.8)
    assert other.acquire()
    other.release()
    assert remote.read("x") is None


def test_who_was_cut_off_leaves_the_claim_to_whoever_took_over(url: str) -> None:
    remote = Remote(f"{url}/claims")
    cut_off = Lease(remote, "x", seconds=0.3)
    assert cut_off.acquire()
    remote.write("x", b"another machine 0")  # the lease ran out meanwhile
    time.sleep(0.3)
    assert remote.read("x") == b"another machine 0"
    cut_off.release()
    assert remote.read("x") == b"another machine 0"


def test_a_claim_that_is_taken_again_is_another_one(url: str) -> None:
    remote = Remote(f"{url}/claims")
    lease, other = Lease(remote, "x", seconds=60), Lease(remote, "x", seconds=0.3)
    assert lease.acquire()
    assert not other.acquire()
    lease.release()
    time.sleep(0.4)
    assert lease.acquire()
    assert not other.acquire(), "what it saw a while ago is not what is there now"
    lease.release()


def test_a_result_reset_on_one_machine_is_gone_for_all(url: str, machine) -> None:
    machine("a")
    folder = StageFolder(url, "cache", IDENTITY)
    write_teacher(folder, [teacher_rows(1)])
    machine("b")
    other = StageFolder(url, "cache", IDENTITY)
    assert other.manifest() is not None
    folder.reset()
    assert other.manifest() is None
    assert "there is no result" in other.missing("sra cache")[0]


def test_the_nearest_result_of_a_remote_store_is_found(url: str, machine) -> None:
    machine("a")
    StageFolder(url, "cache", {"cache": {"dtype": "int8"}}).commit()
    machine("b")
    wanted = StageFolder(url, "cache", {"cache": {"dtype": "float32"}})
    assert "cache.dtype (wanted 'float32', found 'int8')" in wanted.missing("sra cache")[0]
    (sibling,) = wanted.siblings()
    assert wanted.sibling(sibling).manifest().identity == {"cache": {"dtype": "int8"}}


def test_a_protocol_without_its_library_says_what_to_install(machine) -> None:
    machine("a")
    with pytest.raises(StorageError, match="nosuch") as caught:
        StageFolder("nosuch://bucket", "cache", IDENTITY).manifest()
    assert "install" in caught.value.remedy


def test_the_doctor_tries_a_remote_store(url: str, tmp_path: Path, machine) -> None:
    from sra_core.config.load import load_config
    from sra_core.doctor import _store

    machine("a")
    (finding,) = _store(load_config("smoke", {"store": f"{url}/new"}))
    assert finding.level == "good"
    assert not any(path.is_file() for path in (tmp_path / "bucket").rglob("*"))
    (finding,) = _store(load_config("smoke", {"store": "nosuch://bucket"}))
    assert finding.level == "bad"
    assert "install" in finding.text
