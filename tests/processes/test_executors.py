"""Engines that scale out: the shards of prepare and cache made by an executor's processes, the same bytes as here."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest

from sra_core import stages
from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.errors import StorageError
from sra_core.runs import Run
from sra_core.shards import Manifest, StageFolder
from sra_core.watch import Watcher


def make_config(store: Path, **parts: dict) -> RunConfig:
    settings = {
        "store": str(store),
        "tracking": {"enabled": False},
        "corpus": {"max_train": 40},
        "alignment": {"examples_per_shard": 8},
        "cache": {"tokens_per_batch": 400, "device": "cpu"},
    }
    return load_config("smoke", settings | parts)


@contextmanager
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, get_context("spawn")) as executor:
        yield executor


@contextmanager
def dask() -> Iterator[Executor]:
    distributed = pytest.importorskip("distributed", reason="the extra `dask` is not installed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client.get_executor()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Manifest]:
    """The two stages in one process."""
    config = make_config(tmp_path_factory.mktemp("alone") / "store")
    return stages.prepare(config), stages.cache(config)


class Notes(Watcher):
    def __init__(self) -> None:
        self.done: list[tuple[int, int]] = []

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        self.done.append((done, total))


@pytest.mark.slow
@pytest.mark.parametrize("engine", [processes, dask])
def test_an_executor_makes_the_same_bytes(
    engine: object, alone: tuple[Manifest, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, notes = make_config(tmp_path / "store"), Notes()
    with engine() as executor:  # type: ignore[operator]
        monkeypatch.setattr(StageFolder, "write_shard", None)  # this process makes none
        prepared = stages.prepare(config, executor=executor)
        cached = stages.cache(config, notes, executor=executor)
    for one, other in zip((prepared, cached), alone, strict=True):
        assert one.content == other.content
        assert one.counts == other.counts
        assert len(one.shards) >= 5
        assert {path.name for path in Path(one.folder).iterdir()} == {
            path.name for path in Path(other.folder).iterdir()
        }
    assert notes.done[-1] == (40, 40)
    assert len(notes.done) >= 5


def test_the_executor_stays_open_and_finished_shards_are_not_sent_again(
    alone: tuple[Manifest, Manifest], tmp_path: Path
) -> None:
    class Counting(ProcessPoolExecutor):
        sent: list[object]

        def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
            self.sent.append(fn)
            return super().submit(fn, *args, **kwargs)

    config = make_config(tmp_path / "store")
    with Counting(1, get_context("spawn")) as executor:
        executor.sent = []
        prepared = stages.prepare(config, executor=executor)
        assert len(executor.sent) == len(prepared.shards)
        cached = stages.cache(config, executor=executor)
        assert (prepared.content, cached.content) == tuple(manifest.content for manifest in alone)
        for manifest in (prepared, cached):
            folder = Path(manifest.folder)
            (folder / "manifest.json").unlink()
            (folder / manifest.shards[1].name).unlink()
        executor.sent = []
        assert stages.prepare(config, executor=executor).content == prepared.content
        assert len(executor.sent) == 1
        assert stages.cache(config, executor=executor).content == cached.content
        assert len(executor.sent) == 2
        assert executor.submit(int, "7").result() == 7


def test_the_error_of_a_task_ends_the_stage(tmp_path: Path) -> None:
    config = make_config(tmp_path / "store")
    with ThreadPoolExecutor(2) as executor:
        stages.prepare(config, executor=executor)
        folder = Run(config).folder("cache")
        (folder.path / ".claims").parent.mkdir(parents=True)
        (folder.path / ".claims").write_text("a file where a folder should be")
        with pytest.raises(StorageError, match="claims"):
            stages.cache(config, executor=executor)
