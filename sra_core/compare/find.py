"""From what a person names to a finished evaluation: a fingerprint in the store, or a run in MLflow."""

from __future__ import annotations

from pathlib import Path

from sra_core.config import RunConfig
from sra_core.errors import EvaluationError
from sra_core.shards import Manifest, Remote, StageFolder, is_url, local_copy, read_manifest
from sra_core.watch.mlflow import evaluation_of_run, tracking_uri

__all__ = ["find_evaluation"]


def find_evaluation(config: RunConfig, name: str) -> tuple[str | None, Path]:
    """Name, if it has one, and folder of an evaluation; one on object storage is brought here.

    Args:
        config: Tells store and tracking server.
        name: The fingerprint of an evaluation or its beginning, or the MLflow run id of a pipeline or of its evaluate
            stage.

    Raises:
        EvaluationError: There is no such thing; says where it was looked for.
    """
    folder = _in_store(config.store, name)
    if folder is not None:
        return None, folder
    tracked = evaluation_of_run(config, name)
    if tracked is None:
        raise EvaluationError(
            f"{name!r} is neither a folder, nor an evaluation in {_room(config.store)}, "
            f"nor a run in {tracking_uri(config)}",
            "give a folder below `evaluations`, or say where the runs are: `--set store=FOLDER` or SRA_STORE (and "
            "`--set tracking.uri=ADDRESS` for a tracking server)",
        )
    title, place, fingerprint = tracked
    if not place.is_dir():  # made on another machine
        place = _in_store(config.store, fingerprint) or place
    return title, place


def _room(store: str) -> str:
    """Where the evaluations of a store lie, for people."""
    root = store.rstrip("/") if is_url(store) else Path(store).expanduser().absolute()
    return f"{root}/{StageFolder.FOLDERS['evaluate']}"


def _in_store(store: str, name: str) -> Path | None:
    """The folder of the evaluation whose fingerprint begins like this; None if there is none."""
    evaluations = StageFolder(store, "evaluate", {})
    found = [manifest for manifest in evaluations.siblings() if manifest.fingerprint.startswith(name)]
    if not found:
        return None
    if len(found) > 1:
        raise EvaluationError(
            f"{name!r} begins the names of {len(found)} evaluations in {_room(store)}", "give more of the name"
        )
    folder = evaluations.sibling(found[0])
    if folder.manifest() is None:
        raise EvaluationError(f"the evaluation in {folder.path} is damaged", "run `sra evaluate` again")
    if is_url(store):
        _bring_lineage(store, found[0])
    return folder.path


def _bring_lineage(store: str, manifest: Manifest) -> None:
    """What a comparison reads of the results that an evaluation rests on: their manifests and the learning curve."""
    for stage, upstream in manifest.upstream.items():
        place = f"{StageFolder.FOLDERS[stage]}/{upstream.fingerprint}"
        remote, local = Remote(store) / place, local_copy(store) / place
        remote.mirror("manifest.json", local / "manifest.json")
        if not (local / "manifest.json").is_file():
            continue  # deleted since: the comparison says so
        made = read_manifest(local)
        for entry in made.files:
            if entry.name == "history.jsonl":
                remote.pull(entry, local / entry.name)
        _bring_lineage(store, made)
