"""The evaluate stage: teacher, initial student and student on the same held-out examples, one model at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sra_core.config import ModelRef, RunConfig
from sra_core.distillation import STUDENT, initial_student
from sra_core.errors import EvaluationError
from sra_core.evaluation import Sampling, generate, response_likelihood, rouge_scores
from sra_core.models import load_model, load_tokenizer, pick_device
from sra_core.shards import Manifest, PreparedRow, PreparedSet, StageFolder, atomic_write
from sra_core.watching import Watcher

__all__ = ["score_student"]


@dataclass(frozen=True, slots=True)
class Contender:
    """A model under evaluation.

    Attributes:
        name: ``teacher``, ``initial`` or ``student``.
        side: Whose tokens it reads.
        load: Gives the model and its tokenizer.
    """

    name: str
    side: Literal["teacher", "student"]
    load: Callable[[], tuple[Any, Any]]


def score_student(config: RunConfig, upstream: Sequence[Manifest], folder: StageFolder, watch: Watcher) -> Manifest:
    """Score every contender; those that were scored before a restart are not scored again.

    Args:
        config: The run config.
        upstream: Prepared examples and the trained student.
        folder: Where scores, answers and the summary go; its lock is held.
        watch: Told of progress.

    Raises:
        EvaluationError: There is no test example.
    """
    prepared, trained = upstream
    rows = list(PreparedSet(prepared, "test"))[: config.evaluate.examples]
    if not rows:
        raise EvaluationError("there is no test example", "raise corpus.test_share or corpus.max_test")
    contenders = list(_contenders(config, prepared, trained))
    metrics: dict[str, float] = {}
    answers: dict[str, pa.Table] = {}
    for contender in contenders:
        scored = _score(config, contender, rows, folder.path, watch)
        metrics |= {f"{contender.name}/{name}": value for name, value in scored.metrics.items()}
        answers[contender.name] = scored.answers
    watch.metrics(metrics)
    _write(folder.path / "summary.md", summary(config, trained, metrics, answers).encode())
    names = sorted(path.name for path in folder.path.iterdir() if path.suffix in {".parquet", ".md"})
    return folder.commit(
        upstream=upstream,
        files=[folder.entry(name) for name in names],
        counts={"examples": len(rows), "answers": sum(len(table) for table in answers.values())},
        metrics=metrics,
    )


def _contenders(config: RunConfig, prepared: Manifest, trained: Manifest) -> Iterator[Contender]:
    device = pick_device(config.evaluate.device)

    def teacher() -> tuple[Any, Any]:
        return load_model(config.teacher, config.cache.compute_dtype, device), load_tokenizer(config.teacher)

    def initial() -> tuple[Any, Any]:
        model, tokenizer = initial_student(config, prepared)
        return model.to(device), tokenizer

    def student() -> tuple[Any, Any]:
        ref = ModelRef(source=str(Path(trained.folder) / STUDENT))
        return load_model(ref, config.distill.precision, device), load_tokenizer(ref)

    if config.evaluate.teacher:
        yield Contender("teacher", "teacher", teacher)
    if config.evaluate.initial:
        yield Contender("initial", "student", initial)
    yield Contender("student", "student", student)


@dataclass(frozen=True, slots=True)
class _Scored:
    metrics: dict[str, float]
    answers: pa.Table


def _score(
    config: RunConfig, contender: Contender, rows: Sequence[PreparedRow], folder: Path, watch: Watcher
) -> _Scored:
    likelihood_file = folder / f"likelihood-{contender.name}.parquet"
    answers_file = folder / f"answers-{contender.name}.parquet"
    if not (likelihood_file.exists() and answers_file.exists()):
        model, tokenizer = contender.load()
        _write_table(likelihood_file, _likelihood(model, tokenizer, contender, rows, watch))
        _write_table(answers_file, _answers(config, model, tokenizer, contender, rows, watch))
    likelihood, answers = pq.read_table(likelihood_file), pq.read_table(answers_file)
    return _Scored(_metrics(likelihood, answers), answers)


def _likelihood(
    model: Any, tokenizer: Any, contender: Contender, rows: Sequence[PreparedRow], watch: Watcher
) -> pa.Table:
    scored = response_likelihood(
        model,
        rows,
        contender.side,
        eos_token_id=tokenizer.eos_token_id,
        progress=lambda done, total: watch.progress(done, total, "texts", f"{contender.name}: bits per byte"),
    )
    return pa.table({"id": scored.ids, "nats": scored.nats, "bytes": scored.bytes, "tokens": scored.tokens})


def _answers(
    config: RunConfig,
    model: Any,
    tokenizer: Any,
    contender: Contender,
    rows: Sequence[PreparedRow],
    watch: Watcher,
) -> pa.Table:
    settings = config.evaluate
    asked = rows[: settings.generate]
    sampling = Sampling(temperature=settings.temperature, top_p=settings.top_p)
    seeds = settings.seeds[:1] if sampling.greedy else settings.seeds
    tables = []
    for seed in seeds:
        answers = generate(
            model,
            tokenizer,
            asked,
            contender.side,
            seed=seed,
            sampling=sampling,
            max_new_tokens=settings.max_new_tokens,
            max_prompt=config.alignment.max_prompt,
            batch_size=settings.batch_size,
            progress=lambda done, total: watch.progress(done, total, "answers", contender.name),
        )
        texts = [answer.text.strip() for answer in answers]
        columns = {
            "id": [row.id for row in asked],
            "source": [row.source for row in asked],
            "seed": [seed] * len(asked),
            "prompt": [row.prompt for row in asked],
            "reference": [row.response for row in asked],
            "answer": texts,
            "tokens": [len(answer.tokens) for answer in answers],
            "finish_reason": [answer.finish_reason for answer in answers],
            **rouge_scores([row.response for row in asked], texts),
        }
        tables.append(pa.table(columns, schema=_ANSWERS))
    return pa.concat_tables(tables)


_ANSWERS = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "source")),
        ("seed", pa.int64()),
        *((name, pa.string()) for name in ("prompt", "reference", "answer")),
        ("tokens", pa.int64()),
        ("finish_reason", pa.string()),
        *((name, pa.float64()) for name in ("rouge1", "rouge2", "rougeL")),
    ]
)


def _metrics(likelihood: pa.Table, answers: pa.Table) -> dict[str, float]:
    nats, size = likelihood["nats"].to_numpy().sum(), likelihood["bytes"].to_numpy().sum()
    metrics = {"bits_per_byte": float(nats / np.log(2) / size)}
    if len(answers):
        metrics |= {name: float(answers[name].to_numpy().mean()) for name in ("rouge1", "rouge2", "rougeL")}
        metrics["empty_answers"] = float(sum(not text for text in answers["answer"].to_pylist()))
        metrics["unfinished_answers"] = float(answers["finish_reason"].to_pylist().count("length"))
    return metrics


_TITLES = {"teacher": "teacher", "initial": "student before", "student": "student after"}


def summary(config: RunConfig, trained: Manifest, metrics: dict[str, float], answers: dict[str, pa.Table]) -> str:
    """The report that ends a run, in Markdown: scores before and after, and answers side by side."""
    lines = [
        f"# {config.name}: {config.objective.name} in {trained.counts['steps']} steps",
        "",
        "| model | bits per byte | ROUGE-L |",
        "|---|---:|---:|",
    ]
    for name in answers:
        rouge = metrics.get(f"{name}/rougeL")
        shown = "" if rouge is None else f"{100 * rouge:.2f}"
        lines.append(f"| {_TITLES[name]} | {metrics[f'{name}/bits_per_byte']:.4f} | {shown} |")
    lines += ["", "Lower bits per byte are better; ROUGE-L is F1 times 100.", ""]
    return "\n".join([*lines, *_samples(config, answers)])


def _samples(config: RunConfig, answers: dict[str, pa.Table]) -> Iterator[str]:
    first = answers["student"]
    for number in range(min(config.evaluate.samples, len(first))):
        question = first["prompt"][number].as_py().strip().splitlines()
        yield f"## Example {first['id'][number].as_py()}"
        yield ""
        yield "> " + " ".join(line for line in question if line.strip())[-300:]
        yield ""
        yield f"- **reference**: {_short(first['reference'][number].as_py())}"
        for name, table in answers.items():
            yield f"- **{_TITLES[name]}**: {_short(table['answer'][number].as_py()) or '(empty)'}"
        yield ""


def _short(text: str, limit: int = 400) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def _write_table(path: Path, table: pa.Table) -> None:
    with atomic_write(path) as file:
        pq.write_table(table, pa.PythonFile(file, mode="w"))


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as file:
        file.write(data)
