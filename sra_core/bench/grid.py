"""The grid: which cells there are, what each of them runs, which are done and which somebody works on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from sra_core.config import RunConfig, Variant, merged, nested
from sra_core.config.problems import config_error, leaves
from sra_core.doctor import check_datasets, check_devices, check_layers, check_models, check_tools
from sra_core.errors import ConfigError, ManifestMismatch, SraError, TrainingError
from sra_core.objective import teacher_needs
from sra_core.runs import Run
from sra_core.shards import SCHEMA_VERSION, Manifest, StageFolder

__all__ = ["Bench", "Cell"]

SHARED = ("prepare", "adapt", "cache")
"""Stages whose results cells have in common."""
OWN = ("distill", "evaluate")
"""Stages that every cell runs for itself."""
_FIXED = ("name", "store", "seed", "tracking", "bench")
_PAUSE = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One variant with one seed.

    Attributes:
        variant: Its name.
        seed: Seed of initialisation, data order and dropout.
        run: What it runs.
    """

    variant: str
    seed: int
    run: Run

    @property
    def config(self) -> RunConfig:
        """Its config."""
        return self.run.config

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.variant}, seed {self.seed}"


class Bench:
    """A grid of variants and seeds around one run.

    Args:
        config: The run; its ``bench`` part says what is compared.
        variants: Only these variants; empty takes all.
        seeds: Only these seeds; empty takes all.

    Raises:
        ConfigError: A variant that sets what it must not, or a name or seed that the grid does not have.
    """

    def __init__(self, config: RunConfig, variants: Sequence[str] = (), seeds: Sequence[int] = ()) -> None:
        self.config = config
        self.cells = list(_cells(config))
        _refuse_unknown("variant", variants, [variant.name for variant in config.bench.variants])
        _refuse_unknown("seed", seeds, config.bench.seeds)
        self.selected = [
            cell
            for cell in self.cells
            if (not variants or cell.variant in variants) and (not seeds or cell.seed in seeds)
        ]
        self.failed: dict[Cell, Exception] = {}

    def check(self) -> None:
        """Refuse what any cell would fail over late: devices, tools, data sets and layers that are not there.

        Raises:
            ConfigError: Names the device, the layer or the tool.
            DataError: Names the data set that cannot be read.
            ModelError: Names the model's file that cannot be used.
        """
        for config in self._distinct({"adapt", "cache", "distill", "evaluate"}):
            check_devices(config)
        for config in self._distinct({"evaluate": {"lm_eval", "backend", "device"}}):
            check_tools(config)
        for config in self._distinct({"evaluate": {"datasets"}}):
            check_datasets(config)
        for config in self._distinct({"teacher", "student", "objective"}):
            check_models(config)
            check_layers(config)

    def _distinct(self, asked: Any) -> Iterable[RunConfig]:
        """Configs of the selected cells, one of those that agree in what is asked for."""
        return {cell.config.model_dump_json(include=asked): cell.config for cell in self.selected}.values()

    def shared(self) -> Iterator[tuple[str, Run]]:
        """Stages that the selected cells build on, each once: a result that cells share is made before any of them."""
        for stage in SHARED:
            seen: set[str] = set()
            for cell in self.selected:
                if stage in cell.run.stages:
                    made = cell.run.fingerprint(stage)
                    if made not in seen:
                        seen.add(made)
                        yield stage, cell.run

    def take(self) -> Iterator[Cell]:
        """Cells to run, one after the other, each held against other processes until the next one is asked for.

        A cell that is done, or that another process holds, is left out; one that became free is taken up. Ends when
        nothing is left to take.
        """
        folder, waiting, last = self.folder(), list(self.selected), False
        while waiting:
            taken = False
            for cell in list(waiting):
                if self.scores(cell) is not None:
                    waiting.remove(cell)
                    continue
                claim = folder.claim(cell.run.fingerprint("evaluate"))
                if claim is None:
                    continue
                try:
                    waiting.remove(cell)
                    # Asked again under the claim: another process may have finished it since.
                    if self.scores(cell) is None:
                        taken, last = True, False
                        yield cell
                finally:
                    # Also where the caller stops asking: closing the generator lets the cell go.
                    claim.release()
            if not taken:
                if last:
                    return
                last = True
                time.sleep(_PAUSE)  # a look at the list holds a claim for a moment

    def require_all_ran(self) -> None:
        """Raise if a cell failed.

        Raises:
            TrainingError: Names the cells, and how the first of them failed.
        """
        if self.failed:
            names = "; ".join(cell.name for cell in self.failed)
            first = next(iter(self.failed.values()))
            problem = first.problem if isinstance(first, SraError) else f"{type(first).__name__}: {first}"
            remedy = first.remedy if isinstance(first, SraError) else "run the benchmark again: it goes on from there"
            cells = (
                f"1 cell failed ({names}) with"
                if len(self.failed) == 1
                else f"{len(self.failed)} cells failed ({names}), the first with"
            )
            raise TrainingError(f"{cells}: {problem}", remedy) from first

    def scores(self, cell: Cell) -> Manifest | None:
        """The evaluation of a cell; None until it is done."""
        with suppress(ManifestMismatch):
            return cell.run.folder("evaluate").manifest()
        return None

    def student(self, cell: Cell) -> Manifest | None:
        """The training result of a cell; None until it is done."""
        with suppress(ManifestMismatch):
            return cell.run.folder("distill").manifest()
        return None

    def state(self, cell: Cell) -> str:
        """``done``, ``running`` (some process holds it), ``trained`` (not yet evaluated) or ``waiting``."""
        if self.scores(cell) is not None:
            return "done"
        if self._is_held(cell):
            return "running"
        return "trained" if self.student(cell) is not None else "waiting"

    def _is_held(self, cell: Cell) -> bool:
        try:
            folder, key = self.folder(), cell.run.fingerprint("evaluate")
        except ManifestMismatch:  # the teacher is not adapted yet
            return False
        # To ask for a claim makes its file and holds it for a moment: not where nobody ever did.
        if not (folder.path / ".claims" / f"{key}.lock").exists():
            return False
        claim = folder.claim(key)
        if claim is None:
            return True
        claim.release()
        return False

    def folder(self) -> StageFolder:
        """Where the grid's results go.

        Raises:
            ManifestMismatch: The adapted teacher that cells build on is not there yet.
        """
        identity: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "cells": {f"{cell.variant}/{cell.seed}": cell.run.fingerprint("evaluate") for cell in self.cells},
            "reference": self.config.bench.reference,
        }
        return StageFolder(self.config.store, "benchmark", identity)


