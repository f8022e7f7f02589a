"""One training process. A launcher starts it with a job file; `torch.distributed` variables say which one it is."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

from sra_core.errors import SraError
from sra_core.processes import die_with_parent
from sra_core.shards import atomic_write
from sra_core.training.checkpoints import Progress
from sra_core.training.guards import explained, is_out_of_memory
from sra_core.training.job import Job

__all__ = ["main"]


def main(job_file: str) -> int:
    """Train; returns the exit code. An error is written beside the job, where the launcher finds the first one."""
    die_with_parent()
    job = Job.load(Path(job_file))
    rank = int(os.environ["RANK"])
    try:
        # Inside, so that a failing import (CUDA, DeepSpeed) is reported like any other error.
        from sra_core.training.build import train

        progress, layout = train(job)
        if rank == 0:
            _write_result(job, progress, layout)
    except Exception as error:
        traceback.print_exc()
        _write_error(job, rank, error)
        return 1
    return 0


def _write_error(job: Job, rank: int, error: Exception) -> None:
    shown = explained(error, job.training, job.micro, job.part)
    values = {
        "time": time.time(),
        "rank": rank,
        "type": type(shown).__name__,
        "problem": shown.problem if isinstance(shown, SraError) else str(shown),
        "remedy": shown.remedy if isinstance(shown, SraError) else "",
        "known": isinstance(shown, SraError),
        "memory": is_out_of_memory(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    try:
        (job.folder / f"error-{rank}.json").write_text(json.dumps(values))
    except OSError as full:  # the launcher reads it from the output then
        sys.stderr.write(f"{full}\n")


def _write_result(job: Job, progress: Progress, layout: str) -> None:
    values = {
        "steps": progress.step,
        "best_bits_per_byte": progress.best if progress.best < float("inf") else None,
        "best_step": progress.best_step,
        "exported_step": progress.exported,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "skipped": progress.skipped,
        "spikes": progress.spiked,
        "layout": layout,
        "processes": progress.shared,
    }
    with atomic_write(job.folder / "result.json") as file:
        file.write(json.dumps(values).encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
