"""Faults injected into the cache stage: kills, damage, a full disk, company, stale locks, Ctrl-C."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sra_core import stages
from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.errors import ManifestMismatch, ShardError, StorageError
from sra_core.runs import Run
from sra_core.shards import Manifest
from tests.cache import process as cache_process

EXAMPLES, PER_SHARD = 96, 8
SHARDS = EXAMPLES // PER_SHARD


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Manifest]:
    """A cache that was captured without a fault."""
    config = load_config(
        "smoke",
        {
            "store": str(tmp_path_factory.mktemp("faults") / "store"),
            "tracking": {"enabled": False},
            "corpus": {"max_train": EXAMPLES},
            "alignment": {"examples_per_shard": PER_SHARD},
            "cache": {"tokens_per_batch": 400, "device": "cpu"},
        },
    )
    stages.prepare(config)
    cache_process.run_cache(config.model_dump(mode="json"))
    return config, Run(config).result("cache")


@pytest.fixture
def fresh(reference: tuple[RunConfig, Manifest], tmp_path: Path) -> RunConfig:
    """The same config on a store that has the prepared examples only."""
    config, _ = reference
    store = tmp_path / "store"
    shutil.copytree(Path(config.store) / "prepared", store / "prepared")
    return config.model_copy(update={"store": str(store)})


@pytest.fixture
def finished(reference: tuple[RunConfig, Manifest], tmp_path: Path) -> RunConfig:
    """The same config on a copy of the whole store."""
    config, _ = reference
    shutil.copytree(config.store, tmp_path / "store")
    return config.model_copy(update={"store": str(tmp_path / "store")})


def folder_of(config: RunConfig) -> Path:
    return Run(config).folder("cache").path


def finished_shards(config: RunConfig) -> dict[str, tuple[int, int]]:
    """Inode and time of every shard that has its receipt: what must not be touched again."""
    receipts = folder_of(config).glob("*.receipt.json")
    states = {path.name.removesuffix(".receipt.json"): path for path in receipts}
    return {name: stamp(folder_of(config) / name) for name in states}


def stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_ino, state.st_mtime_ns


def assert_same_bytes(config: RunConfig, reference: Manifest) -> None:
    manifest = Run(config).verified("cache")
    assert manifest.content == reference.content
    assert len(manifest.shards) == SHARDS
    for entry in (*manifest.shards, *manifest.files):
        assert (Path(manifest.folder) / entry.name).read_bytes() == (Path(reference.folder) / entry.name).read_bytes()
    assert not list(Path(manifest.folder).rglob("*.partial"))


def wait_for_shards(config: RunConfig, count: int, seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while len(list(folder_of(config).glob("*.receipt.json"))) < count:
        assert time.monotonic() < limit, "no shard was finished in time"
        time.sleep(0.02)


@pytest.mark.integration
def test_ten_kills_at_random_moments_change_no_byte_and_redo_no_finished_shard(
    fresh: RunConfig, reference: tuple[RunConfig, Manifest]
) -> None:
    chance, kept, landed = random.Random(7), {}, 0
    for _ in range(10):
        process = cache_process.start(cache_process.run_cache, fresh.model_dump(mode="json"), 0.05)
        have = len(kept)
        wait_for_shards(fresh, have) if have else time.sleep(chance.uniform(0.5, 3))
        time.sleep(chance.uniform(0.0, 1.5))
        landed += process.is_alive()
        process.kill()
        process.join()
        now = finished_shards(fresh)
        assert {name: now.get(name) for name in kept} == kept
        kept = now
    assert landed >= 3
    cache_process.run_cache(fresh.model_dump(mode="json"))
    now = finished_shards(fresh)
    assert {name: now[name] for name in kept} == kept
    assert_same_bytes(fresh, reference[1])


@pytest.mark.integration
def test_a_kill_while_a_shard_is_written_leaves_no_half_shard(
    fresh: RunConfig, reference: tuple[RunConfig, Manifest]
) -> None:
    process = cache_process.start(cache_process.run_cache, fresh.model_dump(mode="json"), 0.02)
    wait_for_shards(fresh, 2)
    process.kill()
    process.join()
    with pytest.raises(ManifestMismatch, match=r"no result of cache|damaged"):
        Run(fresh).result("cache")
    assert len(finished_shards(fresh)) >= 2
    cache_process.run_cache(fresh.model_dump(mode="json"))
    assert_same_bytes(fresh, reference[1])


@pytest.mark.integration
def test_two_processes_share_the_work_and_make_every_shard_once(
    fresh: RunConfig, reference: tuple[RunConfig, Manifest], tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    values = fresh.model_dump(mode="json")
    processes = [cache_process.start(cache_process.run_cache, values, 0.2, str(notes)) for _ in range(2)]
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0, 0]
    lines = [line.split() for line in notes.read_text().splitlines()]
    assert sorted(name for _, name in lines) == sorted(shard.name for shard in reference[1].shards)
    assert len({pid for pid, _ in lines}) == 2
    assert_same_bytes(fresh, reference[1])


@pytest.mark.integration
def test_helper_processes_give_the_same_bytes(fresh: RunConfig, reference: tuple[RunConfig, Manifest]) -> None:
    config = fresh.model_copy(update={"cache": fresh.cache.model_copy(update={"workers": 2})})
    stages.cache(config)
    assert_same_bytes(config, reference[1])


@pytest.mark.integration
def test_locks_of_a_dead_process_are_taken_over(fresh: RunConfig, reference: tuple[RunConfig, Manifest]) -> None:
    process = cache_process.start(cache_process.hold_and_die, fresh.model_dump(mode="json"))
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert folder_of(fresh).with_suffix(".lock").exists()
    started = time.monotonic()
    cache_process.run_cache(fresh.model_dump(mode="json"))
    assert time.monotonic() - started < 60
    assert_same_bytes(fresh, reference[1])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("fault", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", ["train-00003.arrow", "lm_head.safetensors"])
def test_damage_is_found_and_mended_without_touching_the_rest(
    name: str, fault, finished: RunConfig, reference: tuple[RunConfig, Manifest]
) -> None:
    before = finished_shards(finished)
    fault(folder_of(finished) / name)
    if fault is flip:
        with pytest.raises(ShardError, match=f"{name} does not match its checksum"):
            Run(finished).verified("cache")
    with pytest.raises(ManifestMismatch):
        Run(finished).result("cache")
    cache_process.run_cache(finished.model_dump(mode="json"))
    after = finished_shards(finished)
    assert {other for other in before if before[other] != after[other]} <= {name}
    assert_same_bytes(finished, reference[1])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    try:
        made = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.strip()}")
    yield place
    gc.collect()  # a model in a cycle of references holds a memory map of this disk
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_stops_with_a_clear_error_and_the_run_goes_on_after_space_is_freed(
    small_disk: Path, reference: tuple[RunConfig, Manifest]
) -> None:
    config, made = reference
    store = small_disk / "store"
    shutil.copytree(Path(config.store) / "prepared", store / "prepared")
    config = config.model_copy(update={"store": str(store)})
    room = sum(shard.bytes for shard in made.shards) // 2 + sum(file.bytes for file in made.files)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(os.urandom(max(0, free - room)))
    with pytest.raises(StorageError, match="no space left while writing") as caught:
        stages.cache(config)
    assert "free space" in caught.value.remedy
    kept = finished_shards(config)
    assert 0 < len(kept) < SHARDS
    assert not list(folder_of(config).rglob("*.partial"))
    (small_disk / "filler").unlink()
    stages.cache(config)
    now = finished_shards(config)
    assert {name: now[name] for name in kept} == kept
    assert_same_bytes(config, made)


@pytest.mark.integration
def test_ctrl_c_ends_within_seconds_and_says_how_to_go_on(
    fresh: RunConfig, reference: tuple[RunConfig, Manifest]
) -> None:
    fields = ("corpus.max_train", "alignment.examples_per_shard", "cache.tokens_per_batch", "store", "cache.device")
    values = (EXAMPLES, PER_SHARD, 400, fresh.store, "cpu")
    settings = [part for pair in zip(fields, values, strict=True) for part in ("--set", f"{pair[0]}={pair[1]}")]
    command = [sys.executable, "-m", "tests.cache.process", "0.3", "cache", "smoke", *settings]
    process = subprocess.Popen(
        [*command, "--set", "tracking.enabled=false"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    wait_for_shards(fresh, 1)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - started < 8
    assert process.returncode == 130
    assert "run the same command again to go on from here" in errors
    assert "Traceback" not in errors
    kept = finished_shards(fresh)
    assert not list(folder_of(fresh).rglob("*.partial"))
    cache_process.run_cache(fresh.model_dump(mode="json"))
    now = finished_shards(fresh)
    assert {name: now[name] for name in kept} == kept
    assert_same_bytes(fresh, reference[1])
