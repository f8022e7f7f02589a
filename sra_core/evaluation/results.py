"""Evaluations on disk: the tables that the evaluate stage writes, and finished runs read back for a comparison."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sra_core.errors import EvaluationError
from sra_core.evaluation.answers import read_answers
from sra_core.evaluation.scores import ROUGE_TYPES
from sra_core.shards import Manifest, StageFolder
from sra_core.shards.folder import read_manifest

if TYPE_CHECKING:
    from sra_core.evaluation.agreement import Agreement
    from sra_core.evaluation.likelihood import Likelihood

__all__ = [
    "METRICS",
    "EvaluatedRun",
    "Metric",
    "ModelScores",
    "agreement_table",
    "likelihood_table",
    "read_run",
]

SYSTEMS = ("teacher", "initial", "student")


@dataclass(frozen=True, slots=True)
class Metric:
    """A score: what its numerator and denominator are, and which way is better.

    Attributes:
        name: Name in tables and in tracking.
        title: Name for people, with its unit.
        higher: Whether higher is better.
    """

    name: str
    title: str
    higher: bool


METRICS = (
    Metric("bits_per_byte", "bits per byte", False),
    Metric("rougeL", "ROUGE-L", True),
    Metric("rouge1", "ROUGE-1", True),
    Metric("rouge2", "ROUGE-2", True),
    Metric("span_kl", "span KL to teacher (nats)", False),
    Metric("top1", "top-1 agreement with teacher (%)", True),
)
"""All scores, the main ones first; ROUGE and agreement are percentages."""


@dataclass(slots=True)
class ModelScores:
    """One model's scores on a set of examples.

    Attributes:
        likelihood, answers, agreement: Tables as written by the stage; None when it was not measured.
    """

    likelihood: pa.Table | None = None
    answers: pa.Table | None = None
    agreement: pa.Table | None = None

    def values(self, metric: str) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]] | None:
        """Ids, (E, S) numerators and (E,) denominators of a metric; None when it was not measured."""
        if metric == "bits_per_byte" and self.likelihood is not None:
            bits = self.likelihood["nats"].to_numpy()[:, None] / math.log(2)
            return self.likelihood["id"].to_pylist(), bits, self.likelihood["bytes"].to_numpy().astype(np.float64)
        if metric in ("span_kl", "top1") and self.agreement is not None:
            return _span_means(self.agreement, *(("kl", 1.0) if metric == "span_kl" else ("same", 100.0)))
        if metric in ROUGE_TYPES and self.answers is not None and len(self.answers):
            return _by_seed(self.answers, metric)
        return None


def _span_means(
    table: pa.Table, column: str, scale: float
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Mean over the spans of each example that has one."""
    table = table.filter(pc.field("spans") > 0)
    means = scale * table[column].to_numpy() / table["spans"].to_numpy()
    return table["id"].to_pylist(), means[:, None], np.ones(len(table))


def _by_seed(table: pa.Table, metric: str) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    seeds = sorted(set(table["seed"].to_pylist()))
    found: dict[str, dict[int, float]] = {}
    for row in table.select(["id", "seed", metric]).to_pylist():
        found.setdefault(row["id"], {})[row["seed"]] = 100 * row[metric]
    ids = [name for name, by_seed in found.items() if len(by_seed) == len(seeds)]
    return ids, np.array([[found[name][seed] for seed in seeds] for name in ids]), np.ones(len(ids))


def likelihood_table(rows: Sequence[Any], scored: Likelihood) -> pa.Table:
    """Code lengths as a table: id, source, prompt_bytes, nats, bytes, tokens."""
    return pa.table(
        {
            "id": scored.ids,
            "source": [row.source for row in rows],
            "prompt_bytes": [len(row.prompt.encode()) for row in rows],
            "nats": scored.nats,
            "bytes": scored.bytes,
            "tokens": scored.tokens,
        }
    )


def agreement_table(scored: Agreement) -> pa.Table:
    """Agreement with the teacher as a table: id, kl, same, spans."""
    return pa.table({"id": scored.ids, "kl": scored.kl, "same": scored.same, "spans": scored.spans})


