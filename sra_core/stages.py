"""The whole story: prepare, adapt (if asked), cache, distill, evaluate: plain functions from a config to a manifest.

A stage returns at once if its result is there and whole; else it keeps the finished pieces and does the rest. It finds
the results that it builds on by their fingerprints and says what to run if one is missing.

Packages are imported where they are used: a stage that is done loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

from sra_core.config import RunConfig
from sra_core.errors import ConfigError
from sra_core.processes import shard_executor
from sra_core.runs import Run
from sra_core.shards import Manifest
from sra_core.watch import Watcher

__all__ = ["STAGES", "adapt", "cache", "distill", "evaluate", "generate", "prepare", "run"]


def prepare(config: RunConfig | Run, watch: Watcher | None = None, *, executor: Executor | None = None) -> Manifest:
    """Tokenize the corpus with both tokenizers, map spans, write shards and the alignment audit.

    Args:
        config: The run config, or a run that is settled already.
        watch: Told of progress.
        executor: Where shards are made: a ``ProcessPoolExecutor``, Dask's ``client.get_executor()``, or any other that
            runs functions in processes which reach the store and have this package. It stays open, and is handed one
            task a shard, each of which writes its shard itself; this process reads the corpus, gathers the audit and
            commits. Unset takes the cluster that ``dask`` names, else ``alignment.workers`` processes here. The bytes
            are the same.

    Raises:
        AlignmentError: The audit misses a threshold of ``alignment.gate``; nothing downstream is run.
        SraError: Input, tokenizer or store cannot be used.
    """
    from sra_core.prepare import audit_of, prepare_corpus, report_audit

    run, watch = Run.of(config), watch or Watcher()
    folder = run.folder("prepare")

    def work() -> Manifest:
        with shard_executor(run.config, executor) as shards:
            return prepare_corpus(run.config, folder, watch, shards)

    def check(manifest: Manifest) -> None:
        audit = audit_of(manifest)
        report_audit(audit, manifest, watch)
        audit.require(run.config.alignment.gate)

    return run.once(folder, watch, (), "tokenize both sides and map spans", work, check)


def adapt(config: RunConfig | Run, watch: Watcher | None = None) -> Manifest:
    """Fine-tune the teacher on the training examples; the cache, the student's start and the scores then read it.

    Raises:
        ConfigError: The config does not ask for it.
        ManifestMismatch: The prepared examples of this config are missing.
        TrainingError: Training stopped; running again resumes from the last checkpoint.
    """
    from sra_core.training import join_stage, refuse_other_numbers

    run, watch = Run.of(config), watch or Watcher()
    if not run.config.adapt.enabled:
        raise ConfigError("the teacher is not to be adapted", "set adapt.enabled")
    refuse_other_numbers(run.config.adapt, "adapt")
    prepared = run.result("prepare")
    folder = run.folder("adapt")
    # Other ranks of torchrun train in here and find the finished result below; the first one makes it.
    join_stage(folder)

    def work() -> Manifest:
        from sra_core.adapt import adapt_teacher

        return adapt_teacher(run.config, prepared, folder, watch)

    return run.once(folder, watch, (prepared,), "fine-tune the teacher on the corpus", work)


def cache(config: RunConfig | Run, watch: Watcher | None = None, *, executor: Executor | None = None) -> Manifest:
    """Run the teacher once over the training examples and keep its span centres, masses and shared LM head rows.

    Args:
        config: The run config, or a run that is settled already.
        watch: Told of progress.
        executor: Where shards are captured, as in `prepare`. Each of its processes loads the teacher for its first task
            and lets it go when no task came for a minute; ``cache.device`` holds there. This process loads the teacher
            as well, for its head and for the check of what was stored. Unset takes the cluster that ``dask`` names, or
            ``cache.workers`` processes here. What other processes or machines are at work on is waited for either way.

    Raises:
        ManifestMismatch: The prepared examples of this config are missing.
        AlignmentError: Their audit misses a threshold of ``alignment.gate``.
        SraError: The teacher or the store cannot be used.
    """
    from sra_core.prepare import audit_of

    run, watch = Run.of(config), watch or Watcher()
    prepared = run.result("prepare")
    # Again, as the gate is no part of the result's name: it may have been prepared under a lower one.
    audit_of(prepared).require(run.config.alignment.gate)
    folder = run.folder("cache")

    def work() -> Manifest:
        from sra_core.cache import capture_teacher

        with shard_executor(run.config, executor) as shards:
            return capture_teacher(run.adapted, prepared, folder, watch, shards)

    plan = f"capture layers {folder.identity['holds']['layers']} of {prepared.rows('train')} examples"
    return run.once(folder, watch, (prepared,), plan, work, shared=True)


def distill(config: RunConfig | Run, watch: Watcher | None = None) -> Manifest:
    """Train the student with DeepSpeed from the cache; the result is a Hugging Face folder.

    Raises:
        ManifestMismatch: The prepared examples or the cache of this config are missing.
        TrainingError: Training stopped; running again resumes from the last checkpoint.
    """
    from sra_core.training import join_stage, refuse_other_numbers

    run, watch = Run.of(config), watch or Watcher()
    refuse_other_numbers(run.config.distill, "distill")
    upstream = [run.result(stage) for stage in run.trained_from]
    folder = run.folder("distill")
    join_stage(folder)

    def work() -> Manifest:
        from sra_core.distill import distill_student

        # The config as it was named, beside the teacher as it is: a pruned student starts from the adapted one.
        return distill_student(run.config, upstream, folder, watch, run.adapted.teacher)

    def show(manifest: Manifest) -> None:
        from sra_core.distill import show_curves

        show_curves(run.config, manifest, watch)

    return run.once(folder, watch, upstream, f"train with objective {run.config.objective.name}", work, show)


def evaluate(config: RunConfig | Run, watch: Watcher | None = None) -> Manifest:
    """Score teacher, initial student and student on the held-out test examples and the data sets of the config.

    Raises:
        DataError: A data set cannot be read.
        ManifestMismatch: The prepared examples or the student of this config are missing.
        EvaluationError: There is nothing to evaluate.
    """
    from sra_core.evaluate import report_evaluation

    run, watch = Run.of(config), watch or Watcher()
    upstream = [run.result(stage) for stage in ("prepare", "distill")]
    folder = run.folder("evaluate")

    def work() -> Manifest:
        from sra_core.evaluate import score_student

        return score_student(run.adapted, upstream, folder, watch)

    def report(manifest: Manifest) -> None:
        report_evaluation(manifest, watch)

    return run.once(folder, watch, upstream, "score held-out examples", work, report)


def generate(config: RunConfig | Run, watch: Watcher | None = None) -> Manifest:
    """Answer the training prompts with the teacher: a corpus for sequence-level distillation, no part of `run`.

    Raises:
        ManifestMismatch: The prepared examples of this config are missing.
        DataError: No training example has a prompt, or none has an answer to learn from.
    """
    run, watch = Run.of(config), watch or Watcher()
    prepared = run.result("prepare")
    folder = run.folder("generate")

    def work() -> Manifest:
        from sra_core.generate import generate_corpus

        return generate_corpus(run.adapted, prepared, folder, watch)

    return run.once(folder, watch, (prepared,), "answer the training prompts with the teacher", work)


STAGES: dict[str, Callable[..., Manifest]] = {
    "prepare": prepare,
    "adapt": adapt,
    "cache": cache,
    "distill": distill,
    "evaluate": evaluate,
    "generate": generate,
}


def run(config: RunConfig | Run, watch: Watcher | None = None) -> dict[str, Manifest]:
    """All stages that the config needs, in order; returns their manifests by stage.

    >>> from sra_core import load_config, run
    >>> results = run(load_config("smoke"))
    >>> list(results)
    ['prepare', 'cache', 'distill', 'evaluate']
    >>> from transformers import AutoModelForCausalLM
    >>> student = AutoModelForCausalLM.from_pretrained(f"{results['distill'].folder}/student")

    Args:
        config: The run config, or a run that is settled already.
        watch: Told of progress; unset keeps quiet. ``sra_core.watch.TerminalWatcher()`` tells what ``sra run`` tells.

    Raises:
        ModelError: A model that cannot be used: found before anything runs, as are the following.
        ConfigError: A layer that teacher or student do not have, a device that this machine lacks, or a tool of
            evaluation that is not installed.
        DataError: A data set of evaluation that cannot be read.
        EvaluationError: The corpus has no test example and no other data set is named: found before the teacher runs.
    """
    from sra_core.doctor import check_datasets, check_devices, check_examples, check_layers, check_models, check_tools

    settled = Run.of(config)
    check_models(settled.config)  # before the run is identified, which reads and converts whole models
    if not settled.finished:
        check_layers(settled.config)
        check_devices(settled.config)
        check_tools(settled.config)
        check_datasets(settled.config)
    results: dict[str, Manifest] = {}
    for name in settled.stages:
        results[name] = STAGES[name](settled, watch)
        if name == "prepare":
            check_examples(settled.config, results[name])
    return results
