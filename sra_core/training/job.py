"""What the stage hands to the training processes, and what they hand back: plain JSON in the job's folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from sra_core.config import AdaptConfig, ObjectiveConfig, RunConfig, TrainingConfig
from sra_core.shards import atomic_write

__all__ = ["WORK", "Job", "Lines", "read_lines"]


WORK = "work"
"""Subfolder of a stage's folder that holds the job while it lasts."""


class Job(BaseModel, frozen=True):
    """One training job."""

    config: RunConfig
    prepared: Path
    """Folder of the prepared stage's result."""
    teacher: Path | None
    """Folder of the cache stage's result; None for objectives without a teacher."""
    initial: Path
    """Folder of the model before training."""
    folder: Path
    """Where checkpoints, events and the best weights go."""
    part: Literal["distill", "adapt"] = "distill"
    """Whose training it is: the student's (`distill`) or the teacher's on the corpus (`adapt`)."""
    micro_batch: int = 0
    """Examples in one forward; 0 takes what the config says."""
    session: str = ""
    """Which start of several processes the job belongs to, where they were started from outside."""

    @property
    def training(self) -> TrainingConfig:
        """How to train."""
        return self.config.adapt if self.part == "adapt" else self.config.distill

    @property
    def objective(self) -> ObjectiveConfig:
        """What to minimise: cross-entropy alone when the teacher is adapted."""
        return ObjectiveConfig(name="sft") if self.part == "adapt" else self.config.objective

    @property
    def trusted(self) -> bool:
        """Whether code that the model's repository ships may run."""
        return (self.config.teacher if self.part == "adapt" else self.config.student_origin).trust_remote_code

    @property
    def side(self) -> Literal["teacher", "student"]:
        """Whose tokens are read."""
        return "teacher" if self.part == "adapt" else "student"

    @property
    def projector_rate(self) -> float:
        """Peak learning rate of the objective's own parameters."""
        training = self.training
        return (
            training.learning_rate if isinstance(training, AdaptConfig) else self.config.distill.projector_learning_rate
        )

    @property
    def micro(self) -> int:
        """Examples of one process in one forward."""
        training = self.training
        return self.micro_batch or (
            training.micro_batch if isinstance(training.micro_batch, int) else training.batch_size
        )

    @property
    def forwards(self) -> int:
        """Forwards of one process in one optimizer step."""
        # Whole: the config and `launch` take divisors of the batch alone, so that a step has the same examples.
        return self.training.accumulation * self.training.batch_size // self.micro

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def weights(self) -> Path:
        """Folder of trained parameters, one file a step that is worth keeping."""
        return self.folder / "weights"

    @property
    def projectors(self) -> Path:
        """The maps that the objective starts with, where they are fitted."""
        return self.folder / "projectors.safetensors"

    @property
    def events(self) -> Path:
        """What this session says: `start` once nothing in `history` will be taken back, messages, progress."""
        return self.folder / "events.jsonl"

    @property
    def history(self) -> Path:
        """Metrics by step, from the first step on, however often training was resumed; they are written here alone."""
        return self.folder / "history.jsonl"

    def keep_initial(self, make: Callable[[], Any]) -> None:
        """Write the model before training, once and whole: every start of the processes reads the same one."""
        if not self.initial.exists():
            partial = self.initial.with_name(".initial.partial")
            shutil.rmtree(partial, ignore_errors=True)
            make().save_pretrained(partial)
            # A kill while it is written must not leave half a model, which every later start would take for whole.
            partial.rename(self.initial)

    def save(self) -> Path:
        """Write the job file that a training process loads."""
        path = self.folder / "job.json"
        with atomic_write(path) as file:
            file.write(self.model_dump_json().encode())
        return path

    @staticmethod
    def load(path: Path) -> Job:
        """Read what `save` wrote."""
        return Job.model_validate_json(path.read_bytes())


class Lines:
    """Lines of JSON that the first training process appends to a file and the stage reads while training runs.

    Args:
        path: The file.
        silent: Write nothing; for all processes but the first.
    """

    def __init__(self, path: Path, *, silent: bool = False) -> None:
        self._path = path
        self._silent = silent

    def append(self, **values: Any) -> None:
        """Add a line."""
        if not self._silent:
            with self._path.open("a") as file:
                file.write(json.dumps(values) + "\n")

    def rewind(self, step: int) -> None:
        """Forget the lines after a step, from which training goes on: it will write them again."""
        if self._silent or not self._path.exists():
            return
        kept = [line for line in read_lines(self._path)[0] if line["step"] <= step]
        with atomic_write(self._path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())


def read_lines(path: Path, position: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Whole lines after a byte position, and the position after them."""
    if not path.exists():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]  # the last line may be in the middle of being written
    return [json.loads(line) for line in whole.splitlines()], position + len(whole)
