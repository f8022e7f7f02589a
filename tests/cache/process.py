"""What the fault tests run in processes of their own: the cache stage, slowed down so that a fault lands in it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["sra_core.stages", "sra_core.cache", "sra_core.prepare", "transformers.models.llama"])


def start(target: Callable[..., None], *args: Any) -> BaseProcess:
    """Run a function of this module in a new process that has the heavy imports behind it."""
    process = _CONTEXT.Process(target=target, args=args)
    process.start()
    return process


def run_cache(
    config: dict[str, Any], delay: float = 0.0, notes: str | None = None, environment: dict[str, str] | None = None
) -> None:
    """The cache stage; every forward takes ``delay`` seconds longer, every shard written is noted in a file."""
    os.environ.update(environment or {})
    import torch

    from sra_core import stages
    from sra_core.config import RunConfig

    torch.set_num_threads(1)
    slow_down(delay)
    if notes:
        note_shards(Path(notes))
    stages.cache(RunConfig.model_validate(config))


def hold_and_die(config: dict[str, Any]) -> None:
    """Take the locks of the cache folder and die without giving them back."""
    import signal

    from sra_core.config import RunConfig
    from sra_core.runs import Run

    folder = Run(RunConfig.model_validate(config)).folder("cache")
    with folder.guard():
        for shard in ("train-00000.arrow", "train-00001.arrow"):
            folder.claim(shard)
        os.kill(os.getpid(), signal.SIGKILL)


def slow_down(delay: float) -> None:
    """Make every forward of the teacher take ``delay`` seconds longer."""
    from sra_core.models import TeacherCapture

    forward = TeacherCapture._forward

    def slower(self: TeacherCapture, rows: Any) -> Any:
        time.sleep(delay)
        return forward(self, rows)

    TeacherCapture._forward = slower  # type: ignore[method-assign]


def note_shards(file: Path) -> None:
    """Append the name of every shard that this process writes to a file."""
    from sra_core.shards import StageFolder

    write = StageFolder.write_shard

    def noting(self: StageFolder, name: str, *args: Any, **kwargs: Any) -> Any:
        entry = write(self, name, *args, **kwargs)
        with file.open("a") as stream:
            stream.write(f"{os.getpid()} {name}\n")
        return entry

    StageFolder.write_shard = noting  # type: ignore[method-assign]


if __name__ == "__main__":  # python -m tests.cache.process DELAY ARGUMENTS...: the sra command, slowed down
    import sys

    from sra_core.cli import main

    slow_down(float(sys.argv[1]))
    sys.argv = ["sra", *sys.argv[2:]]
    main()
