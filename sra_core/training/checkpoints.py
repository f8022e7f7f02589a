"""Checkpoints that are whole or absent: saved aside, listed with checksums, renamed; the last few are kept."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sra_core.errors import StorageError, TrainingError
from sra_core.shards import atomic_write, file_digest
from sra_core.training.guards import is_out_of_memory

__all__ = ["Checkpoints", "Progress"]

_TAG = "state"
_LIST = "files.json"


@dataclass(slots=True)
class Progress:
    """Where training stands: all that a resumed run needs beside DeepSpeed's own state.

    Attributes:
        step: Optimizer steps taken.
        world: Training processes.
        best: Lowest held-out bits per byte so far.
        best_step: Step that reached it.
        stale: Validations since then.
        tokens: Tokens that this process has seen.
        seconds: Training time so far.
        skipped: Steps that were not taken because a loss or gradient was not finite.
        spiked: Losses far above the usual one.
        spikes: State of the `SpikeWatch`.
    """

    world: int
    step: int = 0
    best: float = float("inf")
    best_step: int = 0
    stale: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    spiked: int = 0
    spikes: tuple[float, float, int] = (0.0, 0.0, 0)
    random: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one training job.

    Args:
        folder: Where they lie.
        keep: How many are kept.
        rank: This process's number; the first one renames and deletes.
    """

    def __init__(self, folder: Path, keep: int, rank: int) -> None:
        self._folder = folder
        self._keep = keep
        self._rank = rank

    def save(self, engine: Any, progress: Progress) -> None:
        """Save the engine and the progress; all processes call this together.

        Raises:
            StorageError: It could not be written; earlier checkpoints are untouched.
        """
        partial = self._folder / f".step-{progress.step:08d}.partial"
        progress.random = gather(random_state())
        if self._rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        torch.distributed.barrier()  # every process writes its own part into it
        try:
            engine.save_checkpoint(str(partial), tag=_TAG, client_state={"progress": asdict(progress)})
        except (OSError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise self._no_checkpoint(partial, progress.step, error) from error
        torch.distributed.barrier()  # all parts are there before they are listed
        if self._rank == 0:
            try:
                self._publish(partial, progress.step)
            except OSError as error:
                raise self._no_checkpoint(partial, progress.step, error) from error
        torch.distributed.barrier()

    def _no_checkpoint(self, partial: Path, step: int, error: Exception) -> StorageError:
        shutil.rmtree(partial, ignore_errors=True)
        return StorageError(
            f"cannot save a checkpoint at step {step} in {self._folder} (no space left?): {str(error).splitlines()[0]}",
            "free space and run again: training resumes from the checkpoint before, which is whole",
        )

    def load(self, engine: Any) -> tuple[Progress | None, list[str]]:
        """Restore the newest checkpoint that is whole; damaged ones and unfinished ones are removed.

        Returns:
            Its progress, or None if there is none, and a line for each damaged checkpoint that was passed over.

        Raises:
            TrainingError: The checkpoint was written by another number of processes.
        """
        found = gather(self._newest_whole() if self._rank == 0 else None)[0]  # every process takes the same one
        path, damaged = found
        return (self._restore(engine, path) if path else None), damaged

    def _newest_whole(self) -> tuple[Path | None, list[str]]:
        for unfinished in self._folder.glob(".step-*"):
            shutil.rmtree(unfinished)
        damaged: list[str] = []
        for path in self._newest_first():
            problem = damage(path)
            if problem is None:
                return path, damaged
            damaged.append(f"WARNING: checkpoint {path.name} is damaged ({problem}); falling back to the one before")
            shutil.rmtree(path)
        return None, damaged

    def _restore(self, engine: Any, path: Path) -> Progress:
        world = json.loads((path / _LIST).read_bytes())["world"]
        now = torch.distributed.get_world_size()
        if world != now:
            raise TrainingError(
                f"{path} was written by {world} processes and cannot be resumed by {now}",
                f"train with {world} processes again, or delete {path.parent} to train from the start",
            )
        _, state = engine.load_checkpoint(str(path), tag=_TAG)
        progress = Progress(**state["progress"])
        restore_random_state(progress.random[self._rank])  # without it the very next loss is another one
        return progress

    def _publish(self, partial: Path, step: int) -> None:
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        listed = {path.relative_to(partial).as_posix(): file_digest(path) for path in files}
        with atomic_write(partial / _LIST) as file:
            file.write(json.dumps({"world": torch.distributed.get_world_size(), "files": listed}).encode())
        final = self._folder / f"step-{step:08d}"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in list(self._newest_first())[self._keep :]:
            shutil.rmtree(old)

    def _newest_first(self) -> Iterator[Path]:
        return iter(sorted(self._folder.glob("step-*"), reverse=True))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        listed: Mapping[str, str] = json.loads((path / _LIST).read_bytes())["files"]
    except (OSError, ValueError, KeyError):
        return f"{_LIST} is missing or unreadable"
    for name, digest in listed.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if file_digest(path / name) != digest:
            return f"{name} does not match its checksum"
    return None


def random_state() -> dict[str, Any]:
    """Every random state that training draws from."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` took."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def gather(value: Any) -> list[Any]:
    """The value of every process, by rank."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
