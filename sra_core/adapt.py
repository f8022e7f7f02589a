"""`sra adapt`: fine-tune the teacher on the corpus before its states are captured (paper section 5).

It is the distill stage's engine on the teacher's own tokens with cross-entropy alone. The result is a model folder, or
an adapter that is merged into the teacher where it is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sra_core.config import RunConfig, hashed_steps
from sra_core.models import load_kept_tokenizer, load_model, load_tokenizer, model_identity, name_answer_end
from sra_core.models.cache import made_once, slug
from sra_core.runs import Run
from sra_core.shards import SCHEMA_VERSION, Manifest, StageFolder
from sra_core.watch import Watcher

__all__ = ["adapt_teacher", "identity", "with_adapted_teacher"]

TEACHER = "teacher"
"""Subfolder of the result that holds the adapted teacher."""
ADAPTER = "adapter"
"""Subfolder that holds its adapter, where that is kept alone."""


def identity(run: Run) -> dict[str, Any]:
    """All that determines the adapted teacher."""
    config = run.config
    steps = hashed_steps(config.adapt, per_forward=False)
    return {
        "schema": SCHEMA_VERSION,
        "prepared": run.fingerprint("prepare"),
        "teacher": model_identity(config.teacher),
        "adapt": {name: value for name, value in steps.items() if name != "enabled"},
        # Not the run's: students of several seeds learn from one adapted teacher, which is captured once.
        "seed": config.adapt.seed,
    }


def adapt_teacher(config: RunConfig, prepared: Manifest, folder: StageFolder, watch: Watcher) -> Manifest:
    """Train the teacher in processes of its own, export it, write the manifest and drop the scratch files.

    Args:
        config: The run config.
        prepared: Result of the prepare stage.
        folder: Where the teacher goes; its lock is held.
        watch: Told of progress.

    Raises:
        TrainingError: Training stopped; its checkpoints stay for the next try.
    """
    from sra_core.training import WORK, Job, launch, quiet_libraries, read_history, refuse_other_steps, step_costs

    quiet_libraries()
    work = folder.path / WORK
    job = Job(
        # Whatever draws in training draws from the job's seed.
        config=config.model_copy(update={"seed": config.adapt.seed}),
        prepared=Path(prepared.folder),
        teacher=None,
        initial=work / "initial",
        folder=work,
        part="adapt",
    )
    refuse_other_steps(job)
    # Named before training: the exported teacher keeps the generation config of the model that it started from.
    job.keep_initial(lambda: _named_teacher(config))
    result = dict(launch(job, watch))
    notes = {name: result.pop(name) for name in ("layout", "processes")}
    written = _export(job, result, folder.path)
    shutil.copyfile(job.history, folder.path / "history.jsonl")
    manifest = folder.commit(
        upstream=[prepared],
        files=[*folder.entries(written), folder.entry("history.jsonl")],
        counts={name: int(result[name]) for name in ("steps", "tokens", "skipped")},
        metrics={
            f"adapt/{name}": float(value)
            for name, value in {**result, **step_costs(read_history(job.history))}.items()
            if value is not None
        },
        notes=notes,
    )
    folder.remove(WORK)
    return manifest


def with_adapted_teacher(config: RunConfig, adapted: Manifest) -> RunConfig:
    """The run config with the adapted teacher in the place of the teacher: what the cache and the scores read.

    An adapter that was kept alone is merged once, into a model folder of the user's cache.

    Args:
        config: The run config.
        adapted: Result of the adapt stage.
    """
    folder = Path(adapted.folder)
    model = folder / TEACHER
    if not config.adapt.merge:
        # With the content: an adapter that was made again with other bytes is merged anew.
        name = slug(f"adapted-{adapted.fingerprint}-{adapted.content}")
        model = made_once(name, lambda place: _merge(config, folder / ADAPTER, place))
    # Revision and checksum are those of the teacher that it was made from.
    values = config.teacher.model_dump() | {"source": str(model), "revision": None, "sha256": None}
    return config.model_copy(update={"teacher": type(config.teacher).model_validate(values)})


def _merge(config: RunConfig, adapter: Path, place: Path) -> None:
    import peft

    peft.PeftModel.from_pretrained(_named_teacher(config), adapter).merge_and_unload().save_pretrained(place)
    load_tokenizer(config.teacher).save_pretrained(place)


def _named_teacher(config: RunConfig) -> Any:
    """The teacher, whose generation settings name what ends its answers."""
    teacher = load_model(config.teacher)
    name_answer_end(teacher, load_tokenizer(config.teacher), config.teacher)
    return teacher


def _export(job: Any, result: Mapping[str, Any], folder: Path) -> str:
    from sra_core.training import KeptWeights, export_model

    adapt = job.config.adapt
    trained = KeptWeights(job.weights, rank=0).path(int(result["exported_step"]))
    tokenizer = load_kept_tokenizer(job.config, job.prepared, "teacher")
    adapter = None if adapt.merge else folder / ADAPTER
    export_model(
        adapt,
        job.initial,
        trained,
        tokenizer,
        folder / TEACHER,
        trusted=job.trusted,
        adapter=adapter,
        merged=adapt.merge,
    )
    return TEACHER if adapt.merge else ADAPTER
