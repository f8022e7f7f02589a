"""A model larger than one device: its layers over all GPUs, then main memory, then disk, by accelerate's device map.

What lies in main memory (where there is a GPU) or on disk is fetched for the time that it runs. Weights on disk are
read where the model's own files lie; those that transformers changes while it loads them (experts that are stacked)
are written to a temporary folder first, which goes with the model.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import align_module_device
from torch import Tensor, nn

from sra_core.config import ModelRef
from sra_core.models.reading import read_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["every_weight", "read_spread", "room_to_spread", "spread_over"]

_ROOM: dict[int | str, int] | None = None
"""Bytes to take of each GPU (by number) and of main memory ("cpu") at most; None takes what is free now."""


def read_spread(folder: Path, ref: ModelRef, **options: Any) -> PreTrainedModel:
    """As `read_model`, spread over what this machine has.

    Raises:
        ModelError: As `read_model`.
    """
    scratch = tempfile.mkdtemp(prefix="sra-spread-")
    try:
        model = read_model(folder, ref, device_map="auto", max_memory=_ROOM, offload_folder=scratch, **options)
    except BaseException:  # an interrupt too
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, scratch, ignore_errors=True)
    return model


def room_to_spread() -> dict[int | str, float]:
    """Bytes that are free on each GPU, by number, and of main memory (``cpu``)."""
    from transformers.integrations.accelerate import get_max_memory

    room: dict[int | str, float] = get_max_memory(_ROOM)
    return room


def spread_over(model: nn.Module) -> str:
    """Where the parts of a model lie, for a person; empty where it is on one device."""
    places = Counter(str(place) for place in getattr(model, "hf_device_map", {}).values())
    if len(places) < 2 and "disk" not in places:
        return ""
    return ", ".join(f"{'GPU ' if place.isdecimal() else ''}{place} ({count} parts)" for place, count in places.items())


def every_weight(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter itself, by name; what is kept elsewhere is fetched one module at a time."""
    for prefix, module in model.named_modules():
        with align_module_device(module):
            yield from module.named_parameters(prefix, recurse=False)
