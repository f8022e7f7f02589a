"""Reading a model's parameters while DeepSpeed may hold them in parts, and keeping them by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from sra_core.models.structure import unwrap
from sra_core.shards import atomic_write

__all__ = ["KeptWeights", "outer_parameters", "readable"]

_READER = -1  # stands among the ids of modules that hold a parameter in one piece


class KeptWeights:
    """Files of trained parameters, one a step.

    Args:
        folder: Where they lie.
        rank: This process's number; the first one writes.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder = folder
        self._rank = rank

    def path(self, step: int) -> Path:
        """The file of a step."""
        return self._folder / f"step-{step:08d}.safetensors"

    def write(self, step: int, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Write parameters by name as they are now; all processes call this together.

        Raises:
            StorageError: The disk is full; no partial file stays behind.
        """
        # Every process goes through all of them: putting a parameter together is done by all at once.
        tensors = dict(_one_by_one(parameters, self._rank == 0))
        if self._rank == 0:
            with atomic_write(self.path(step)) as file:
                file.write(save(tensors))

    def drop(self, keep: Iterable[int], after: int | None = None) -> None:
        """Delete all files but those of ``keep``; with ``after``, only those of later steps."""
        kept = {self.path(step) for step in keep}
        first = self.path(after) if after is not None else Path()  # an empty path sorts before all others
        for path in sorted(self._folder.glob("step-*")) if self._rank == 0 else []:
            if path not in kept and path > first:
                path.unlink()


def _one_by_one(parameters: Iterable[tuple[str, nn.Parameter]], wanted: bool) -> Iterator[tuple[str, Tensor]]:
    """Copies in main memory; a parameter that is held in parts is put together for the time of its copy alone."""
    for name, parameter in parameters:
        with _gathered([parameter]):
            if wanted:
                # A clone: on a CPU `cpu` copies nothing, and what is put together is freed again right after.
                yield name, parameter.detach().cpu().contiguous().clone()


def outer_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that the method reads outside their own module's forward: embeddings and LM head."""
    inner: Any = unwrap(model)
    modules = (inner.get_input_embeddings(), inner.get_output_embeddings())
    return list({id(p): p for module in modules for p in module.parameters()}.values())  # tied: once


@contextmanager
def readable(model: nn.Module) -> Iterator[None]:
    """Embeddings and LM head stay in one piece while the context lasts, so that their rows can be read.

    Under ZeRO 3 a module's parameters are put together for its forward and taken apart after it; elsewhere this does
    nothing. All processes enter together and run the same forwards.
    """
    parts: list[Any] = [p for p in outer_parameters(model) if hasattr(p, "ds_status")]
    with _gathered(parts):
        for parameter in parts:
            # DeepSpeed (0.19) frees a parameter after a forward of its module unless something else is named here.
            parameter.ds_active_sub_modules.add(_READER)
        try:
            yield
        finally:
            for parameter in parts:
                # Before the context ends, as DeepSpeed refuses to free a parameter that is still in use.
                parameter.ds_active_sub_modules.discard(_READER)


@contextmanager
def _gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    parts = [p for p in parameters if hasattr(p, "ds_status")]
    if not parts:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parts):
        yield
