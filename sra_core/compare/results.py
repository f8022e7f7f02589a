"""Evaluations on disk: the tables that the evaluate stage writes, and finished runs read back for a comparison."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sra_core.compare.rouge import ANSWER_SCORES
from sra_core.compare.words import COUNTED
from sra_core.config.reference import left_out
from sra_core.errors import EvaluationError
from sra_core.runs import ORDER
from sra_core.shards import Manifest, StageFolder, read_manifest

__all__ = [
    "ANSWER_SCHEMA",
    "METRICS",
    "SYSTEMS",
    "TASKS",
    "TITLES",
    "EvaluatedRun",
    "Metric",
    "ModelScores",
    "Values",
    "file_name",
    "read_answers",
    "read_run",
    "read_runs",
]

SYSTEMS = ("teacher", "initial", "student")
TITLES = {"teacher": "teacher", "initial": "initial student", "student": "student"}
"""Names for people; the initial student is the student before training."""


ANSWER_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("seed", pa.int64()),
        ("prompt", pa.string()),
        ("reference", pa.string()),
        ("other_references", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("prompt_cut", pa.int32()),
        *((name, pa.float64()) for name in ANSWER_SCORES),
    ]
)
"""Columns of a file of answers."""


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
    Metric("rougeL", f"ROUGE-L ({COUNTED})", True),
    Metric("rouge1", f"ROUGE-1 ({COUNTED})", True),
    Metric("rouge2", f"ROUGE-2 ({COUNTED})", True),
    Metric("chrf", "chrF (characters)", True),
    Metric("span_kl", "span KL to teacher (nats)", False),
    Metric("top1", "top-1 agreement with teacher (%)", True),
)
"""All scores, the main ones first; ROUGE, chrF and agreement are percentages."""

KINDS = ("likelihood", "answers", "agreement")
TASKS = "tasks-{}.parquet"
"""Name of the file of a model's lm-eval scores."""
Values = tuple[list[tuple[str, str]], NDArray[np.float64], NDArray[np.float64]]
"""Data set and id of each example, (E, S) numerators and (E,) denominators."""


@dataclass(slots=True)
class ModelScores:
    """One model's scores on the examples of all data sets.

    Attributes:
        likelihood, answers, agreement: Tables as written by the stage, the data set a column; None when it was not
            measured.
        tasks: Scores of lm-eval tasks by example: task, id, metric, value, higher (is better).
    """

    likelihood: pa.Table | None = None
    answers: pa.Table | None = None
    agreement: pa.Table | None = None
    tasks: pa.Table | None = None

    def metrics(self) -> list[Metric]:
        """Those of the data sets, then those of the lm-eval tasks."""
        if self.tasks is None:
            return list(METRICS)
        named = {(row["task"], row["metric"]): row["higher"] for row in self.tasks.to_pylist()}
        return [
            *METRICS,
            *(Metric(f"lm_eval/{task}/{name}", f"{task} {name}", up) for (task, name), up in named.items()),
        ]

    def values(self, metric: str) -> Values | None:
        """What each example adds to a metric; None when it was not measured."""
        if metric == "bits_per_byte" and self.likelihood is not None:
            bits = self.likelihood["nats"].to_numpy()[:, None] / math.log(2)
            return _keys(self.likelihood), bits, self.likelihood["bytes"].to_numpy().astype(np.float64)
        if metric in ("span_kl", "top1") and self.agreement is not None:
            return _span_means(self.agreement, *(("kl", 1.0) if metric == "span_kl" else ("same", 100.0)))
        if metric in ANSWER_SCORES and self.answers is not None and metric in self.answers.column_names:
            return _by_seed(self.answers, metric)
        if metric.startswith("lm_eval/") and self.tasks is not None:
            return _task_values(self.tasks, *metric.split("/")[1:])
        return None

    def wanted(self) -> dict[tuple[str, str], list[str]]:
        """The references of each example's answer, by data set and id; empty where nothing was answered."""
        return {} if self.answers is None else dict(zip(_keys(self.answers), all_references(self.answers), strict=True))


def _keys(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["dataset"].to_pylist(), table["id"].to_pylist(), strict=True))


