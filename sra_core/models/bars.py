"""Reading, making and writing models: without bars for local files, and one thread at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

__all__ = ["no_progress_bars"]

_LOCK = threading.RLock()


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """No bars inside the context; what was shown before comes back afterwards.

    One thread of a process at a time: while it builds a model, transformers replaces functions of torch and of its own
    classes, and two threads that do so at once leave each other's replacements behind (tasks of a threaded executor).
    """
    with _LOCK:
        yield from _without_bars()


def _without_bars() -> Iterator[None]:
    import torch
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # saving imports DeepSpeed, which announces what it did not find
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    bar = gguf.tqdm  # hundreds of lines in a log; it obeys no setting
    gguf.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        gguf.tqdm = bar
        if shown:
            logging.enable_progress_bar()
