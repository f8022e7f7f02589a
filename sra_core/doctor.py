"""`sra doctor`: what is missing or slow on this machine; layers and tools, checked before anything runs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from sra_core.config import ModelRef, RunConfig
from sra_core.errors import SraError
from sra_core.runs import settled
from sra_core.shards import Remote, is_url, local_copy

__all__ = [
    "Finding",
    "check_datasets",
    "check_layers",
    "check_models",
    "check_tools",
    "doubtful_teacher",
    "examine",
]

_PACKAGES = ("torch", "transformers", "datasets", "pyarrow", "deepspeed", "prefect", "mlflow")
_GIB = 2**30

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
    """Look at the interpreter, packages, devices, memory, store, models and tracking of a config."""
    machine = (_python, _packages, _device, _precision, _memory, _store)
    checks = (*machine, _teacher, _knowledge, _layers, _evaluation, _tracking)
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
    asked = {config.cache.device, config.distill.device, config.evaluate.device}
    if any(device.startswith("cuda") for device in asked):
        yield Finding("bad", "the config asks for a GPU and torch finds none; set the devices to `auto`")
    yield Finding("slow", "no GPU: runs use the CPU; fine for quickstart, slow beyond")


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
    yield Finding("good" if free >= 6 else "slow", f"{free:.0f} GiB of memory free (quickstart takes about 4)")


def _store(config: RunConfig) -> Iterator[Finding]:
    if is_url(config.store):
        yield _remote_store(config.store)
        return
    store = Path(config.store).expanduser().absolute()
    parent = next(path for path in (store, *store.parents) if path.exists())
    if not os.access(parent, os.W_OK):
        yield Finding("bad", f"store {store} cannot be written; set `store` to a folder of yours")
        return
    free = shutil.disk_usage(parent).free / _GIB
    level: Level = "good" if free >= 5 else "slow" if free >= 1 else "bad"
    yield Finding(level, f"store {store}: {free:.0f} GiB free")


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

    for part, ref, check in _models(config):
        try:
            if not is_at_hand(ref):
                yield Finding("slow", f"{part} {ref.source} is fetched by pip when a run first asks for it")
                continue
            check()
        except SraError as error:
            yield Finding("bad", f"{part}: {error.problem} -> {error.remedy}")
        else:
            yield Finding("good", f"{part} {ref.source} is at hand")
    for part, ref in (("teacher", config.teacher), ("student", config.student)):
        if ref.terms:
            yield Finding("good", f"{part} {ref.source} comes under: {ref.terms}")


def _knowledge(config: RunConfig) -> Iterator[Finding]:
    if doubt := doubtful_teacher(config):
        yield Finding("note", doubt)


def doubtful_teacher(config: RunConfig) -> str | None:
    """What speaks against the teacher before anything is measured, with the remedy; None where nothing does.

    A student that is cut out of its teacher starts far behind it. One of another family may know as much, on prompts
    that the teacher was never trained on: SmolLM2-135M-Instruct does beside Gemma 3 270M, until that is adapted. One
    with random weights is there for the code path alone: nobody expects it to know a thing.
    """
    if config.objective.name == "sft" or config.adapt.enabled or config.student.source == "teacher":
        return None
    if config.teacher.template == "chat" or config.teacher.source.startswith("random:"):
        return None
    return (
        "the teacher may know less of this corpus than the student does, as it was trained on prompts of another "
        "format; `sra cache` measures both, and adapt.enabled=true fine-tunes the teacher on the corpus first"
    )


def _layers(config: RunConfig) -> Iterator[Finding]:
    from sra_core.models import is_at_hand

    try:
        for part, ref, check in _models(config):
            if part in ("teacher", "student"):
                if not is_at_hand(ref):
                    return
                check()
    except SraError:
        return  # told already
    try:
        check_layers(config)
    except SraError as error:
        yield Finding("bad", f"objective.layers: {error.problem} -> {error.remedy}")


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
    from sra_core.prepare import student_tokenizer_ref

    yield "teacher", config.teacher, partial(check_model, config.teacher)
    yield (
        "teacher's tokenizer",
        config.teacher,
        partial(check_tokenizer, config.teacher, config.teacher.template == "chat", teacher=True),
    )
    if config.student.source != "teacher":
        yield "student", config.student, partial(check_model, config.student)
    own = student_tokenizer_ref(config)
    if own is not None:
        yield "student's tokenizer", own, partial(check_tokenizer, own, config.student.template == "chat")


def check_layers(config: RunConfig) -> None:
    """Refuse layer pairs that the two models do not have, from their configs alone.

    Raises:
        ConfigError: Names the layer and how many there are.
        ModelError: A model cannot be found.
    """
    from sra_core.models import layer_count_of, resolve_layer

    student = config.teacher if config.student.source == "teacher" else config.student
    counts = [layer_count_of(ref) for ref in (config.teacher, student)]
    for pair in config.objective.layers:
        resolve_layer(counts[0], pair[0])
        resolve_layer(config.student.keep_layers or counts[1], pair[1])


def check_tools(config: RunConfig) -> None:
    """Refuse an evaluation whose tools are not installed, hours before it would ask for them.

    Raises:
        ConfigError: Names the field and what to install.
    """
    from sra_core.evaluate import pick_backend, require_lm_eval
    from sra_core.models import pick_device

    require_lm_eval(config.evaluate.lm_eval)
    pick_backend(config.evaluate.backend, pick_device(config.evaluate.device))


def check_datasets(config: RunConfig) -> None:
    """Refuse an evaluation whose data sets cannot be read, hours before it would ask for them.

    Raises:
        ConfigError: A field of a data set that it has no use for.
        DataError: Names the data set, the file and line, and what to do.
    """
    from sra_core.evaluate import check_datasets as check

    check(config)
