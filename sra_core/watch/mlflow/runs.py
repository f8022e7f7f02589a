"""Runs and the watcher that reports to them.

Reports leave through an `Outbox`, so a stage never waits for the tracking server and never fails because of it. While
the server is away reports are kept; what is left at the end lies in ``<store>/mlflow-spool`` and is sent by the next
run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sra_core.config import RunConfig
from sra_core.watch import Outbox, Report, Watcher, quiet_telemetry, redact, redact_text
from sra_core.watch.mlflow import describe
from sra_core.watch.mlflow.places import file_name, home, spool, tracking_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sra_core.shards import Manifest
    from sra_core.watch.mlflow.ledger import Ledger

__all__ = ["MlflowWatcher", "PipelineRun", "benchmark_run", "cell_run", "pipeline_run"]

_log = logging.getLogger(__name__)
PATIENCE = 30.0
"""Seconds that the end of a run waits for a tracking server that does not answer."""
_LOOKUP_PATIENCE = 1.0
_CANCELLED_PATIENCE = 3.0
_PAUSE = 1.0
_BATCH = 1000
_CLIENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the outbox tries again
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class TrackedRun:
    """One MLflow run. What it is told goes through an outbox, which it shares with its parent.

    Args:
        config: Tells the tracking server.
        parent: The run that it belongs to.
        opening: Fields of the report that opens it.
    """

    def __init__(self, config: RunConfig, parent: TrackedRun | None, **opening: Any) -> None:
        self._parent, self._closed = parent, False
        self.ledger: Ledger
        self.outbox: Outbox
        self.ledger, self.outbox = (parent.ledger, parent.outbox) if parent else _open_outbox(config)
        self.key = uuid.uuid4().hex
        self.put("open", parent=parent.key if parent else None, start=describe.now(), **opening)

    @property
    def run_id(self) -> str | None:
        """The MLflow run id; None until the tracking server has answered."""
        return self.ledger.ids.get(self.key)

    @property
    def url(self) -> str | None:
        """Address of the run in the MLflow UI; None while unknown or without a tracking server."""
        return self.ledger.url(self.key)

    def put(self, do: str, **fields: Any) -> None:
        """Queue a report for MLflow; a run that was closed has no more to say."""
        if not self._closed:
            self.outbox.put({"do": do, "run": self.key, **fields})

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers to this very run."""
        now = describe.now()
        self.put("metrics", metrics=[[name, float(value), now, step] for name, value in values.items()])

    def finished(self) -> None:
        """End the run as finished and deliver what is left."""
        self.put("tags", tags={"error": ""})  # an earlier attempt may have left one
        self._close("FINISHED", PATIENCE)

    def failed(self, error: BaseException) -> None:
        """End the run as failed, or as killed where it was interrupted, and deliver what is left."""
        self.put("tags", tags={"error": describe.error_line(error)})
        if isinstance(error, Exception):
            self._close("FAILED", PATIENCE)
        else:
            self._close("KILLED", _CANCELLED_PATIENCE)

    def _close(self, status: str, patience: float) -> None:
        self.put("close", status=status, end=describe.now())
        self._closed = True
        if self._parent is None and (waiting := self.outbox.close(patience)) is not None:
            _log.warning("the tracking server does not answer; unsent reports are kept in %s for the next run", waiting)


class PipelineRun(TrackedRun):
    """A parent run: of the stages of a pipeline, or of the cells of a benchmark.

    Made by `pipeline_run`, `benchmark_run` and `cell_run`.

    Args:
        config: What runs.
        tags: More tags for the run; secrets in them are masked.
        kind: What it gathers.
        name: Name of the run; unset takes the config's.
        parent: The run that it belongs to itself.
    """

    def __init__(
        self,
        config: RunConfig,
        tags: Mapping[str, str] | None = None,
        *,
        kind: Literal["pipeline", "benchmark", "cell"] = "pipeline",
        name: str | None = None,
        parent: PipelineRun | None = None,
    ) -> None:
        self.tags = dict(tags or {})
        grid = kind == "benchmark"
        super().__init__(
            config,
            parent,
            name=name or config.name,
            match={"kind": kind, "config": describe.config_digest(config, grid=grid)},
            tags={**describe.process_tags(), **redact(self.tags)},
            params=describe.parameters(config, grid=grid),
            reused=False,
            joined=kind != "pipeline",
        )


@contextmanager
def pipeline_run(config: RunConfig, tags: Mapping[str, str] | None = None) -> Iterator[PipelineRun | None]:
    """The parent run of the stages that run in the body; None when tracking is off.

    Args:
        config: What runs.
        tags: More tags for the run, for example the id of the Prefect flow run; secrets in them are masked.
    """
    with _opened(PipelineRun(config, tags) if config.tracking.enabled else None) as run:
        yield run


@contextmanager
def benchmark_run(config: RunConfig, tags: Mapping[str, str] | None = None) -> Iterator[PipelineRun | None]:
    """The one run that gathers the cells of a benchmark, whichever processes and sessions make them.

    Args:
        config: The benchmark.
        tags: As for `pipeline_run`.
    """
    with _opened(PipelineRun(config, tags, kind="benchmark") if config.tracking.enabled else None) as run:
        yield run


@contextmanager
def cell_run(parent: PipelineRun | None, config: RunConfig, name: str) -> Iterator[PipelineRun | None]:
    """The run of one cell: parent of the stages that run in the body, child of the benchmark's run.

    Args:
        parent: From `benchmark_run`; None when tracking is off.
        config: What the cell runs.
        name: Name of the run.
    """
    cell = PipelineRun(config, parent.tags, kind="cell", name=name, parent=parent) if parent else None
    with _opened(cell) as run:
        yield run