def _cells(config: RunConfig) -> Iterator[Cell]:
    """Seed by seed, so that a grid that is done in part compares all variants."""
    grid = Run(config)  # its cells read corpus and tokenizers once for all
    made = [(variant.name, _variant_config(config, variant)) for variant in config.bench.variants]
    for seed in config.bench.seeds:
        for name, own in made:
            cache = _common_cache(own, [other for _, other in made])
            first = name == made[0][0] and seed == config.bench.seeds[0]
            yield Cell(name, seed, Run(_cell_config(own, seed, cache, frame=first), like=grid))


def _variant_config(config: RunConfig, variant: Variant) -> RunConfig:
    """The run with the variant's overrides.

    Raises:
        ConfigError: They set what belongs to the grid, or a field that does not exist.
    """
    for name in variant.overrides:
        if name.partition(".")[0] in _FIXED:
            raise ConfigError(
                f"bench.variants: {variant.name} overrides {name}, which is the same for the whole grid",
                "set it for the run; seeds are listed in bench.seeds",
            )
    changes = nested(variant.overrides)
    try:
        return RunConfig.model_validate(merged(config.model_dump(), changes))
    except ValidationError as error:
        given = [(f"bench.variants: {variant.name}", keys) for keys in leaves(changes)]
        raise config_error(error, given) from error


def _common_cache(own: RunConfig, others: Iterable[RunConfig]) -> dict[str, Any]:
    """Cache settings under which all variants with the same pooling read one cache: it holds what any of them needs."""
    alike = [other for other in others if other.objective.weighted_pooling == own.objective.weighted_pooling]
    needs = [teacher_needs(other.objective) for other in alike]
    layers = {layer for other in alike for layer in other.cache.layers}
    return {
        "layers": sorted(layers.union(*(need.span_layers for need in needs))),
        "token_states": own.cache.token_states or any(need.token_states for need in needs),
    }


def _cell_config(own: RunConfig, seed: int, cache: dict[str, Any], *, frame: bool) -> RunConfig:
    """What a cell runs. Ceiling and floor are the same for all cells: where ``frame``, this one scores them."""
    changes: dict[str, Any] = {"seed": seed, "cache": cache}
    if not frame:
        changes["evaluate"] = {"teacher": False, "initial": False}
    return RunConfig.model_validate(merged(own.model_dump(), changes))


def _refuse_unknown(what: str, asked: Sequence[Any], known: Sequence[Any]) -> None:
    if unknown := [each for each in asked if each not in known]:
        raise ConfigError(f"the grid has no {what} {unknown[0]!r}", f"it has {', '.join(map(str, known))}")
