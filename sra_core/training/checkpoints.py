"""Checkpoints that are whole or absent: saved aside, listed with checksums, renamed; the last few are kept."""

from __future__ import annotations

import io
import json
import random
import shutil
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sra_core.errors import StorageError, TrainingError
from sra_core.shards import atomic_write, file_digest
from sra_core.training.guards import is_out_of_memory
from sra_core.training.sharing import numbers_that_fit

__all__ = ["Checkpoints", "Progress"]

_TAG = "state"
_LIST = "files.json"  # written last: a folder without it is no checkpoint


@dataclass(slots=True)
class Progress:
    """Where training stands: all that a resumed run needs beside DeepSpeed's own state.

    Attributes:
        step: Optimizer steps taken.
        world: Training processes.
        examples: Examples of a step, over all processes.
        best: Lowest held-out bits per byte so far.
        best_step: Step that reached it.
        exported: Step whose weights are the result, once training has ended.
        stale: Validations since then.
        tokens: Tokens that all processes have seen.
        seconds: Training time so far.
        skipped: Steps that were not taken because a loss or gradient was not finite.
        spiked: Losses far above the usual one.
        spikes: State of the `SpikeWatch`.
        random: Random states, by process.
        earlier: Step up to which other numbers of processes trained, and how many, one pair a change.
    """

    world: int
    step: int = 0
    best: float = float("inf")
    best_step: int = 0
    exported: int = 0
    stale: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    spiked: int = 0
    spikes: tuple[float, float, int] = (0.0, 0.0, 0)
    random: list[dict[str, Any]] = field(default_factory=list)
    examples: int = 0
    earlier: list[tuple[int, int]] = field(default_factory=list)

    @property
    def shared(self) -> str:
        """How many processes trained, and until when where another number took over."""
        return ", then ".join([f"{world} to step {step}" for step, world in self.earlier] + [str(self.world)])


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
        # The dot keeps it out of every search for `step-*` until it is renamed; `load` removes what a kill leaves.
        partial = self._folder / f".step-{progress.step:08d}.partial"
        # Of all processes: but for ZeRO 3, DeepSpeed keeps what is handed over from the first one alone.
        progress.random = gather(random_state())
        if self._rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        torch.distributed.barrier()  # every process writes its own part into it
        try:
            engine.save_checkpoint(str(partial), tag=_TAG, client_state={"progress": asdict(progress)})
        except (OSError, RuntimeError) as error:
            # torch raises RuntimeError for a full disk too; only lack of memory starts again, with smaller forwards.
            if is_out_of_memory(error):
                raise
            raise self._no_checkpoint(partial, progress.step, error) from error
        torch.distributed.barrier()  # all parts are there before they are listed
        if self._rank == 0:
            try:
                self._publish(partial, progress)
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
            TrainingError: The checkpoint was written by another number of processes, which these cannot stand in for.
        """
        # The first process alone looks and removes: to the others folders would vanish while they look.
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
        listed = json.loads((path / _LIST).read_bytes())
        world, now = listed["world"], torch.distributed.get_world_size()
        if world == now:
            state = _load(engine, path)
        else:
            self._refuse_others(engine, path, world, listed.get("examples", 0))
            state = self._load_universal(engine, path)
        progress = Progress(**state["progress"])
        if self._rank < len(progress.random):  # a process that is new goes on from its seed
            restore_random_state(progress.random[self._rank])  # without it the very next loss is another one
        if world != now:
            progress.earlier.append((progress.step, world))
            progress.world = now
        return progress

    def _refuse_others(self, engine: Any, path: Path, world: int, examples: int) -> None:
        now, size = torch.distributed.get_world_size(), engine.train_micro_batch_size_per_gpu()
        problem = f"{path} was written by {world} processes and cannot be resumed by {now}"
        if engine.zero_optimization_stage() == 3:
            raise TrainingError(
                f"{problem}: under ZeRO 3 each process keeps its part of every parameter",
                f"train with {world} processes again, or delete {path.parent} to train from the start",
            )
        if engine.train_batch_size() != examples:
            raise TrainingError(
                f"{problem}: a step would take {engine.train_batch_size()} examples, not {examples}",
                f"{numbers_that_fit(examples, now, size)}; or train with {world} processes again",
            )

    def _load_universal(self, engine: Any, path: Path) -> Any:
        """What another number of processes saved, by way of DeepSpeed's universal checkpoint, which is dropped again.

        The checkpoint stays as it is: a conversion that is killed leaves a folder that the next start removes.
        """
        if not engine.zero_optimization():  # every process saved all of it
            return _load(engine, path)
        # Beside the checkpoint, as the converter is given relative names; the dot has `load` remove it after a kill.
        universal = self._folder / f".{path.name}.universal"
        if self._rank == 0:
            _convert(path, universal)
        torch.distributed.barrier()
        engine._config.load_universal_checkpoint = True  # a setting, but known only once the checkpoint is found
        state = _load(engine, universal)
        engine._config.load_universal_checkpoint = False
        torch.distributed.barrier()
        if self._rank == 0:
            shutil.rmtree(universal)
        return state

    def _publish(self, partial: Path, progress: Progress) -> None:
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        listed = {path.relative_to(partial).as_posix(): file_digest(path) for path in files}
        made = {"world": progress.world, "examples": progress.examples}
        with atomic_write(partial / _LIST) as file:
            file.write(json.dumps(made | {"files": listed}).encode())
        # Everything is in `partial` by now, the list last: from the rename on this is the newest checkpoint.
        final = self._folder / f"step-{progress.step:08d}"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in list(self._newest_first())[self._keep :]:
            shutil.rmtree(old)

    def _newest_first(self) -> Iterator[Path]:
        return iter(sorted(self._folder.glob("step-*"), reverse=True))


def _load(engine: Any, path: Path) -> Any:
    """Restore the engine; gives back what was saved beside it."""
    with chdir(path):  # DeepSpeed (0.19) takes folders for patterns, in which brackets mean something
        _, state = engine.load_checkpoint("", tag=_TAG)
    return state


def _convert(path: Path, universal: Path) -> None:
    """DeepSpeed's universal checkpoint of a checkpoint: every parameter whole, with its moments, in files by its name.

    Raises:
        StorageError: It could not be written.
    """
    from deepspeed.checkpoint import ds_to_universal

    settings = Namespace(
        # Relative, as brackets in folders would be patterns to the converter as well (DeepSpeed 0.19).
        input_folder=str(Path("..", path.name, _TAG)),
        output_folder=_TAG,
        num_extract_workers=1,  # in this process
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # plain training saves no mark of this format, and the converter asks for one
    )
    told = io.StringIO()
    try:
        universal.mkdir()
        with chdir(universal), redirect_stdout(told), redirect_stderr(told):
            ds_to_universal.main(settings)
    except OSError as error:
        raise StorageError(
            f"cannot convert {path} for another number of processes (no space left?): {error}",
            "free space (three times the checkpoint) and run again: the checkpoint itself is whole",
        ) from error


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
    for device, value in enumerate(state["cuda"][: torch.cuda.device_count()]):  # elsewhere there may be fewer
        torch.cuda.set_rng_state(value, device)


def gather(value: Any) -> list[Any]:
    """The value of every process, by rank."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
