"""What a person sees of a stage in the Prefect UI: progress, live numbers, tables, reports and the link to MLflow.

Artifacts leave through an outbox, so a stage goes on while the Prefect server is away and reports when it is back.
"""

from __future__ import annotations

import base64
import contextvars
import io
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger

from flows.retries import is_outage
from sra_core.config import RunConfig
from sra_core.watch import Outbox, Pace, Report, Watcher, counted, duration, escape_markdown, redact_text
from sra_core.watch.mlflow import MlflowWatcher, tracking_uri, ui_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sra_core.shards import Manifest

__all__ = ["ArtifactWriter", "PrefectWatcher", "artifact_key"]

_EVERY = 2.0
_ROWS = 40
_LARGEST_FIGURE = 300_000  # bytes: all artifacts of a run are read at once
PATIENCE = 20.0
"""Seconds that the end of a stage waits for a Prefect server that does not answer."""
_MLFLOW_PATIENCE = 5.0
"""Seconds that the end of a stage waits for MLflow to name its run, so that a short stage is linked too."""


def artifact_key(*parts: str) -> str:
    """An artifact key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


class ArtifactWriter:
    """Creates artifacts of the current flow or task run in the background; one key again, also in a later start of the
    flow run, updates the same artifact."""

    def __init__(self) -> None:
        flow_run, task_run = FlowRunContext.get(), TaskRunContext.get()
        self._owner = {
            "flow_run_id": task_run.task_run.flow_run_id if task_run else flow_run.flow_run.id if flow_run else None,
            "task_run_id": task_run.task_run.id if task_run else None,
        }
        self._ids: dict[str, Any] = {}
        context = contextvars.copy_context()  # settings of the run are context variables
        self._outbox = Outbox(
            lambda report: context.run(self._deliver, report),
            passing=_passing,
            merge=lambda first, second: second if first["key"] == second["key"] else None,  # the latest is enough
            pause=0.2,
        )

    def write(self, kind: str, key: str, data: Any, description: str | None = None) -> None:
        """Queue an artifact: ``progress`` (percent), ``table`` (JSON rows), ``markdown`` or ``image`` (address)."""
        self._outbox.put({"kind": kind, "key": key, "data": data, "description": description})

    def close(self, patience: float = PATIENCE) -> None:
        """Deliver what is left, waiting at most ``patience`` seconds for a server that does not answer."""
        self._outbox.close(patience)

    def _deliver(self, report: Report) -> None:
        with get_client(sync_client=True) as client:
            known = self._ids.get(report["key"]) or self._earlier(client, report["key"])
            if known is None:
                fields = {"type": report["kind"], **self._owner}
                created = client.create_artifact(
                    ArtifactCreate(key=report["key"], data=report["data"], description=report["description"], **fields)
                )
                self._ids[report["key"]] = created.id
            else:
                update = ArtifactUpdate(data=report["data"], description=report["description"])
                client.update_artifact(known, update)
                self._ids[report["key"]] = known

    def _earlier(self, client: Any, key: str) -> Any:
        """The artifact that an earlier start of the flow run, or an earlier try of the task, wrote under the key."""
        wanted = ArtifactFilter(
            key=ArtifactFilterKey(any_=[key]),
            flow_run_id=ArtifactFilterFlowRunId(any_=[self._owner["flow_run_id"]]),
        )
        found = client.read_artifacts(artifact_filter=wanted, limit=1) if self._owner["flow_run_id"] else []
        return found[0].id if found else None


class PrefectWatcher(Watcher):
    """Shows stages in the run that it was made in.

    Args:
        mlflow: The watcher that tracks the same stages, to link to.
        cell: The cell of a benchmark that the stages belong to: several stages of one name run in one flow run.
    """

    def __init__(self, mlflow: MlflowWatcher | None = None, cell: str = "") -> None:
        self._mlflow, self._cell = mlflow, cell
        self._log = get_run_logger()
        self._artifacts = ArtifactWriter()
        self._begin_stage("", None)

    def _begin_stage(self, stage: str, config: RunConfig | None) -> None:
        self._stage, self._config = stage, config
        self._shown = time.monotonic()
        self._pace = Pace()
        self._reused = False
        self._history: dict[int, dict[str, Any]] = {}
        self._linked = False
        self._endless = ""  # what was last said of progress whose end nobody knows

    def begin(self, stage: str, fingerprint: str, config: RunConfig, plan: str, *, reused: bool) -> None:
        self._begin_stage(stage, config)
        self._reused = reused
        task_run = TaskRunContext.get()
        if reused and task_run:
            name = task_run.task_run.name.removesuffix(" (reused)")
            task_run.task_run.name = f"{name} (reused)"  # told with its next state
        self._log.info("%s %s: %s", stage, fingerprint, "already done" if reused else redact_text(plan))
        self._link()

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        now = time.monotonic()
        rate, begins = self._pace.rate(done, total, unit)
        ended = 0 < total <= done  # the total of a stream is 0: it is not known
        parts = [f"{done} of {total} {unit}" if total else f"{done} {unit}"]
        parts += [f"{rate:.3g} per second"] if rate else []
        parts += [f"{duration((total - done) / rate)} left"] if rate and done < total else []
        text = ", ".join([*parts, escape_markdown(note)] if note else parts)
        self._endless = "" if total else text  # shown at the end, also where this count is not written now
        if not begins and not ended and now - self._shown < _EVERY:
            return
        self._shown = now
        percent = 100.0 * done / total if total else 0.0
        self._write("progress", "progress", percent, text)
        self._link()

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            return
        shown = {name: float(f"{value:.5g}") for name, value in values.items()}
        self._history.setdefault(step, {"step": step}).update(shown)  # training that starts again tells steps again
        stride = max(1, len(self._history) // _ROWS)
        rows = list(self._history.values())[::-1][::stride]
        self._write("table", "live", _table(rows), "Live numbers, latest first")

    def figure(self, name: str, draw: Callable[[], Figure]) -> None:
        address = _embedded(draw)
        if address:
            # A key of its own: a table of the same name would be overwritten.
            self._write("image", f"{name}-figure", address, name)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._write("table", name, _table(rows), name)

    def markdown(self, name: str, text: str) -> None:
        self._write("markdown", name, redact_text(text), name)

    def artifact(self, path: Path) -> None:
        self._log.info("kept %s", path)

    def message(self, text: str) -> None:
        self._log.info("%s", redact_text(text))

    def end(self, manifest: Manifest) -> None:
        if self._endless:
            self._write("progress", "progress", 100.0, self._endless)
        limit = time.monotonic() + _MLFLOW_PATIENCE
        self._link()
        while not self._linked and self._is_tracked() and time.monotonic() < limit:
            time.sleep(0.1)
            self._link()
        if self._reused:
            self._show_history(Path(manifest.folder) / "history.jsonl")
        self._write("markdown", "result", _result(manifest), "Result of the stage")
        self._log.info("%s done: %s", manifest.stage, counted(manifest))

    def failed(self, error: BaseException) -> None:
        self._log.error("%s stopped: %s", self._stage, redact_text(f"{type(error).__name__}: {error}"))

    def close(self, patience: float = PATIENCE) -> None:
        """Deliver the artifacts that are left."""
        self._artifacts.close(patience)

    def _link(self) -> None:
        """Link to the MLflow run as soon as it has an address."""
        if self._linked or self._mlflow is None or self._config is None or not self._is_tracked():
            return
        address = self._mlflow.url
        if address is None and tracking_uri(self._config).startswith("http"):
            return  # the server has not answered yet
        text = f"[{address}]({address})" if address else f"`{redact_text(' '.join(ui_command(self._config)))}`"
        self._write("markdown", "mlflow", f"MLflow run: {text}", "MLflow run")
        self._linked = True

    def _is_tracked(self) -> bool:
        return self._mlflow is not None and self._config is not None and self._config.tracking.enabled

    def _write(self, kind: str, name: str, data: Any, description: str) -> None:
        self._artifacts.write(kind, artifact_key(self._cell, self._stage, name), data, description)

    def _show_history(self, path: Path) -> None:
        """The live numbers that a training told when it was made."""
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.metrics({name: value for name, value in row.items() if name != "step"}, row["step"])


def _embedded(draw: Callable[[], Figure]) -> str | None:
    """A figure as an address that holds it: it is there for whoever may see the page, wherever MLflow runs and
    whatever password it asks for. None for one that no page should carry."""
    for dpi in (100, 60):
        file = io.BytesIO()
        draw().savefig(file, format="png", dpi=dpi, bbox_inches="tight")
        if file.tell() <= _LARGEST_FIGURE:
            return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return None


def _passing(error: Exception) -> bool:
    """The server is away or overloaded, and not: it refused the artifact."""
    # A RuntimeError is how Prefect's client says that it reached no server.
    return is_outage(error) or isinstance(error, (OSError, RuntimeError))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    clean = []
    for row in rows:
        clean.append({key: _cell(value) for key, value in row.items()})
    return json.dumps(clean, default=str)


def _cell(value: Any) -> Any:
    if isinstance(value, float) and value != value:  # JSON has no NaN
        return None
    return escape_markdown(redact_text(value)) if isinstance(value, str) else value  # Prefect renders cells


def _result(manifest: Manifest) -> str:
    """The manifest of a finished stage as Markdown."""
    lines = [f"**{manifest.stage}** `{manifest.fingerprint}` in `{redact_text(manifest.folder)}`", ""]
    for title, values, form in (("score", manifest.metrics, ".5g"), ("count", manifest.counts, "d")):
        if values:
            lines += [f"| {title} | value |", "| --- | --- |"]
            lines += [f"| {name} | {value:{form}} |" for name, value in values.items()]
            lines.append("")
    return "\n".join(lines)