def _span_means(table: pa.Table, column: str, scale: float) -> Values:
    """Mean over the spans of each example that has one."""
    table = table.filter(pc.field("spans") > 0)
    means = scale * table[column].to_numpy() / table["spans"].to_numpy()
    return _keys(table), means[:, None], np.ones(len(table))


def _by_seed(table: pa.Table, metric: str) -> Values | None:
    """Scores of the examples that have one: where no reference has a word, ROUGE has none to give."""
    seeds = sorted(set(table["seed"].to_pylist()))
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in table.select(["dataset", "id", "seed", metric]).to_pylist():
        if not math.isnan(row[metric]):
            found.setdefault((row["dataset"], row["id"]), {})[row["seed"]] = 100 * row[metric]
    keys, scores = [], []
    for key, by_seed in found.items():
        # Seeds are the columns of one table: an example that lacks one is left out.
        if len(by_seed) == len(seeds):
            keys.append(key)
            scores.append([by_seed[seed] for seed in seeds])
    return (keys, np.array(scores), np.ones(len(keys))) if keys else None


def _task_values(table: pa.Table, task: str, name: str) -> Values | None:
    table = table.filter((pc.field("task") == task) & (pc.field("metric") == name))
    if not len(table):
        return None
    keys = [(task, each) for each in table["id"].to_pylist()]
    return keys, table["value"].to_numpy()[:, None], np.ones(len(keys))


def file_name(kind: str, dataset: str, system: str) -> str:
    """Name of a table of the evaluate stage; answers add seed and shard to it."""
    return f"{kind}-{dataset}-{system}.parquet"


@dataclass(slots=True)
class EvaluatedRun:
    """A finished evaluation and what led to it.

    Attributes:
        name: Label in tables.
        folder: Where it was read from.
        models: Scores by ``teacher``, ``initial`` and ``student``.
        curves: Training metrics by name, as (step, value).
        costs: Time, memory and bytes, by stage and name.
        lineage: Everything that determined the run, flat: data, tokenizers, teacher, objective, training. Results that
            stages handed on are not in it.
        results: Fingerprint of each stage's result.
        counts: Examples and answers, leaks and what else was counted; names of data sets beside the corpus's own test
            split come first, as in ``dialogsum/examples``.
    """

    name: str
    folder: Path
    models: dict[str, ModelScores]
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    lineage: dict[str, str] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets, the corpus's own test split first."""
        student = self.models["student"]
        tables = [table for table in (student.likelihood, student.answers) if table is not None]
        return list(dict.fromkeys(name for table in tables for name in table["dataset"].to_pylist()))


