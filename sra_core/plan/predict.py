"""What a run will take, before it runs: from a sample of its examples and a few seconds of its models.

The sample is systematic: examples of each split ordered by length, cut into as many equal parts as there are samples,
the middle one of each part taken. Whatever grows with length is then met to a few per cent.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pyarrow as pa
import torch
from numpy.typing import NDArray

from sra_core.alignment import AlignedExample, AlignmentAudit, render_html
from sra_core.cache import Holdings, capture_of
from sra_core.compare import few_texts
from sra_core.config import ObjectiveConfig, RunConfig, TrainingConfig
from sra_core.corpus import Corpus, Example, Rejected
from sra_core.doctor import check_devices, check_layers, check_models, doubtful_teacher
from sra_core.errors import DataError, SraError
from sra_core.evaluate import AnswerSettings, generate
from sra_core.models import (
    answer_ends,
    build_student,
    choose_layout,
    input_embeddings,
    layer_count,
    lm_head,
    load_head,
    load_kept_tokenizer,
    load_model,
    load_tokenizers,
    make_encoder,
    pick_device,
    resolve_layer,
    response_likelihood,
    save_head,
    shared_tokens,
)
from sra_core.objective import Batch, build_objective, student_layers
from sra_core.plan.plan import Plan
from sra_core.prepare import save_tokenizers
from sra_core.processes import die_with_parent
from sra_core.runs import Run, settled
from sra_core.shards import (
    PREPARED_SCHEMA,
    STUDENT_TOKENIZER,
    TEACHER_TOKENIZER,
    Manifest,
    MemoryPrepared,
    MemoryTeacher,
    PreparedRow,
    PreparedSet,
    TeacherRow,
    prepared_batch,
    prepared_row,
    teacher_batches,
    teacher_schema,
)
from sra_core.training import DistillData, add_adapters, quiet_libraries, total_steps
from sra_core.training.context import distill_data, objective_context
from sra_core.training.module import DistillModule
from sra_core.watch import Watcher

__all__ = ["SAMPLE", "plan_run", "stage_seconds"]

SAMPLE = 200
"""Examples that a plan looks at."""
_FEW = 48
_CALIBRATION_TOKENS = 4096  # teacher tokens of the timed capture
_ANSWERED = 8  # tokens of the timed answers
_SPLITS = ("train", "validation", "test")
_ADAM_BYTES = 16  # of a trained parameter: weight, gradient and two moments, all float32
_MIXED_BYTES = 18  # 16-bit weight and gradient, float32 master copy, gradient and moments
_ACTIVATIONS = 17  # numbers that a decoder layer keeps of each token for the backward, in units of its width


@dataclass(slots=True)
class _Sample:
    """Encoded examples, how many of the corpus each stands for, and which split it is of."""

    rows: list[PreparedRow]
    weights: NDArray[np.float64]
    splits: list[str]
    audit_bytes: int = 0

    def __len__(self) -> int:
        return round(float(self.weights.sum()))

    def only(self, split: str) -> _Sample:
        """The samples of one split, in an order that has nothing to do with their length."""
        places = [place for place, each in enumerate(self.splits) if each == split]
        order = np.random.default_rng(0).permutation(places).tolist()
        return _Sample([self.rows[place] for place in order], self.weights[order], [split] * len(order))

    def total(self, values: Sequence[float], split: str | None = None) -> float:
        """The corpus's (or a split's) sum of what the samples have ``values`` of."""
        chosen = np.array([split in (None, each) for each in self.splits])
        return float(np.dot(self.weights * chosen, np.asarray(values, np.float64)))


def plan_run(config: RunConfig, samples: int = SAMPLE) -> Plan:
    """Predict counts, bytes, memory and time of a run, and compare with what is done already.

    Args:
        config: The run config.
        samples: Examples to look at.

    Raises:
        ModelError: A model that a run cannot use: told in seconds, before the corpus is read.
        ConfigError: A layer that teacher or student do not have.
        DataError: The corpus has no example that can be used.
    """
    # As a run settles it: what `auto` types come to decides bytes and memory.
    config = settled(config)
    check_models(config)
    check_layers(config)
    check_devices(config)
    quiet_libraries()
    doubt = doubtful_teacher(config)
    plan, libraries = Plan(warnings=[doubt] if doubt else []), psutil.Process().memory_info().rss
    with tempfile.TemporaryDirectory(prefix="sra-plan-") as scratch:
        folder = Path(scratch)
        sample = _take_sample(config, folder, samples)
        _count(plan, sample)
        if few := few_texts(round(plan.counts["validation"])):
            plan.warnings.append(few)
        shards = sum(_shards(config, plan.counts[split]) for split in _SPLITS)
        plan.bytes["prepare"] = _scaled(_prepared_size, sample.rows, _prepared_parts(sample), sample, shards)
        plan.bytes["prepare"] += sample.audit_bytes + sum(
            path.stat().st_size for path in folder.rglob("*") if path.is_file()
        )
        train, teacher = sample.only("train"), None
        if config.adapt.enabled:
            _plan_adaptation(config, plan, train, folder)
        if config.objective.name != "sft":
            teacher = _plan_cache(config, plan, train, folder)
        student = _plan_training(config, plan, train, teacher, folder)
        _plan_evaluation(config, plan, sample.only("test"), student, folder)
    for stage in plan.memory:
        # On a CPU the peak that is measured is that of the whole process.
        plan.memory[stage] += libraries if plan.devices[stage] == "cpu" else 0
    _compare(config, plan)
    return plan


def stage_seconds(config: RunConfig) -> dict[str, float]:
    """Seconds of the stages that run a model, from fewer examples than a plan looks at: a guess for a grid of runs.

    Made by a process of its own, so that no memory of the models that it looks at is held beside those that train.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=die_with_parent) as executor:
        return executor.submit(_few_seconds, config).result()


