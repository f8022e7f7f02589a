"""The whole story: prepare, adapt (if asked), cache, distill, evaluate: plain functions from a config to a manifest.

A stage returns at once if its result is there and whole; else it keeps the finished pieces and does the rest. It finds
the results that it builds on by their fingerprints and says what to run if one is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from sra_core.cluster import shard_executor
from sra_core.config import RunConfig
from sra_core.errors import ConfigError, ManifestMismatch, ShardError
from sra_core.shards import SCHEMA_VERSION, Manifest, StageFolder, verify
from sra_core.watching import Watcher, watched

__all__ = [
    "STAGES",
    "adapt",
    "adapted",
    "cache",
    "check_layers",
    "check_tools",
    "distill",
    "evaluate",
    "folder_of",
    "inputs_read_once",
    "needed",
    "prepare",
    "result_of",
    "run",
    "verified",
]


def prepare(config: RunConfig, watch: Watcher | None = None, *, executor: Executor | None = None) -> Manifest:
    """Tokenize the corpus with both tokenizers, map spans, write shards and the alignment audit.

    Args:
        config: The run config.
        watch: Told of progress.
        executor: Where shards are made: a ``ProcessPoolExecutor``, Dask's ``client.get_executor()``, or any other that
            runs functions in processes which reach the store and have this package. It stays open, and is handed one
            task a shard, each of which writes its shard itself; this process reads the corpus, gathers the audit and
            commits. Unset takes the cluster that ``dask`` names, else ``alignment.workers`` processes here. The bytes
            are the same.

    Raises:
        AlignmentError: The audit misses a bound of ``alignment.gate``; nothing downstream is run.
        SraError: Input, tokenizer or store cannot be used.
    """
    from sra_core import preparation

    folder = _prepare_folder(config)
    watch = watch or Watcher()

    def work() -> Manifest:
        with shard_executor(config, executor) as shards:
            return preparation.prepare_corpus(config, folder, watch, shards)

    def check(manifest: Manifest) -> None:
        preparation.audit_of(manifest).require(config.alignment.gate)

    return _once(folder, config, watch, (), "tokenize both sides and map spans", work, check)


def adapt(config: RunConfig, watch: Watcher | None = None) -> Manifest:
    """Fine-tune the teacher on the training examples; the cache, the student's start and the scores then read it.

    Raises:
        ConfigError: The config does not ask for it.
        ManifestMismatch: The prepared examples of this config are missing.
        TrainingError: Training stopped; running again resumes from the last checkpoint.
    """
    from sra_core import adaptation, distillation

    if not config.adapt.enabled:
        raise ConfigError("the teacher is not to be adapted", "set adapt.enabled")
    prepared = result_of("prepare", config)
    folder = _adapt_folder(config)
    if distillation.joins(config.adapt):
        distillation.join_training(config.adapt, folder)
    watch = watch or Watcher()

    def work() -> Manifest:
        return adaptation.adapt_teacher(config, prepared, folder, watch)

    return _once(folder, config, watch, (prepared,), "fine-tune the teacher on the corpus", work)


def cache(config: RunConfig, watch: Watcher | None = None, *, executor: Executor | None = None) -> Manifest:
    """Run the teacher once over the training examples and keep its span centres, masses and shared LM head rows.

    Args:
        config: The run config.
        watch: Told of progress.
        executor: Where shards are captured, as in `prepare`. Each of its processes loads the teacher for its first task
            and lets it go when no task came for a minute; ``cache.device`` holds there. This process loads the teacher
            as well, for its head and for the check of what was stored. Unset takes the cluster that ``dask`` names, or
            ``cache.workers`` processes here. What other processes or machines are at work on is waited for either way.

    Raises:
        ManifestMismatch: The prepared examples of this config are missing.
        AlignmentError: Their audit misses a bound of ``alignment.gate``.
        SraError: The teacher or the store cannot be used.
    """
    from sra_core import capture, preparation

    prepared = result_of("prepare", config)
    preparation.audit_of(prepared).require(config.alignment.gate)
    folder = capture.find_cache(_cache_folder(config))
    watch = watch or Watcher()

    def work() -> Manifest:
        with shard_executor(config, executor) as shards:
            return capture.capture_teacher(adapted(config), prepared, folder, watch, shards)

    plan = f"capture layers {folder.identity['holds']['layers']} of {prepared.rows('train')} examples"
    return _once(folder, config, watch, (prepared,), plan, work, shared=True)


def distill(config: RunConfig, watch: Watcher | None = None) -> Manifest:
    """Train the student with DeepSpeed from the cache; the result is a Hugging Face folder.

    Raises:
        ManifestMismatch: The prepared examples or the cache of this config are missing.
        TrainingError: Training stopped; running again resumes from the last checkpoint.
    """
    from sra_core import distillation

    upstream = [result_of(stage, config) for stage in _distill_reads(config)]
    folder = _distill_folder(config)
    if distillation.joins(config.distill):
        distillation.join_training(config.distill, folder)
    watch = watch or Watcher()

    def work() -> Manifest:
        return distillation.distill_student(config, upstream, folder, watch, adapted(config).teacher)

    return _once(folder, config, watch, upstream, f"train with objective {config.objective.name}", work)


def evaluate(config: RunConfig, watch: Watcher | None = None) -> Manifest:
    """Score teacher, initial student and student on the held-out test examples and the data sets of the config.

    Raises:
        DataError: A data set cannot be read.
        ManifestMismatch: The prepared examples or the student of this config are missing.
        EvaluationError: There is nothing to evaluate.
    """
    from sra_core import scoring

    upstream = [result_of(stage, config) for stage in ("prepare", "distill")]
    folder = _evaluate_folder(config)
    watch = watch or Watcher()

    def work() -> Manifest:
        return scoring.score_student(adapted(config), upstream, folder, watch)

    def report(manifest: Manifest) -> None:
        scoring.report_evaluation(manifest, watch)

    return _once(folder, config, watch, upstream, "score held-out examples", work, report)


def run(config: RunConfig, watch: Watcher | None = None) -> dict[str, Manifest]:
    """All stages that the config needs, in order; returns their manifests by stage.

    Raises:
        ConfigError: A layer that teacher or student do not have, or a tool of evaluation that is not installed: found
            before anything runs.
    """
    check_layers(config)
    check_tools(config)
    return {name: STAGES[name](config, watch) for name in needed(config)}


def check_layers(config: RunConfig) -> None:
    """Refuse layer pairs that the two models do not have, from their configs alone.

    Raises:
        ConfigError: Names the layer and how many there are.
        ModelError: A model cannot be found.
    """
    from transformers import AutoConfig

    from sra_core.models import layer_count, resolve, resolve_layer

    student = config.teacher if config.student.source == "teacher" else config.student
    counts = [
        layer_count(AutoConfig.from_pretrained(resolve(ref, weights=False), trust_remote_code=ref.trust_remote_code))
        for ref in (config.teacher, student)
    ]
    for pair in config.objective.layers:
        resolve_layer(counts[0], pair[0])
        resolve_layer(config.student.keep_layers or counts[1], pair[1])


def check_tools(config: RunConfig) -> None:
    """Refuse an evaluation whose tools are not installed, hours before it would ask for them.

    Raises:
        ConfigError: Names the field and what to install.
    """
    from sra_core.evaluation import pick_backend, require_lm_eval
    from sra_core.models import pick_device

    require_lm_eval(config.evaluate.lm_eval)
    pick_backend(config.evaluate.backend, pick_device(config.evaluate.device))


STAGES: dict[str, Callable[..., Manifest]] = {
    "prepare": prepare,
    "adapt": adapt,
    "cache": cache,
    "distill": distill,
    "evaluate": evaluate,
}


def needed(config: RunConfig) -> list[str]:
    """Names of the stages that the config needs, in order."""
    wanted = {*_distill_reads(config), *(["adapt"] if config.adapt.enabled else []), "distill", "evaluate"}
    return [name for name in STAGES if name in wanted]


def result_of(stage: str, config: RunConfig) -> Manifest:
    """The finished result of a stage under this config.

    Raises:
        ManifestMismatch: There is none; names the fields in which the nearest result in the store differs.
    """
    folder = folder_of(stage, config)
    manifest = folder.manifest()
    if manifest is None:
        raise ManifestMismatch(*folder.missing(f"sra {stage}"))
    return manifest


def folder_of(stage: str, config: RunConfig) -> StageFolder:
    """The folder that holds, or would hold, the result of a stage under this config."""
    folder = _FOLDERS[stage](config)
    if stage == "cache":
        from sra_core import capture

        return capture.find_cache(folder)
    return folder


def verified(stage: str, config: RunConfig) -> Manifest:
    """The result of a stage after reading every byte of it.

    A damaged result counts as unfinished from then on: the stage mends it when it is run again.

    Raises:
        ManifestMismatch: There is none.
        ShardError: Names the first file that is missing, truncated or changed.
    """
    manifest, folder = result_of(stage, config), folder_of(stage, config)
    try:
        verify(folder.path, [*manifest.shards, *manifest.files], full=True)
    except ShardError:
        folder.reset()
        raise
    return manifest


def _once(
    folder: StageFolder,
    config: RunConfig,
    watch: Watcher,
    upstream: Iterable[Manifest],
    plan: str,
    work: Callable[[], Manifest],
    check: Callable[[Manifest], None] = lambda manifest: None,
    shared: bool = False,
) -> Manifest:
    """The stage's result: the one that is there and whole, or the one that ``work`` makes under the folder's lock.

    Where ``shared``, any number of processes may be at it, and ``work`` sees to it that they share.
    """
    upstream = list(upstream)
    lock = folder.lock(lambda: watch.message("another process works on this result; waiting for it"))
    with nullcontext() if shared else lock:
        manifest = folder.manifest(upstream)
        reused = manifest is not None
        with watched(watch, folder.stage, folder.fingerprint, config, plan, reused=reused):
            if manifest is None:
                if not shared:
                    folder.reset()
                manifest = work()
            check(manifest)
            watch.end(manifest)
    return manifest


_read: ContextVar[dict[str, dict[str, Any]] | None] = ContextVar("_read", default=None)


@contextmanager
def inputs_read_once() -> Iterator[None]:
    """In the body, what identifies corpus and tokenizers is read once, however many configs share them.

    For grids of configs: that reading is most of what finding a result costs. Inputs must not change meanwhile.
    """
    token = _read.set({})
    try:
        yield
    finally:
        _read.reset(token)


def _prepare_identity(config: RunConfig) -> dict[str, Any]:
    from sra_core import preparation

    known = _read.get()
    if known is None:
        return preparation.prepare_identity(config)
    key = config.model_dump_json(include={"teacher", "student", "corpus", "alignment"})
    if key not in known:
        known[key] = preparation.prepare_identity(config)
    return known[key]


def _prepare_folder(config: RunConfig) -> StageFolder:
    return StageFolder(config.store, "prepare", _prepare_identity(config))


def _adapt_folder(config: RunConfig) -> StageFolder:
    from sra_core import adaptation

    return StageFolder(config.store, "adapt", adaptation.adapt_identity(config, _prepare_folder(config).fingerprint))


def adapted(config: RunConfig) -> RunConfig:
    """The config with the adapted teacher in the teacher's place, where there is to be one."""
    from sra_core import adaptation

    return adaptation.with_adapted_teacher(config, result_of("adapt", config)) if config.adapt.enabled else config