def read_run(folder: str | Path, name: str | None = None) -> EvaluatedRun:
    """Read an evaluation folder and, from the store around it, the results that it rests on.

    Args:
        folder: A folder with ``manifest.json`` of the evaluate stage.
        name: Label; unset takes the objective's name.

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
    settings = manifest.identity["evaluate"]
    datasets = [settings["test_name"], *(each["name"] for each in settings["datasets"])]
    found = {system: _read_scores(folder, system, datasets) for system in SYSTEMS}
    models = {system: scores for system, scores in found.items() if scores is not None}
    if "student" not in models:
        raise EvaluationError(f"{folder} has no scores of a student", "run `sra evaluate` again")
    results = {made.stage: made for made in _upstream(manifest, folder.resolve().parent.parent)}
    lineage = _lineage([results[stage] for stage in ORDER if stage in results])
    return EvaluatedRun(
        name=name or lineage.get("objective.name", folder.name),
        folder=folder,
        models=models,
        curves=_curves(results),
        costs=dict(_costs(results)),
        lineage=lineage,
        results={stage: results[stage].fingerprint for stage in ORDER if stage in results},
        counts=manifest.counts,
    )


def read_runs(folders: Sequence[tuple[str | None, Path]]) -> list[EvaluatedRun]:
    """Read evaluation folders, each under a name of its own: its label, or its objective's name.

    Where two would have the same name, the settings in which they differ tell them apart, as in ``sra cosine=1``; where
    that does not, the beginning of their fingerprints.

    Raises:
        EvaluationError: One holds no finished evaluation.
    """
    runs = [read_run(folder, label) for label, folder in folders]
    by_name: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    for name, alike in by_name.items():
        told = [" ".join([name, *differences]) for differences in _differences(alike)]
        for run, own in zip(alike, told, strict=True):
            if len(alike) > 1:
                run.name = own if told.count(own) == 1 else f"{own} {run.results['evaluate'][:6]}"
    return runs


NAMED = 3
"""Settings that a name holds at most."""


def _differences(runs: Sequence[EvaluatedRun]) -> list[list[str]]:
    """The settings of each run that are not the same in all of these, as ``geometry=0``."""
    values: dict[str, set[str | None]] = {}
    for name in dict.fromkeys(name for run in runs for name in run.lineage):
        values[name] = {run.lineage.get(name) for run in runs}
    differing = [name for name, found in values.items() if len(found) > 1]
    settings = [name for name in differing if not name.startswith("version of ")][:NAMED]
    leaves = [name.rpartition(".")[2].rpartition(": ")[2] for name in settings]
    told = [leaf if leaves.count(leaf) == 1 else name for name, leaf in zip(settings, leaves, strict=True)]
    differences = []
    for run in runs:
        own = [run.lineage.get(name, "none") for name in settings]
        differences.append([f"{name}={value}" for name, value in zip(told, own, strict=True)])
    return differences


def _read_scores(folder: Path, system: str, datasets: list[str]) -> ModelScores | None:
    scores = ModelScores(*(_read_tables(folder, kind, system, datasets) for kind in KINDS))
    tasks = folder / TASKS.format(system)
    scores.tasks = pq.read_table(tasks) if tasks.is_file() else None
    return scores if scores.likelihood is not None or scores.answers is not None else None


def _read_tables(folder: Path, kind: str, system: str, datasets: list[str]) -> pa.Table | None:
    """The tables of all data sets as one."""
    # No name of a data set holds a dash, so that no stem is the beginning of another's.
    stems = [file_name(kind, dataset, system).removesuffix(".parquet") for dataset in datasets]
    paths = [path for stem in stems for path in sorted(folder.glob(f"{stem}*.parquet"))]
    return read_answers(paths) if paths else None


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
            folder = store / StageFolder.FOLDERS.get(stage, stage) / upstream.fingerprint
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
    for stage in ORDER:
        if stage in results:
            yield f"{stage}: stored bytes", float(results[stage].size())
            for name, value in results[stage].metrics.items():
                leaf = name.rsplit("/", 1)[-1]
                if any(word in leaf for word in _COSTS) and "bits_per_byte" not in leaf:
                    yield f"{stage}: {leaf.replace('_', ' ')}", value


_DERIVED = ("schema", "prepared.", "holds.")
"""Parts of identities that repeat another stage's settings or follow from them."""
_CHECKSUM = re.compile("[0-9a-f]{64}")


def _lineage(results: Sequence[Manifest]) -> dict[str, str]:
    """Settings and inputs by name: as in the config, with the stage before it where two stages mean different things.

    Fingerprints of upstream results follow from these and are left out; checksums are shortened; what identities leave
    out is there with the value that it stands for.
    """
    known = {made.fingerprint for made in results}
    known |= {upstream.fingerprint for made in results for upstream in made.upstream.values()}
    found: dict[str, str] = {}
    for made in results:
        settings = [item for item in _flat(made.identity, "") if not item[0].startswith(_DERIVED)]
        packages = [(f"version of {package}", version) for package, version in made.versions.items()]
        for name, value in [*settings, *packages]:
            if value in known:
                continue
            text = f"sha256 {value[:12]}" if _CHECKSUM.fullmatch(value) else value
            name = name.replace(".fields.", ".")
            found[name if found.get(name, text) == text else f"{made.stage}: {name}"] = text
    if found.get("objective.name", "sra") != "sra":
        found.pop("objective.weighted_loss", None)  # spans are SRA's
    sections = {name.rpartition(".")[0] for name in found}
    return found | {
        name: value for name, value in left_out().items() if name not in found and name.rpartition(".")[0] in sections
    }


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)


def all_references(answers: pa.Table) -> list[list[str]]:
    """What each answer was scored against."""
    pairs = zip(answers["reference"].to_pylist(), answers["other_references"].to_pylist(), strict=True)
    return [[first, *others] for first, others in pairs]


def read_answers(paths: Sequence[Path]) -> pa.Table:
    """The answers of several files as one table, in the order of the paths."""
    # The metadata of each file say what it was made from, and differ.
    tables = [pq.read_table(path) for path in paths]
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
