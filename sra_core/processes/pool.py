"""Where tasks run: threads here, worker processes, or an executor of the caller's; outcomes come in order."""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from typing import Generic, TypeVar

from sra_core.processes.children import die_with_parent

__all__ = ["Pool"]

Given = TypeVar("Given")
Made = TypeVar("Made")

_AHEAD = 64
"""Tasks under way on a given executor, whose size nobody tells."""
_THREADS = 8
"""More threads than this would only wait for Python's lock."""
_PARALLELISM = "TOKENIZERS_PARALLELISM"


class Pool(Generic[Given, Made]):
    """Runs one function over tasks, a bounded number ahead.

    One worker is a thread a core, each with a task of its own: some tokenize, in Rust and without Python's lock, while
    another aligns and writes. The threads of the tokenizers library are off meanwhile: with them every token is made by
    one thread and freed by another, which costs more than it gains.

    Args:
        work: A function that can be pickled, as its tasks and results can.
        workers: Processes, unless an executor is given.
        executor: Where the tasks run; it stays open.
    """

    def __init__(self, work: Callable[[Given], Made], workers: int, executor: Executor | None = None) -> None:
        self._work = work
        self._threads = 1 if executor or workers > 1 else min(max(_cores(), 2), _THREADS)
        self._own = None if executor else _executor(workers, self._threads)
        self._executor = executor or self._own
        # More than there are workers, so that none waits while outcomes are read; bounded, as outcomes wait in memory.
        self._ahead = _AHEAD if executor else 2 * workers + self._threads
        self._pending: deque[Future[Made]] = deque()
        self._cleanup = ExitStack()

    def __enter__(self) -> Pool[Given, Made]:
        if self._threads > 1:
            self._cleanup.enter_context(_one_thread_a_call())
            self._cleanup.enter_context(_lighter_collections())
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._cleanup:
            for future in self._pending:
                future.cancel()
            if self._own:
                self._own.shutdown(cancel_futures=True)

    def submit(self, task: Given) -> Iterator[Made]:
        """Start a task; yields outcomes that had to be waited for, so that memory stays bounded."""
        assert self._executor is not None
        return self._add(self._executor.submit(self._work, task))

    def add(self, outcome: Made) -> Iterator[Made]:
        """Put an outcome that is known already in its place."""
        future: Future[Made] = Future()
        future.set_result(outcome)
        return self._add(future)

    def drain(self) -> Iterator[Made]:
        """Outcomes of all tasks still running."""
        while self._pending:
            yield self._pending.popleft().result()

    def _add(self, future: Future[Made]) -> Iterator[Made]:
        self._pending.append(future)
        while len(self._pending) > self._ahead:
            yield self._pending.popleft().result()


@contextmanager
def _one_thread_a_call() -> Iterator[None]:
    """The tokenizers library tokenizes on the calling thread, unless the user has set what it does."""
    if _PARALLELISM in os.environ:
        yield
        return
    os.environ[_PARALLELISM] = "false"
    try:
        yield
    finally:
        os.environ.pop(_PARALLELISM, None)


@contextmanager
def _lighter_collections() -> Iterator[None]:
    """What is imported by now is not looked through again each time that the offsets of a shard fill the memory."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _executor(workers: int, threads: int) -> Executor:
    if workers == 1:
        return ThreadPoolExecutor(threads)
    # Not forked: threads of torch and of the tokenizers library do not survive that.
    return ProcessPoolExecutor(workers, get_context("spawn"), _start_process, (max(1, _cores() // workers),))


def _start_process(threads: int) -> None:
    """A worker process tokenizes on its share of the cores and must not outlive the stage, however that ends."""
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    die_with_parent()