def _cache_folder(config: RunConfig) -> StageFolder:
    from sra_core import capture
    from sra_core.models import model_identity

    prepared = _prepare_folder(config).identity
    teacher = model_identity(adapted(config).teacher)
    return StageFolder(config.store, "cache", capture.cache_identity(config, prepared, teacher))


def _distill_folder(config: RunConfig) -> StageFolder:
    from sra_core import distillation

    reads = {stage: _FOLDERS[stage](config).fingerprint for stage in _distill_reads(config)}
    return StageFolder(config.store, "distill", distillation.distill_identity(adapted(config), reads))


def _evaluate_folder(config: RunConfig) -> StageFolder:
    from sra_core import scoring

    made: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "students": _distill_folder(config).fingerprint,
        "evaluate": scoring.evaluation_identity(config),
        **({"adapted": _adapt_folder(config).fingerprint} if config.adapt.enabled else {}),
    }
    return StageFolder(config.store, "evaluate", made)


def _distill_reads(config: RunConfig) -> tuple[str, ...]:
    return ("prepare",) if config.objective.name == "sft" else ("prepare", "cache")


_FOLDERS: dict[str, Callable[[RunConfig], StageFolder]] = {
    "prepare": _prepare_folder,
    "adapt": _adapt_folder,
    "cache": _cache_folder,
    "distill": _distill_folder,
    "evaluate": _evaluate_folder,
}
