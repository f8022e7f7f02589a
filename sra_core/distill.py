"""`sra distill`: start the student, train it from the cache, export it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sra_core.config import ModelRef, RunConfig, TeacherConfig, hashed, hashed_objective, hashed_steps
from sra_core.models import load_kept_tokenizer, load_model, model_identity, pick_device
from sra_core.objective import teacher_needs
from sra_core.runs import Run
from sra_core.shards import SCHEMA_VERSION, STUDENT, Manifest, StageFolder
from sra_core.training import learning_curves
from sra_core.watch import Watcher, redact_text

if TYPE_CHECKING:
    from sra_core.training import Job

__all__ = [
    "ADAPTER",
    "LAST",
    "distill_student",
    "identity",
]

LAST = "last"
"""Subfolder of the weights of the last step, where they are kept."""
ADAPTER = "adapter"
"""Subfolder of the adapter that was merged into the student, where it is kept."""
HISTORY = "history.jsonl"
"""Metrics by step."""
_COSINE = "diagnose/center_cosine_"
_TERMS = ("loss", "ce", "cosine", "geometry", "logit", "trajectory", "gradient_norm")
_CURVES = ("validation/bits_per_byte", *(f"train/{name}" for name in _TERMS))


def identity(run: Run) -> dict[str, Any]:
    """All that determines a trained student."""
    config = run.adapted
    fitted = config.objective.name == "dskd" and config.objective.projector_start in ("auto", "fit")
    repeated = config.objective.name == "gold" and config.alignment.first_tokens
    return {
        "schema": SCHEMA_VERSION,
        **({"maps": "fitted"} if fitted else {}),  # its maps started at random once, whatever the config said
        **({"pairs": "once"} if repeated else {}),  # a teacher's token counted for each that it stood for
        **{stage: run.fingerprint(stage) for stage in run.trained_from},
        "student": {**hashed(config.student), "source": model_identity(config.student_origin)},
        "objective": hashed_objective(config.objective),
        # Objectives that compare tokens take means over the tokens of a forward, the others over texts.
        "distill": hashed_steps(config.distill, per_forward=teacher_needs(config.objective).token_states),
        "seed": config.seed,
    }


def distill_student(
    config: RunConfig, upstream: Sequence[Manifest], folder: StageFolder, watch: Watcher, teacher: TeacherConfig
) -> Manifest:
    """Train in processes of their own, export the result, write the manifest and drop the scratch files.

    Args:
        config: The run config.
        upstream: Results that training reads.
        folder: Where the student goes; its lock is held.
        watch: Told of progress.
        teacher: The teacher as it is captured: adapted to the corpus, where the config asks for it.

    Raises:
        TrainingError: Training stopped; its checkpoints stay for the next try.
    """
    from sra_core.models import initial_student
    from sra_core.training import (
        LICENCE_NOTE,
        WORK,
        Job,
        launch,
        licences_of,
        quiet_libraries,
        read_history,
        refuse_other_steps,
        start_projectors,
        step_costs,
    )

    quiet_libraries()
    licences = licences_of(config)
    results = {manifest.stage: Path(manifest.folder) for manifest in upstream}
    prepared = next(manifest for manifest in upstream if manifest.stage == "prepare")
    work = folder.path / WORK
    job = Job(
        config=config,
        prepared=results["prepare"],
        teacher=results.get("cache"),
        initial=work / "initial",
        folder=work,
    )
    # Before anything is written: another number of processes would start over beside a training that waits.
    refuse_other_steps(job)
    job.keep_initial(lambda: initial_student(config.model_copy(update={"teacher": teacher}), prepared)[0])
    lead = _lead(job, upstream, watch)
    starts = start_projectors(job, watch)
    result = dict(launch(job, watch))
    # Words; what is left are numbers, which become metrics.
    notes = {name: result.pop(name) for name in ("layout", "processes")}
    written = _export(job, upstream, result, folder.path, licences)
    shutil.copyfile(job.history, folder.path / HISTORY)
    history = read_history(job.history)
    manifest = folder.commit(
        upstream=upstream,
        files=[entry for name in written for entry in folder.entries(name)] + [folder.entry(HISTORY)],
        counts={name: int(result[name]) for name in ("steps", "tokens", "skipped")},
        metrics={
            f"distill/{name}": float(value)
            for name, value in {**result, **lead, **starts.metrics, **step_costs(history), **_cosines(history)}.items()
            if value is not None
        },
        notes={**notes, **starts.notes, **{f"{LICENCE_NOTE}{which}": text for which, text in licences.items()}},
    )
    # Last: until the manifest is there, a second try goes on from the checkpoints in it.
    folder.remove(WORK)
    return manifest


def _lead(job: Job, upstream: Sequence[Manifest], watch: Watcher) -> dict[str, float]:
    """What the teacher of the cache knows more than the student as it starts: told, and kept as metrics."""
    from sra_core.compare import teacher_lead
    from sra_core.models import choose_layout, known_before  # torch: a finished run is told in seconds without it

    cache = next((manifest for manifest in upstream if manifest.stage == "cache"), None)
    prepared = next(manifest for manifest in upstream if manifest.stage == "prepare")
    # Under ZeRO 3 the student may not fit one device.
    if cache is None or job.training.zero_stage == 3:
        return {}
    ref = ModelRef(source=str(job.initial), trust_remote_code=job.trusted)
    student = load_model(ref, "float32", pick_device(job.training.device))
    choose_layout(student, job.config.layout)
    known = known_before(job.config, student, prepared, "student")
    lead = teacher_lead(cache, known.nats, known.bytes) if known else None
    if lead is None:
        return {}
    watch.message(lead.told(job.config.adapt.enabled))
    return lead.metrics()


def show_curves(config: RunConfig, manifest: Manifest, watch: Watcher) -> None:
    """Hand the curves of a finished training on, of one that was reused too."""
    from sra_core.training import read_history

    def draw() -> Any:
        history = read_history(Path(manifest.folder) / HISTORY)
        return learning_curves(history, _CURVES, redact_text(f"{config.name}: {config.objective.name}"))

    watch.figure("loss_terms", draw)


def _cosines(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Cosine of student's and teacher's centres before and after training, where it was looked at."""
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    for row in history:
        for name, value in row.items():
            if name.startswith(_COSINE):
                before.setdefault(f"{name.removeprefix('diagnose/')}_before", value)
                after[f"{name.removeprefix('diagnose/')}_after"] = value
    return before | after


def _export(
    job: Job, upstream: Sequence[Manifest], result: Mapping[str, Any], folder: Path, licences: Mapping[str, str]
) -> list[str]:
    """Write the student, and what else the config keeps; returns the subfolders."""
    from sra_core.training import KeptWeights, export_model, model_card, read_history

    training = job.config.distill
    weights = KeptWeights(job.weights, rank=0)
    tokenizer = load_kept_tokenizer(job.config, job.prepared, "student")
    history = read_history(job.history)

    def card(step: int) -> str:
        return model_card(job.config, upstream, {**result, "exported_step": step}, history, licences)

    adapter = folder / ADAPTER if training.keep_adapter and training.lora else None
    step, end = int(result["exported_step"]), int(result["steps"])
    trusted = job.trusted
    for name, at, kept in [(STUDENT, step, adapter), *([(LAST, end, None)] if training.keep_last else [])]:
        place, trained = folder / name, weights.path(at)
        export_model(training, job.initial, trained, tokenizer, place, trusted=trusted, adapter=kept, card=card(at))
    return [STUDENT, *([ADAPTER] if adapter else []), *([LAST] if training.keep_last else [])]
