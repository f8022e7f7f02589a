"""Training processes: started, heard, and gone with whoever started them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sra_core.config import DistillConfig, RunConfig
from sra_core.config.load import load_config
from sra_core.errors import ConfigError, TrainingError
from sra_core.processes import free_port
from sra_core.training import Job, hosts, launch, launcher
from sra_core.training.hosts import session, start_of
from sra_core.watch import Watcher

ROOT = Path(__file__).parents[2]


class Listener(Watcher):
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.losses: list[tuple[int | None, float]] = []

    def message(self, text: str) -> None:
        self.texts.append(text)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        assert "step" not in values
        if "train/loss" in values:
            self.losses.append((step, values["train/loss"]))


@pytest.fixture(autouse=True)
def _stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "WORKER", "tests.training.stub_worker")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def make(folder: Path, what: str, **distill: Any) -> Job:
    config = RunConfig(name=what, distill=DistillConfig.model_validate({"batch_size": 8, **distill}))
    work = folder / "work"
    work.mkdir(exist_ok=True)
    return Job(config=config, prepared=folder, teacher=None, initial=folder, folder=work)


def pids(job: Job, count: int, patience: float = 60.0) -> list[int]:
    end = time.monotonic() + patience
    while len(found := list(job.folder.glob("pid-*"))) < count and time.monotonic() < end:
        time.sleep(0.05)
    assert len(found) == count
    time.sleep(0.2)
    return [int(path.read_text().split()[0]) for path in found]


def all_gone(processes: list[int], within: float) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        if not any(_runs(process) for process in processes):
            return True
        time.sleep(0.05)
    return False


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_one_process_reports_and_ends(tmp_path: Path) -> None:
    listener = Listener()
    job = make(tmp_path, "fine")
    assert launch(job, listener) == {"steps": 3}
    assert listener.texts == ["micro 0"]
    assert (job.folder / "pid-0").read_text().endswith(" 1")
    assert "rank 0 is here" in (job.folder / "worker.log").read_text()


def test_gpu_memory_of_earlier_stages_is_given_back_before_others_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, started = make(tmp_path, "fine"), list[bool]()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: started.append((job.folder / "pid-0").exists()))
    launch(job, Watcher())
    assert started == [False]


def test_a_killed_process_is_an_error_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"exit code -9 \(killed; by the system, if memory ran out\)") as caught:
        launch(make(tmp_path, "die"), Watcher())
    assert "rank 0 is here" in caught.value.problem
    assert "worker.log" in caught.value.remedy


def test_steps_that_a_resumed_training_writes_again_are_told_once(tmp_path: Path) -> None:
    listener, job = Listener(), make(tmp_path, "resumed")
    job.history.write_text("".join(f'{{"step": {step}, "train/loss": -1.0}}\n' for step in range(4)))
    launch(job, listener)
    assert listener.losses == [(step, float(step)) for step in range(5)]


def test_auto_micro_batch_halves_until_it_fits(tmp_path: Path) -> None:
    listener = Listener()
    launch(make(tmp_path, "memory", micro_batch="auto"), listener)
    assert listener.texts == [
        "out of memory; going on with 4 examples in one forward",
        "out of memory; going on with 2 examples in one forward",
        "micro 2",
    ]


def test_lack_of_memory_is_an_error_where_nothing_is_automatic(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="out of memory"):
        launch(make(tmp_path, "memory"), Watcher())


@pytest.mark.integration
def test_the_first_failing_ranks_traceback_is_the_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="training process 1 failed with ValueError: rank 1 broke") as caught:
        launch(make(tmp_path, "fail", processes=2), Watcher())
    assert "Traceback of rank 1" in caught.value.problem


def _script(folder: Path, what: str, processes: int) -> str:
    return f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
from sra_core.training import hosts, launch
from sra_core.watch import Watcher
from tests.training.test_launcher import make
hosts.WORKER = "tests.training.stub_worker"
launch(make(Path({str(folder)!r}), {what!r}, processes={processes}), Watcher())
"""


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_launcher(tmp_path: Path, number: int) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _script(tmp_path, "sleep", 2)], stderr=subprocess.DEVNULL)
    job = make(tmp_path, "sleep")
    ranks = pids(job, 2)
    parent.send_signal(number)
    sent = time.monotonic()
    assert all_gone(ranks, within=10.0)
    while (left := _mentioning(job.folder)) and time.monotonic() - sent < 10:
        time.sleep(0.1)
    assert left == []
    parent.wait(10)


def _mentioning(folder: Path) -> list[str]:
    """Processes whose command line names the job: torchrun itself among them."""
    return subprocess.run(["pgrep", "-f", f"{folder}/job.json"], capture_output=True, text=True).stdout.split()


@pytest.mark.integration
def test_what_a_rank_has_started_goes_too(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _script(tmp_path, "stubborn", 1)], stderr=subprocess.DEVNULL)
    ranks = pids(make(tmp_path, "stubborn"), 2)
    parent.send_signal(signal.SIGTERM)
    assert all_gone(ranks, within=10.0)
    parent.wait(10)


@pytest.mark.integration
def test_processes_that_torchrun_started_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_RANK": "0"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    job = make(tmp_path, "fine")
    monkeypatch.setenv("RANK", "0")
    assert hosts.inside_torchrun()
    assert launch(job, Watcher()) == {"steps": 3}
    monkeypatch.setenv("RANK", "1")
    launcher._join(job.folder / "job.json", tmp_path / "manifest.json", job.folder / "worker-1.log")
    assert sorted(path.name for path in job.folder.glob("pid-*")) == ["pid-0", "pid-1"]
    monkeypatch.setenv("MASTER_PORT", "1")
    assert Job.load(job.folder / "job.json").session != session()
    (tmp_path / "manifest.json").touch()
    launcher._join(
        job.folder / "job.json", tmp_path / "manifest.json", job.folder / "worker-1.log"
    )  # done: returns at once


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


def test_the_command_follows_from_the_processes_and_from_torchrun() -> None:
    alone = start_of(DistillConfig(), "job.json", {})
    assert alone.command == [sys.executable, "-m", hosts.WORKER, "job.json"]
    assert (alone.environment["RANK"], alone.environment["WORLD_SIZE"]) == ("0", "1")
    several = start_of(DistillConfig(processes=4), "job.json", {})
    assert "torch.distributed.run --nproc_per_node 4" in " ".join(several.command)
    assert several.environment == {}
    beside = start_of(DistillConfig(processes=4), "job.json", TORCHRUN)
    assert beside.command == alone.command
    assert beside.environment == {}, "torchrun has set it"
    assert (hosts.external_rank({}), hosts.external_rank(TORCHRUN)) == (0, 1)


@pytest.mark.parametrize("field", ["launcher", "hostfile"])
def test_fields_of_earlier_versions_say_what_to_do_instead(field: str) -> None:
    with pytest.raises(ConfigError, match=f"distill.{field}: is not a field any more.*torchrun"):
        load_config("smoke", {"distill": {field: "slurm"}})