@dataclass(slots=True)
class EvaluatedRun:
    """A finished evaluation and what led to it.

    Attributes:
        name: Label in tables.
        folder: Where it was read from.
        models: Scores by ``teacher``, ``initial`` and ``student``.
        curves: Training metrics by name, as (step, value).
        costs: Time, memory and bytes, by stage and name.
        lineage: Everything that determined the run, flat: data, tokenizers, teacher, objective, training.
        counts: Examples and answers, leaks and what else was counted.
    """

    name: str
    folder: Path
    models: dict[str, ModelScores]
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    lineage: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def read_run(folder: str | Path, name: str | None = None) -> EvaluatedRun:
    """Read an evaluation folder and, from the store around it, the results that it rests on.

    Args:
        folder: A folder with ``manifest.json`` of the evaluate stage.
        name: Label; unset takes the folder's name.

    Raises:
        EvaluationError: The folder holds no finished evaluation.
        ShardError: Its manifest is damaged.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise EvaluationError(f"{folder} holds no finished evaluation", "run `sra evaluate`, or give its folder")
    manifest = read_manifest(folder)
    if manifest.stage != "evaluate":
        raise EvaluationError(
            f"{folder} is a result of {manifest.stage}, not of evaluate", "give a folder below `evaluations`"
        )
    models = {system: scores for system in SYSTEMS if (scores := _read_scores(folder, system)) is not None}
    if "student" not in models:
        raise EvaluationError(f"{folder} has no scores of a student", "run `sra evaluate` again")
    results = {made.stage: made for made in _upstream(manifest, folder.resolve().parent.parent)}
    return EvaluatedRun(
        name=name or folder.name,
        folder=folder,
        models=models,
        curves=_curves(results),
        costs=dict(_costs(results)),
        lineage={key: value for stage in _ORDER if stage in results for key, value in _lineage(results[stage])},
        counts=manifest.counts,
    )


def _read_scores(folder: Path, system: str) -> ModelScores | None:
    scores = ModelScores()
    for kind in ("likelihood", "agreement"):
        path = folder / f"{kind}-{system}.parquet"
        if path.is_file():
            setattr(scores, kind, pq.read_table(path))
    answers = sorted(folder.glob(f"answers-{system}-*.parquet")) or sorted(folder.glob(f"answers-{system}.parquet"))
    if answers:
        scores.answers = read_answers(answers)
    return scores if scores.likelihood is not None or answers else None


_ORDER = ("prepare", "cache", "distill", "evaluate")


def _upstream(manifest: Manifest, store: Path) -> Iterator[Manifest]:
    """The manifest and all that it was made from, each once; results no longer in the store are left out."""
    waiting, seen = [manifest], set()
    while waiting:
        made = waiting.pop()
        if made.stage in seen:
            continue
        seen.add(made.stage)
        yield made
        for stage, upstream in made.upstream.items():
            folder = store / StageFolder.ROOMS.get(stage, stage) / upstream.fingerprint
            if (folder / "manifest.json").is_file():
                waiting.append(read_manifest(folder))


def _curves(results: Mapping[str, Manifest]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    path = Path(results["distill"].folder) / "history.jsonl" if "distill" in results else None
    if path is None or not path.is_file():
        return curves
    for line in path.read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(name, []).append((step, float(value)))
    return curves


_COSTS = ("seconds", "memory", "bytes", "tokens_per_second")


def _costs(results: Mapping[str, Manifest]) -> Iterator[tuple[str, float]]:
    for stage in _ORDER:
        if stage in results:
            yield f"{stage}: stored bytes", float(results[stage].size())
            for name, value in results[stage].metrics.items():
                leaf = name.rsplit("/", 1)[-1]
                if any(word in leaf for word in _COSTS) and "bits_per_byte" not in leaf:
                    yield f"{stage}: {leaf.replace('_', ' ')}", value


def _lineage(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield f"{manifest.stage}.fingerprint", manifest.fingerprint
    yield from _flat(manifest.identity, manifest.stage)
    for package, version in manifest.versions.items():
        yield f"{manifest.stage}.version.{package}", version


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}")
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)
