"""`sra doctor`: what is missing or slow on this machine; layers and tools, checked before anything runs."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from sra_core.config import ModelRef, RunConfig
from sra_core.errors import ConfigError, DataError, EvaluationError, SraError
from sra_core.runs import settled
from sra_core.shards import Manifest, Remote, is_url, local_copy

__all__ = [
    "Finding",
    "check_corpus",
    "check_datasets",
    "check_devices",
    "check_examples",
    "check_layers",
    "check_models",
    "check_tools",
    "doubtful_teacher",
    "examine",
]

_PACKAGES = ("torch", "transformers", "datasets", "pyarrow", "deepspeed", "prefect", "mlflow")
_GIB = 2**30
_LOOKED_AT = 20
"""Training examples that are tokenized to see whether any can be used."""

Level = Literal["good", "slow", "note", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: ``good``, ``slow`` (works, takes time), ``note`` (works, is worth a look) or ``bad`` (would fail)."""

    level: Level
    text: str

    @property
    def colour(self) -> str:
        return {"good": "green", "slow": "yellow", "note": "yellow", "bad": "red"}[self.level]


def examine(config: RunConfig) -> list[Finding]:
    """Look at the interpreter, packages, devices, memory, store, models, corpus and tracking of a config."""
    machine = (_python, _packages, _device, _asked_devices, _precision, _memory, _store)
    checks = (*machine, _teacher, _knowledge, _layers, _corpus, _evaluation, _tracking)
    return [finding for check in checks for finding in check(config)]


def _python(config: RunConfig) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("good", f"Python {version} on {os.cpu_count()} cores")