@contextmanager
def _opened(run: PipelineRun | None) -> Iterator[PipelineRun | None]:
    """Close a run as the body ends."""
    if run is None:
        yield None
        return
    try:
        yield run
    except BaseException as error:
        run.failed(error)
        raise
    run.finished()


class MlflowWatcher(Watcher):
    """Tracks stages in MLflow, one run a stage.

    Args:
        config: What runs; gives the parameters and the place of the tracking data.
        parent: The pipeline that the stages belong to; without one each stage gets a run of its own.
        tags: More tags for every run; secrets in them are masked.
    """

    def __init__(
        self, config: RunConfig, parent: PipelineRun | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        self._config, self._parent = config, parent
        self._tags = {**(parent.tags if parent else {}), **(tags or {})}
        self._run: TrackedRun | None = None
        self._stage, self._reused = "", False
        self._started = 0.0
        self._sampler: Any = None

    @property
    def run_id(self) -> str | None:
        """The MLflow run id of the current stage; None until the tracking server has answered."""
        return self._run.run_id if self._run else None

    @property
    def url(self) -> str | None:
        """Address of the current stage's run in the MLflow UI; None while unknown or without a tracking server."""
        return self._run.url if self._run else None

    def begin(self, stage: str, fingerprint: str, config: RunConfig, plan: str, *, reused: bool) -> None:
        if not self._config.tracking.enabled:
            return
        self._stage, self._reused, self._started = stage, reused, time.monotonic()
        self._run = TrackedRun(
            self._config,
            self._parent,
            name=stage if self._parent else f"{config.name} {stage}",
            match={"stage": stage, "fingerprint": fingerprint},
            tags={**describe.process_tags(), **redact(self._tags), "plan": redact_text(plan)[: describe.LONGEST_VALUE]},
            params=describe.parameters(config),
            reused=reused,
        )
        if reused:
            self._run.outbox.flush(_LOOKUP_PATIENCE)  # whether its original is there decides what is worth telling
        if config.tracking.system_metrics and not reused:
            from sra_core.watch.mlflow.ledger import start_sampler

            self._sampler = start_sampler(self._run.outbox, self._run.key, tracking_uri(self._config))

    @property
    def _repeats(self) -> bool:
        """Whether another run holds all that this reused one could tell."""
        return self._run is not None and self._run.key in self._run.ledger.repeats

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        if self._run is None:
            return
        self._run.metrics(values, step)
        if step is None and self._parent is not None:
            self._parent.metrics(values)

    def figure(self, name: str, draw: Callable[[], Figure]) -> None:
        self._stage_file(f"{name}.png", "figures", lambda path: draw().savefig(path, dpi=120, bbox_inches="tight"))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = list(rows[0]) if rows else []
        text = json.dumps(redact({"columns": columns, "data": [list(row.values()) for row in rows]}), default=str)
        self._stage_file(f"{name}.json", "tables", lambda path: path.write_text(text, encoding="utf-8"), table=True)

    def markdown(self, name: str, text: str) -> None:
        clean = redact_text(text)
        self._stage_file(f"{name}.md", "reports", lambda path: path.write_text(clean, encoding="utf-8"))

    def artifact(self, path: Path) -> None:
        if self._run is not None and not self._repeats:
            self._run.put("artifact", path=str(Path(path).absolute()), folder="", staged=False)

    def end(self, manifest: Manifest) -> None:
        if self._run is None:
            return
        took = {} if self._reused else {f"{self._stage}_seconds": time.monotonic() - self._started}
        self.metrics({**manifest.metrics, **took})
        self._run.metrics({f"count/{name}": count for name, count in manifest.counts.items()})
        self._run.put("tags", tags=describe.manifest_tags(manifest))
        if not self._repeats:
            self._run.put("inputs", inputs=describe.manifest_inputs(manifest))
            if manifest.stage == "distill":
                student = {"fingerprint": manifest.fingerprint, "path": manifest.folder}
                self._run.put("model", name=f"{self._config.name}-student", **student)
        self._stop_sampler()
        self._run.finished()

    def failed(self, error: BaseException) -> None:
        self._stop_sampler()
        if self._run is not None:
            self._run.failed(error)

    def _stop_sampler(self) -> None:
        if self._sampler is not None:
            self._sampler()
            self._sampler = None

    def _stage_file(self, name: str, folder: str, write: Callable[[Path], object], **fields: Any) -> None:
        """Write a file beside the spool; it is removed once MLflow has it."""
        if self._run is None or self._repeats:
            return
        path = spool(self._config) / "files" / uuid.uuid4().hex / file_name(name)
        try:
            path.parent.mkdir(parents=True)
            write(path)
        except OSError as error:
            _log.warning("%s is not tracked: %s", name, error)
            return
        self._run.put("artifact", path=str(path), folder=folder, staged=True, **fields)


def _open_outbox(config: RunConfig) -> tuple[Ledger, Outbox]:
    quiet_telemetry()
    for name, value in _CLIENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    from sra_core.watch.mlflow.ledger import Ledger

    uri = tracking_uri(config)
    artifacts = None
    if uri.startswith("sqlite:"):
        home(config).mkdir(parents=True, exist_ok=True)
        artifacts = home(config) / "mlflow-artifacts"
    ledger = Ledger(uri, config.tracking.experiment, artifacts)
    place = hashlib.sha256(f"{uri} {config.tracking.experiment}".encode()).hexdigest()[:12]
    return ledger, Outbox(ledger, passing=ledger.passing, merge=_merge, spool=spool(config) / place, pause=_PAUSE)


def _merge(first: Report, second: Report) -> Report | None:
    both = {first["do"], second["do"]}
    if both != {"metrics"} or first["run"] != second["run"] or len(first["metrics"]) >= _BATCH:
        return None
    return {**first, "metrics": first["metrics"] + second["metrics"]}
