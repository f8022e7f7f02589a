"""The distill stage: start the student, train it, export it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sra_core.config import ModelRef, RunConfig, identity
from sra_core.models import build_student, load_tokenizer, model_identity
from sra_core.preparation import STUDENT_TOKENIZER
from sra_core.shards import SCHEMA_VERSION, Manifest, PreparedSet, StageFolder
from sra_core.watching import Watcher

__all__ = ["STUDENT", "distill_identity", "distill_student", "initial_student"]

STUDENT = "student"
"""Subfolder of the result that holds the trained student."""
_WORK = "work"
_SAMPLE = 32


def distill_identity(config: RunConfig, reads: Mapping[str, str]) -> dict[str, Any]:
    """All that determines a trained student.

    Args:
        config: The run config.
        reads: Fingerprints of the results that training reads, by stage.
    """
    ref = config.teacher if config.student.source == "teacher" else config.student
    return {
        "schema": SCHEMA_VERSION,
        **reads,
        "student": {**identity(config.student), "source": model_identity(ref)},
        "objective": identity(config.objective),
        "distill": identity(config.distill),
        "seed": config.seed,
    }


def initial_student(config: RunConfig, prepared: Manifest) -> tuple[Any, Any]:
    """The student before training and its tokenizer: a pure function of the config and the prepared examples."""
    tokenizer = load_tokenizer(ModelRef(source=str(Path(prepared.folder) / STUDENT_TOKENIZER)))
    rows = PreparedSet(prepared, "train")
    sample = [row.prompt + row.response for row in rows[:_SAMPLE]]
    return build_student(config, tokenizer, sample), tokenizer


def distill_student(config: RunConfig, upstream: Sequence[Manifest], folder: StageFolder, watch: Watcher) -> Manifest:
    """Train in processes of their own, export the result, write the manifest and drop the scratch files.

    Args:
        config: The run config.
        upstream: Results that training reads.
        folder: Where the student goes; its lock is held.
        watch: Told of progress.

    Raises:
        TrainingError: Training stopped; its checkpoints stay for the next try.
    """
    from sra_core.training import Job, export_student, launch

    results = {manifest.stage: Path(manifest.folder) for manifest in upstream}
    prepared = next(manifest for manifest in upstream if manifest.stage == "prepare")
    work = folder.path / _WORK
    job = Job(config, results["prepare"], results.get("cache"), work / "initial", work)
    _save_initial(config, prepared, job.initial)
    result = launch(job, watch)
    tokenizer = load_tokenizer(ModelRef(source=str(results["prepare"] / STUDENT_TOKENIZER)))
    export_student(config.distill, job.initial, job.best, tokenizer, folder.path / STUDENT)
    shutil.copyfile(job.history, folder.path / "history.jsonl")
    manifest = folder.commit(
        upstream=upstream,
        files=[*folder.entries(STUDENT), folder.entry("history.jsonl")],
        counts={"steps": int(result["steps"]), "tokens": int(result["tokens"])},
        metrics={f"distill/{name}": float(value) for name, value in result.items() if value is not None},
    )
    folder.remove(_WORK)
    return manifest


def _save_initial(config: RunConfig, prepared: Manifest, path: Path) -> None:
    if path.exists():
        return
    partial = path.with_name(".initial.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model, _ = initial_student(config, prepared)
    model.save_pretrained(partial)
    partial.rename(path)
