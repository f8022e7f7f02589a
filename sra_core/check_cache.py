"""`sra cache --check`: random examples from the live teacher against what is stored, with loss terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from sra_core.cache import load_teacher, make_capture, sample_rows, state_errors, within_bounds
from sra_core.config import RunConfig
from sra_core.errors import ShardError
from sra_core.models import initial_student, layer_count, load_head, resolve_layer
from sra_core.objective import build_objective, student_layers
from sra_core.runs import Run
from sra_core.shards import (
    Manifest,
    MemoryPrepared,
    MemoryTeacher,
    PreparedRow,
    TeacherRow,
    decode_vectors,
    encode_vectors,
)
from sra_core.training.context import distill_data, objective_context
from sra_core.training.module import DistillModule

__all__ = ["Fidelity", "check_cache"]

DTYPES = ("float32", "bfloat16", "int8", "fp8")


@dataclass(slots=True)
class Fidelity:
    """How far what is stored lies from the live teacher.

    Attributes:
        examples: Examples compared.
        stored: Type of the cache.
        states: By type (``stored`` is the cache itself, the others what storing as that type would do): largest and
            mean errors of centres, masses and token states.
        terms: By type and loss term: largest and mean relative error over the examples.
    """

    examples: int
    stored: str
    states: dict[str, dict[str, float]] = field(default_factory=dict)
    terms: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)

    def table(self) -> Table:
        """Largest and mean errors, a row each, a column a type."""
        names = list(self.states)
        titles = [f"the cache ({self.stored})" if name == "stored" else f"as {name}" for name in names]
        table = Table("error (largest / mean)", *titles, box=None, pad_edge=False)
        for kind in ("center", "mass", "state"):
            if f"{kind}_error_max" in self.states["stored"]:
                pairs = [(each[f"{kind}_error_max"], each[f"{kind}_error_mean"]) for each in self.states.values()]
                table.add_row(kind, *(_pair(pair) for pair in pairs))
        for term in self.terms["stored"]:
            table.add_row(term, *(_pair(self.terms[name][term]) for name in names))
        return table

    def require(self, config: RunConfig) -> None:
        """Refuse a cache whose errors are past the bounds of ``config.cache``.

        Raises:
            ShardError: Names what is past which bound.
        """
        within_bounds(config.cache, self.states["stored"])
        bound = config.cache.max_loss_error
        for name, (largest, _) in self.terms["stored"].items():
            if largest <= bound:  # NaN is not
                continue
            raise ShardError(
                f"the cache changes loss term {name} by {largest:.3g} of its value, past {bound:.3g}",
                "store more precisely (cache.dtype bfloat16 or float32) or raise cache.max_loss_error",
            )


def check_cache(config: RunConfig, examples: int) -> Fidelity:
    """Recompute random examples of a finished cache, each alone, and compare.

    Args:
        config: The run config.
        examples: How many.

    Raises:
        ManifestMismatch: There is no cache of this config.
    """
    run = Run(config)
    config = run.config
    prepared, manifest, folder = run.result("prepare"), run.result("cache"), run.folder("cache")
    # The same cache shows the same examples, whoever asks.
    seed = int(manifest.fingerprint, 16)
    rows, stored = sample_rows(prepared, folder.path, manifest.shards, examples, seed)
    capture = make_capture(config, folder, load_teacher(run.adapted))
    live = [capture([row])[0] for row in rows]
    versions = {"stored": stored}
    for dtype in DTYPES:
        versions[dtype] = [_as(row, dtype) for row in live]
    result = Fidelity(len(rows), folder.identity["cache"]["dtype"])
    result.states = {name: state_errors(live, kept) for name, kept in versions.items()}
    terms = _loss_terms(run.adapted, prepared, manifest, rows)
    exact = terms(live)
    result.terms = {name: _relative(exact, terms(kept)) for name, kept in versions.items()}
    return result


def _as(row: TeacherRow, dtype: str) -> TeacherRow:
    """A row as it comes back from a cache of this type."""

    def through(vectors: Any) -> Any:
        stored, scale = encode_vectors(vectors, dtype)
        return decode_vectors(stored, vectors.shape[1], scale)

    states = None if row.states is None else through(row.states)
    return TeacherRow(row.id, {layer: through(values) for layer, values in row.centers.items()}, row.mass, states)


def _pair(values: tuple[float, float]) -> str:
    return f"{values[0]:.2g} / {values[1]:.2g}"


Terms = list[dict[str, float]]


def _relative(exact: Terms, other: Terms) -> dict[str, tuple[float, float]]:
    errors = {}
    for name in exact[0]:
        values = [abs(b[name] - a[name]) / max(abs(a[name]), 1e-6) for a, b in zip(exact, other, strict=True)]
        errors[name] = (float(np.max(values)), float(np.mean(values)))
    return errors


def _loss_terms(
    config: RunConfig, prepared: Manifest, manifest: Manifest, rows: Sequence[PreparedRow]
) -> Callable[[Sequence[TeacherRow]], Terms]:
    """A function from teacher rows to the loss terms of each example, under the student as it starts."""
    student, _ = initial_student(config, prepared)
    context = objective_context(config, Path(prepared.folder), Path(manifest.folder), student)
    layers = [resolve_layer(layer_count(student), layer) for layer in student_layers(config.objective)]
    # eval: no dropout, so that the cache alone makes a difference.
    module = DistillModule(
        student.eval(), build_objective(config.objective, context), layers, attention=config.objective.weighted_pooling
    )
    count = load_head(Path(manifest.folder)).layers

    def terms(teacher: Sequence[TeacherRow]) -> Terms:
        data = distill_data(config, MemoryPrepared(rows), MemoryTeacher(teacher), count)
        with torch.no_grad():
            outputs = [module(data.batch([index], 0)) for index in range(len(rows))]
        found = []
        for output in outputs:
            del output["ce"], output["spans"]  # what no teacher has a part in
            found.append({name: float(value) for name, value in output.items()})
        return found

    return terms