def _few_seconds(config: RunConfig) -> dict[str, float]:
    return plan_run(config, samples=_FEW).seconds


def _shards(config: RunConfig, examples: float) -> int:
    return -(-round(examples) // config.alignment.examples_per_shard)


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# The sample.


def _take_sample(config: RunConfig, folder: Path, samples: int) -> _Sample:
    corpus = Corpus(config.corpus)
    lengths: dict[str, list[int]] = {split: [] for split in _SPLITS}
    for split, item in corpus:
        if isinstance(item, Example):
            lengths[split].append(len(item.instruction) + len(item.context) + len(item.response))
    chosen = _systematic(lengths, samples)
    seen = dict.fromkeys(_SPLITS, 0)
    examples, weights, splits = [], [], []
    for split, item in corpus:
        if not isinstance(item, Example):
            continue
        if weight := chosen.get((split, seen[split])):
            examples.append(item)
            weights.append(weight)
            splits.append(split)
        seen[split] += 1
    save_tokenizers(config, corpus, folder, Watcher())
    encoded = make_encoder(config, folder)(examples)
    kept = [place for place, item in enumerate(encoded) if isinstance(item, AlignedExample)]
    if not kept:
        raise DataError("none of the sampled examples can be used", "run `sra audit`, which says why")
    rows = [prepared_row(item) for item in encoded if isinstance(item, AlignedExample)]
    audit = _audit_bytes(config, folder, encoded)
    return _Sample(rows, np.array(weights)[kept], [splits[place] for place in kept], audit)


def _audit_bytes(config: RunConfig, folder: Path, encoded: Sequence[AlignedExample | Rejected]) -> int:
    """What the audit of the sample takes on disk; that of the whole corpus is hardly larger."""
    tokenizers = load_tokenizers(config, folder)
    audit = AlignmentAudit(shared_tokens(config, folder))
    for item in encoded:
        if isinstance(item, AlignedExample):
            audit.add(item)
    report = audit.report(*tokenizers)
    return len(json.dumps(report.to_dict()).encode()) + len(render_html(report).encode())


def _systematic(lengths: dict[str, list[int]], samples: int) -> dict[tuple[str, int], float]:
    """Weight of each sampled example, by split and place within the split."""
    total = sum(len(values) for values in lengths.values())
    chosen = {}
    for split, values in lengths.items():
        # A small split would otherwise be told from one or two of its examples.
        wanted = min(len(values), max(20, round(samples * len(values) / max(1, total))))
        order = np.argsort(values, kind="stable")
        for part in np.array_split(order, wanted) if wanted else ():
            chosen[split, int(part[len(part) // 2])] = float(len(part))
    return chosen


def _count(plan: Plan, sample: _Sample) -> None:
    ones = [1.0] * len(sample.rows)
    plan.counts = {split: sample.total(ones, split) for split in _SPLITS}
    plan.counts["teacher tokens"] = sample.total([len(row.teacher_ids) for row in sample.rows], "train")
    plan.counts["student tokens"] = sample.total([len(row.student_ids) for row in sample.rows], "train")
    plan.counts["spans"] = sample.total([len(row.teacher_spans) for row in sample.rows], "train")


# Bytes: what the sample takes on disk, less what a shard costs by itself, scaled up.


def _scaled(
    size: Callable[[Sequence[Any]], int], rows: Sequence[Any], parts: Sequence[float], sample: _Sample, shards: int
) -> float:
    """Bytes of all shards; ``parts`` go with the bytes of each row of the sample, which starts with ``rows``."""
    # Rows cut into n files take n - 1 times more of what a file costs by itself than in one file.
    pieces = [rows[start::4] for start in range(4) if len(rows) > start]
    whole = size(rows)
    overhead = (sum(size(piece) for piece in pieces) - whole) / max(1, len(pieces) - 1)
    return (whole - overhead) * sample.total(parts) / sum(parts[: len(rows)]) + overhead * shards


def _ipc_size(schema: pa.Schema, batches: Any, compression: str | None) -> int:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return int(sink.getvalue().size)


def _prepared_size(rows: Sequence[PreparedRow]) -> int:
    return _ipc_size(PREPARED_SCHEMA, [prepared_batch(rows)], None)


def _prepared_parts(sample: _Sample) -> list[float]:
    # Bytes in PREPARED_SCHEMA: 4 for each of ten columns (offsets, numbers), 4 a token, 8 a span and side.
    return [
        40.0
        + 4 * (len(row.teacher_ids) + len(row.student_ids))
        + 16 * len(row.teacher_spans)
        + len((row.id + row.prompt + row.response + row.source).encode())
        for row in sample.rows
    ]


# The cache: a short capture gives its rate and real rows.


def _plan_cache(config: RunConfig, plan: Plan, sample: _Sample, folder: Path) -> MemoryTeacher:
    """Returns the captured rows: those of the first examples of ``sample``, which is a training sample."""
    device, started = config.cache.device, time.perf_counter()
    device = device if device == "spread" else pick_device(device)
    model = load_model(config.teacher, config.cache.compute_dtype, device)
    choose_layout(model, config.layout, config.alignment.max_length)
    loading = time.perf_counter() - started
    holds, head = Holdings.of(config), lm_head(model)
    run = capture_of(config, holds, model)
    timed = _calibration(sample.rows)
    run(timed[:1])  # warms up
    started = time.perf_counter()
    kept = run(timed)
    rate = (time.perf_counter() - started) / sum(len(row.teacher_ids) for row in timed)
    plan.seconds["cache"] = loading + rate * plan.counts["teacher tokens"] / config.cache.workers
    plan.devices["cache"], plan.memory["cache"] = device, _capture_memory(config, model, holds)
    stored, width = config.cache, int(head.weight.shape[1])
    number = {"float32": 4, "bfloat16": 2, "int8": 1, "fp8": 1}[stored.dtype]
    parts = [_teacher_part(row, holds, number * width) for row in sample.rows]
    plan.bytes["cache"] = _scaled(
        lambda rows: _teacher_size(config, holds, width, rows), kept, parts, sample, _shards(config, len(sample))
    )
    shared = shared_tokens(config, folder)
    embedding = input_embeddings(model) if holds.tokens else None
    files = save_head(folder, head, shared, layer_count(model), embedding)
    plan.bytes["cache"] += sum((folder / name).stat().st_size for name in files)
    return MemoryTeacher(kept)


def _calibration(rows: Sequence[PreparedRow]) -> list[PreparedRow]:
    """The first rows up to a number of tokens; the sample is shuffled, so they are of all lengths."""
    total = np.cumsum([len(row.teacher_ids) for row in rows])
    return list(rows[: max(4, int(np.searchsorted(total, _CALIBRATION_TOKENS)))])


def _teacher_part(row: PreparedRow, holds: Holdings, vector: int) -> float:
    # A layer has offsets of 4 (masses) and 8 bytes (centres); a span its vector and a mass in float32.
    spans, states = len(row.teacher_spans), len(row.teacher_ids) - row.teacher_response
    return 20.0 + len(holds.layers) * (12 + spans * (vector + 4)) + holds.tokens * states * vector


def _teacher_size(config: RunConfig, holds: Holdings, width: int, rows: Sequence[TeacherRow]) -> int:
    compression = None if config.cache.compression == "none" else config.cache.compression
    schema = teacher_schema(
        holds.layers, config.cache.dtype, width, states=holds.tokens, compressed=compression is not None
    )
    return _ipc_size(schema, teacher_batches(rows, schema), compression)


# Memory: parameters are counted, activations follow from the shapes.


def _capture_memory(config: RunConfig, model: Any, holds: Holdings) -> float:
    """Weights, and the widest layer's activations of one batch beside the mapped states."""
    sizes = model.config.get_text_config()
    number = next(model.parameters()).element_size()
    width = sizes.hidden_size
    inner = getattr(sizes, "intermediate_size", None) or 4 * width
    token = number * (6 * width + 3 * inner) + (number + 4) * width * (len(holds.layers) + holds.tokens)
    return _bytes_of(model) + config.cache.tokens_per_batch * token


def _bytes_of(model: Any) -> float:
    return float(sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()))


def _training_memory(settings: TrainingConfig, module: DistillModule, tokens: float) -> float:
    """Weights, gradients and optimizer state of a process, and the activations of one forward."""
    # `fixed` counts weights as float32, which ZeRO divides at stage 3 alone; `state` is what else a trained one takes.
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    share = settings.processes if settings.zero_stage else 1
    fixed = sum(parameter.numel() for parameter in module.parameters()) * 4 / (share if settings.zero_stage == 3 else 1)
    state = (_ADAM_BYTES if settings.precision == "float32" else _MIXED_BYTES) - 4
    sizes = module.student.config.get_text_config()
    kept = tokens * sizes.hidden_size * _ACTIVATIONS * sizes.num_hidden_layers * _number(settings)
    return fixed + trained * state / share + kept


# Training: a few steps of the real module.


def _plan_adaptation(config: RunConfig, plan: Plan, sample: _Sample, folder: Path) -> None:
    settings, device = config.adapt, pick_device(config.adapt.device)
    model = load_model(config.teacher, "float32")
    weights = _bytes_of(model)
    if settings.lora:
        model = add_adapters(settings.lora, model)
    if settings.merge:
        plan.bytes["adapt"] = weights / 4 * _number(settings)
        plan.bytes["adapt"] += _bytes_below(folder / TEACHER_TOKENIZER)
    else:
        adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        plan.bytes["adapt"] = sum(4 * each.numel() for each in adapters)
    objective = ObjectiveConfig(name="sft")
    context = objective_context(config, folder, None, model)
    module = DistillModule(model.train(), build_objective(objective, context), []).to(device)
    choose_layout(model, config.layout, config.alignment.max_length)
    data = distill_data(config, MemoryPrepared(sample.rows), None, 0, "teacher")
    _plan_steps(plan, "adapt", settings, module, data)


def _plan_training(config: RunConfig, plan: Plan, sample: _Sample, teacher: MemoryTeacher | None, folder: Path) -> Any:
    """Returns the student as it starts, a few timed steps later."""
    settings, device = config.distill, pick_device(config.distill.device)
    tokenizer = load_kept_tokenizer(config, folder, "student")
    student = build_student(config, tokenizer, [row.prompt + row.response for row in sample.rows[:32]])
    plan.bytes["distill"] = _bytes_of(student) / 4 * _number(settings)
    plan.bytes["distill"] += _bytes_below(folder / STUDENT_TOKENIZER)
    rows = sample.rows[: len(teacher)] if teacher else sample.rows
    context = objective_context(config, folder, folder if teacher else None, student)
    layers = [resolve_layer(layer_count(student), layer) for layer in student_layers(config.objective)]
    objective = build_objective(config.objective, context)
    weighted = config.objective.weighted_pooling
    module = DistillModule(student.train(), objective, layers, attention=weighted).to(device)
    choose_layout(student, config.layout, config.alignment.max_length)
    count = load_head(folder).layers if teacher else 0
    data = distill_data(config, MemoryPrepared(rows), teacher, count)
    plan.counts["steps"] = _plan_steps(plan, "distill", settings, module, data)
    return student


def _plan_steps(plan: Plan, stage: str, settings: TrainingConfig, module: DistillModule, data: DistillData) -> int:
    """Time, memory and device of a training; returns its number of steps."""
    device = next(module.parameters()).device
    micro = settings.micro_batch if isinstance(settings.micro_batch, int) else settings.batch_size
    places = [np.arange(start, start + micro) % len(data.prepared) for start in range(0, 3 * micro, micro)]
    batches = [data.batch(place, 0).to(device) for place in places]
    step = _seconds(module, batches) * settings.accumulation * settings.batch_size / micro
    steps = total_steps(settings, round(plan.counts["train"]), settings.step_examples)
    longest = max(len(batch.input_ids) for batch in batches)
    plan.seconds[stage] = steps * step
    plan.devices[stage], plan.memory[stage] = device.type, _training_memory(settings, module, longest)
    return steps


def _number(settings: TrainingConfig) -> int:
    """Bytes of a saved weight, and of an activation."""
    return 4 if settings.precision == "float32" else 2


def _seconds(module: DistillModule, batches: Sequence[Batch]) -> float:
    """Of a forward, a backward and an optimizer step, after one that warms up."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-6)
    started = time.perf_counter()
    for place, batch in enumerate(batches):
        module(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        float(batch.starts[-1])  # waits for a device
        if place == 0:
            started = time.perf_counter()
    return (time.perf_counter() - started) / (len(batches) - 1)


# Evaluation: the likelihood of some test examples, and a few tokens of their answers.


def _plan_evaluation(config: RunConfig, plan: Plan, sample: _Sample, student: Any, folder: Path) -> None:
    """The longest that scoring the corpus's own test split takes: answers that stop before their limit take less."""
    if not sample.rows:
        return
    device = pick_device(config.evaluate.device)
    teacher_tokenizer, student_tokenizer = load_tokenizers(config, folder)
    seconds = _scoring_seconds(config, student.to(device), student_tokenizer, sample, "student")
    seconds *= 1 + config.evaluate.initial
    if config.evaluate.teacher:
        teacher = load_model(config.teacher, config.cache.compute_dtype, device)
        seconds += _scoring_seconds(config, teacher, teacher_tokenizer, sample, "teacher")
    plan.devices["evaluate"], plan.seconds["evaluate"] = device, seconds


def _scoring_seconds(
    config: RunConfig, model: Any, tokenizer: Any, sample: _Sample, side: Literal["teacher", "student"]
) -> float:
    """Of all test examples for one model."""
    settings, answers = config.evaluate, AnswerSettings.of(config.evaluate)
    rows = sample.rows[: settings.batch_size]
    choose_layout(model, config.layout, config.alignment.max_length)

    def timed(work: Callable[[], Any]) -> float:
        work()  # warms up
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    def answered(tokens: int) -> float:
        return timed(
            lambda: generate(
                model,
                tokenizer,
                rows,
                side,
                sampling=answers.sampling,
                max_new_tokens=tokens,
                max_prompt=answers.max_prompt,
                batch_size=settings.batch_size,
            )
        )

    examples = min(len(sample), settings.examples or len(sample))
    seconds = timed(lambda: response_likelihood(model, rows, side, eos_token_id=answer_ends(model)))
    seconds *= examples / len(rows)
    wanted = min(examples, examples if settings.generate is None else settings.generate) * len(answers.used_seeds)
    if wanted:
        first, several = answered(1), answered(_ANSWERED)
        step = max(several - first, 0.0) / (_ANSWERED - 1)
        seconds += (first + step * (answers.max_new_tokens - 1)) * wanted / len(rows)
    return seconds


# Afterwards.


def _compare(config: RunConfig, plan: Plan) -> None:
    run = Run(config)
    for stage in plan.bytes:
        try:
            manifest = run.result(stage)
        except SraError:
            continue
        plan.actual["bytes"][stage] = manifest.size()
        if stage == "prepare":
            _compare_prepared(plan, manifest)
        if stage == "cache":
            plan.actual["seconds"][stage] = manifest.metrics["cache/seconds"]
        if stage in ("adapt", "distill"):
            _compare_training(plan, stage, manifest)


def _compare_training(plan: Plan, stage: str, manifest: Manifest) -> None:
    """Time is that of the steps, as it is predicted: without start-up, validation and checkpoints."""
    steps = manifest.counts["steps"]
    if stage == "distill":
        plan.actual["counts"]["steps"] = steps
    if f"{stage}/seconds_per_step" in manifest.metrics:
        plan.actual["seconds"][stage] = steps * manifest.metrics[f"{stage}/seconds_per_step"]
        plan.actual["memory"][stage] = manifest.metrics[f"{stage}/peak_memory_bytes"]


def _compare_prepared(plan: Plan, manifest: Manifest) -> None:
    rows, actual = PreparedSet(manifest, "train"), plan.actual["counts"]
    actual |= {split: manifest.rows(split) for split in _SPLITS}
    actual["teacher tokens"], actual["student tokens"] = rows.tokens("teacher").sum(), rows.tokens("student").sum()
    actual["spans"] = rows.spans().sum()