def _packages(config: RunConfig) -> Iterator[Finding]:
    for name in _PACKAGES:
        try:
            yield Finding("good", f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            yield Finding("bad", f"{name} is not installed; run `make setup`")


def _device(config: RunConfig) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            gibibytes = torch.cuda.get_device_properties(number).total_memory / _GIB
            yield Finding("good", f"GPU {number}: {torch.cuda.get_device_name(number)}, {gibibytes:.0f} GiB")
        return
    yield Finding("slow", "no GPU: runs use the CPU; fine for quickstart, slow beyond")


def _asked_devices(config: RunConfig) -> Iterator[Finding]:
    try:
        check_devices(config)
    except SraError as error:
        yield Finding("bad", f"{error.problem} -> {error.remedy}")
    if config.cache.device == "spread":
        yield _spread(config)


def _spread(config: RunConfig) -> Finding:
    from sra_core.models import room_to_spread

    room = {name: size / _GIB for name, size in room_to_spread().items()}
    gpus = sum(size for name, size in room.items() if name != "cpu")
    text = f"the teacher is spread over {len(room) - 1} GPUs ({gpus:.0f} GiB free), main memory ({room['cpu']:.0f} GiB)"
    return Finding("good" if gpus else "slow", f"{text} and disk, in this order: the further, the slower")


def _precision(config: RunConfig) -> Iterator[Finding]:
    asked, found = config, settled(config)
    rows = [
        ("the teacher runs", asked.cache.compute_dtype, found.cache.compute_dtype),
        ("the student is trained", asked.distill.precision, found.distill.precision),
    ]
    if config.adapt.enabled:
        rows.append(("the teacher is adapted", asked.adapt.precision, found.adapt.precision))
    for what, choice, dtype in rows:
        yield Finding("good", f"{what} in {dtype}" + (" (chosen for this machine)" if choice == "auto" else ""))


def _memory(config: RunConfig) -> Iterator[Finding]:
    import psutil

    free = psutil.virtual_memory().available / _GIB
    yield Finding("good" if free >= 4 else "slow", f"{free:.0f} GiB of memory free; `sra plan` says what a run takes")


def _store(config: RunConfig) -> Iterator[Finding]:
    if is_url(config.store):
        yield _remote_store(config.store)
        return
    store = Path(config.store).expanduser().absolute()
    parent = next(path for path in (store, *store.parents) if path.exists())
    if not parent.is_dir():
        yield Finding("bad", f"store {store}: {parent} is a file; set `store` to a folder of yours")
        return
    if not os.access(parent, os.W_OK):
        yield Finding("bad", f"store {store} cannot be written; set `store` to a folder of yours")
        return
    free = shutil.disk_usage(parent).free / _GIB
    level: Level = "good" if free >= 5 else "slow" if free >= 1 else "bad"
    remedy = "" if level == "good" else "; free space, or set `store` to a folder with room"
    yield Finding(level, f"store {store}: {free:.0f} GiB free{remedy}")


def _remote_store(url: str) -> Finding:
    probe = f"doctor-{os.getpid()}"
    try:
        remote = Remote(url)
        remote.write(probe, b"x")
        remote.remove(probe)
    except SraError as error:
        return Finding("bad", f"store {error.problem} -> {error.remedy}")
    return Finding("good", f"store {url} can be written; read through {local_copy(url)}")


def _teacher(config: RunConfig) -> Iterator[Finding]:
    from sra_core.models import is_at_hand

    told: set[str] = set()
    for part, ref, check in _models(config):
        try:
            if not is_at_hand(ref):
                yield Finding("slow", f"{part} {ref.source} is fetched by pip when a run first asks for it")
                continue
            check()
        except SraError as error:
            if error.problem not in told:  # a model and its tokenizer may lie in one folder
                yield Finding("bad", f"{part}: {error.problem} -> {error.remedy}")
            told.add(error.problem)
        else:
            yield Finding("good", f"{part} {ref.source} is at hand")
    for part, ref in (("teacher", config.teacher), ("student", config.student)):
        if ref.terms:
            yield Finding("good", f"{part} {ref.source} comes under: {ref.terms}")


def _knowledge(config: RunConfig) -> Iterator[Finding]:
    if doubt := doubtful_teacher(config):
        yield Finding("note", doubt)


def doubtful_teacher(config: RunConfig) -> str | None:
    """What speaks against learning from the teacher before anything is measured, with the remedy; else None.

    A student that is cut out of its teacher starts far behind it. One of another family may know as much, on prompts
    that the teacher was never trained on: SmolLM2-135M-Instruct does beside Gemma 3 270M, until that is adapted. One
    with random weights is there for the code path alone: nobody expects it to know a thing.
    """
    if config.objective.name == "sft":
        return None
    if config.objective.alpha == 1:
        return (
            "objective.alpha is 1, so that the teacher's terms weigh nothing; lower it, or take objective.name=sft, "
            "which trains the same without a cache"
        )
    if config.adapt.enabled or config.student.source == "teacher":
        return None
    if config.teacher.template == "chat" or config.teacher.source.startswith("random:"):
        return None
    return (
        "the teacher may know less of this corpus than the student does, as it was trained on prompts of another "
        "format; `sra cache` measures both, and adapt.enabled=true fine-tunes the teacher on the corpus first"
    )


def _layers(config: RunConfig) -> Iterator[Finding]:
    if not _usable(config, "teacher", "student"):
        return
    try:
        check_layers(config)
    except SraError as error:
        yield Finding("bad", f"layers: {error.problem} -> {error.remedy}")


def _corpus(config: RunConfig) -> Iterator[Finding]:
    try:
        check_corpus(config, encode=_usable(config, "teacher's tokenizer", "student's tokenizer"))
    except SraError as error:
        yield Finding("bad", f"{error.problem} -> {error.remedy}")
    else:
        yield Finding("good", f"corpus {config.corpus.source} can be read")


def _usable(config: RunConfig, *parts: str) -> bool:
    """Whether parts of the models are at hand and in order; what is wrong with them is told where they are checked."""
    from sra_core.models import is_at_hand

    try:
        for part, ref, check in _models(config):
            if part in parts:
                if not is_at_hand(ref):
                    return False
                check()
    except SraError:
        return False
    return True


def _evaluation(config: RunConfig) -> Iterator[Finding]:
    try:
        check_tools(config)
        check_datasets(config)
    except SraError as error:
        yield Finding("bad", f"{error.problem} -> {error.remedy}")
    else:
        if config.evaluate.datasets:
            yield Finding("good", f"{len(config.evaluate.datasets)} data sets of evaluate.datasets can be read")


def _tracking(config: RunConfig) -> Iterator[Finding]:
    from sra_core.watch.mlflow import tracking_uri

    if config.tracking.enabled:
        yield Finding("good", f"MLflow: {tracking_uri(config)}")


def check_models(config: RunConfig) -> None:
    """Refuse models that a stage would refuse hours later, from configs, tokenizers, indexes and headers.

    What passed once is not looked at again while the files of the models stay as they are.

    Raises:
        ModelError: Names the file and what is wrong with it.
    """
    for _, _, check in _models(config):
        check()


def _models(config: RunConfig) -> Iterator[tuple[str, ModelRef, Callable[[], None]]]:
    """What each part of the config needs of models: its name, the reference, and the check."""
    from sra_core.models import check_model, check_tokenizer

    yield "teacher", config.teacher, partial(check_model, config.teacher)
    yield (
        "teacher's tokenizer",
        config.teacher,
        partial(check_tokenizer, config.teacher, config.teacher.template == "chat", teacher=True),
    )
    if config.student.source != "teacher":
        yield "student", config.student, partial(check_model, config.student)
    own = config.student_tokenizer_origin
    if own is not None:
        yield "student's tokenizer", own, partial(check_tokenizer, own, config.student.template == "chat")


def check_layers(config: RunConfig) -> None:
    """Refuse layers that the two models do not have, from their configs alone.

    Raises:
        ConfigError: Names the layer and how many there are.
        ModelError: A model cannot be found, or has fewer layers than are to be kept of it.
    """
    from sra_core.models import layer_count_of, resolve_layer, spread_layers

    teacher, student = (layer_count_of(ref) for ref in (config.teacher, config.student_origin))
    # Layers of the student are counted after pruning.
    kept = len(spread_layers(student, config.student.keep_layers or student))
    pairs = [(resolve_layer(teacher, pair[0]), resolve_layer(kept, pair[1])) for pair in config.objective.layers]
    for place, pair in enumerate(pairs):
        if pair in pairs[:place]:
            raise ConfigError(
                f"objective.layers: {list(config.objective.layers[place])} is layer {pair[0]} of the teacher and layer "
                f"{pair[1]} of the student, which are a pair already",
                "leave it out; -1 is the last layer",
            )
    for layer in config.cache.layers:
        resolve_layer(teacher, layer, "cache.layers")


def check_devices(config: RunConfig) -> None:
    """Refuse devices that this machine does not have.

    Raises:
        ConfigError: Names the field and the device.
    """
    from sra_core.models import pick_device

    parts = ["adapt"] if config.adapt.enabled else []
    for part in (*parts, "cache", "distill", "evaluate"):
        device = getattr(config, part).device
        if (part, device) == ("cache", "spread"):
            continue
        try:
            pick_device(device)
        except ConfigError as error:
            raise ConfigError(f"{part}.device: {error.problem}", error.remedy) from error


def check_corpus(config: RunConfig, encode: bool = True) -> None:
    """Refuse a corpus that cannot be read, holds no training example, or none that both tokenizers can write.

    Reads all rows once; the first training examples are tokenized.

    Args:
        config: The run config.
        encode: Whether to tokenize; a student's tokenizer that is trained on the corpus is not there yet.

    Raises:
        ConfigError: A field of the corpus that it has no use for.
        DataError: Names file and line, or the reasons why no example is left.
        AlignmentError: A chat template is asked of a tokenizer that is trained on the corpus.
    """
    from sra_core.alignment import AlignedExample, encoder_of
    from sra_core.corpus import Corpus, Rejected
    from sra_core.models import load_tokenizer
    from sra_core.prepare import refuse_chat_without_template

    refuse_chat_without_template(config)
    found, reasons = [], Counter[str]()
    # Before the first example comes, a pass over all rows has found the limits, and whatever is malformed.
    for split, item in Corpus(config.corpus):
        if isinstance(item, Rejected):
            reasons[item.reason] += 1
        elif split == "train":
            found.append(item)
        if len(found) == _LOOKED_AT:
            break
    if not found:
        raise DataError(
            f"{config.corpus.source} holds no training example ({dict(reasons)})",
            "look at its columns and layout, and at the limits and shares in corpus",
        )
    origin = config.student_tokenizer_origin
    if not encode or origin is None:
        return
    encoded = encoder_of(config, load_tokenizer(config.teacher), load_tokenizer(origin))(found)
    refused = [item for item in encoded if not isinstance(item, AlignedExample)]
    if len(refused) == len(found):
        raise DataError(
            f"none of the first {len(found)} training examples of {config.corpus.source} can be used; {refused[0].id}: "
            f"{refused[0].detail}",
            "look at the limits of alignment and at the templates of teacher and student",
        )


def check_tools(config: RunConfig) -> None:
    """Refuse an evaluation whose tools are not installed, hours before it would ask for them.

    Raises:
        ConfigError: Names the field and what to install.
    """
    from sra_core.evaluate import pick_backend, require_lm_eval
    from sra_core.models import pick_device

    require_lm_eval(config.evaluate.lm_eval)
    pick_backend(config.evaluate.backend, pick_device(config.evaluate.device))


def check_examples(config: RunConfig, prepared: Manifest) -> None:
    """Refuse prepared examples of which none could be scored, before the teacher runs over them.

    Raises:
        EvaluationError: Names what to raise.
    """
    if prepared.rows("train") and not prepared.rows("test") and not config.evaluate.datasets:
        raise EvaluationError(
            "the corpus has no test example, so that nothing could be scored",
            "raise corpus.test_share (0.2 takes every fifth example), or name evaluate.datasets",
        )


def check_datasets(config: RunConfig) -> None:
    """Refuse an evaluation whose data sets cannot be read, hours before it would ask for them.

    Raises:
        ConfigError: A field of a data set that it has no use for.
        DataError: Names the data set, the file and line, and what to do.
    """
    from sra_core.evaluate import check_datasets as check

    check(config)
