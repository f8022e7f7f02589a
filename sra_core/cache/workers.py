"""Helper processes that capture shards of the same cache, one a GPU where there are several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context

import torch

from sra_core.cache.teacher import load_teacher, make_capture
from sra_core.cache.writer import capture_shards
from sra_core.config import RunConfig
from sra_core.processes import die_with_parent
from sra_core.shards import Manifest, StageFolder
from sra_core.watch import Watcher

__all__ = ["helpers"]


@contextmanager
def helpers(config: RunConfig, prepared: Manifest, folder: StageFolder, watch: Watcher) -> Iterator[None]:
    """Run ``cache.workers - 1`` helpers beside this process while the context lasts.

    Whatever a helper does not finish, this process does: a helper that fails costs time, never the result.
    """
    threads = torch.get_num_threads()
    count = config.cache.workers
    # Not forked: a CUDA context does not survive that.
    context = get_context("spawn")
    processes = [
        context.Process(target=_help, args=(config, prepared, folder, number, max(1, threads // count)), daemon=True)
        for number in range(1, count)
    ]
    try:
        if processes:
            # All of them on all cores would get in each other's way.
            torch.set_num_threads(max(1, threads // count))
        for process in processes:
            process.start()
        yield
        for number, process in enumerate(processes, 1):
            process.join()
            if process.exitcode:
                watch.message(f"worker {number} of {count} ended with exit code {process.exitcode}; its work is done")
    finally:
        torch.set_num_threads(threads)
        for process in processes:
            if process.pid is not None:  # else it was never started, and to end it is an error
                process.terminate()


def _help(config: RunConfig, prepared: Manifest, folder: StageFolder, number: int, threads: int) -> None:
    die_with_parent()
    torch.set_num_threads(threads)
    capture = make_capture(config, folder, load_teacher(config, _device(config.cache.device, number)))
    capture_shards(capture, prepared, folder, Watcher())


def _device(wanted: str, number: int) -> str:
    """The device of a worker: the next GPU in turn, unless the config names one."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{number % count}" if count and wanted in ("auto", "cuda") else wanted
