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
from sra_core.watch import Outbox, Report, Watcher, finite, quiet_telemetry, redact, redact_text
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
_SUMMARIES = ("summary", "benchmark")
"""Reports that say what a run came to: they become its description."""
_CLIENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the outbox tries again
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class PipelineRun:
    """A parent run: of the stages of a pipeline, or of the cells of a benchmark.

    Made by `pipeline_run`, `benchmark_run` and `cell_run`.

    Args:
        config: What runs.
        tags: More tags for the run; secrets in them are masked.
        kind: What it gathers.
        name: Name of the run; unset takes the config's title.
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
        self._parent = parent
        self._ledger: Ledger
        self._outbox: Outbox
        self._ledger, self._outbox = (parent._ledger, parent._outbox) if parent else _open_outbox(config)
        self.key = uuid.uuid4().hex
        self._totals: dict[str, float] = {}
        grid = kind == "benchmark"
        self._outbox.put(
            {
                "do": "open",
                "run": self.key,
                "parent": parent.key if parent else None,
                "name": redact_text(name or (config.grid_title if grid else config.title)),
                "match": {"kind": kind, "config": describe.config_digest(config, grid=grid)},
                "tags": {**describe.process_tags(), **redact(self.tags)},
                **describe.parameters(config, grid=grid),
                "reused": False,
                "joined": kind != "pipeline",
                "start": describe.now(),
            }
        )
        _put_config(self.put, self.key, config, grid=grid)

    @property
    def run_id(self) -> str | None:
        """The MLflow run id; None until the tracking server has answered."""
        return self._ledger.ids.get(self.key)

    @property
    def url(self) -> str | None:
        """Address of the run in the MLflow UI; None while unknown or without a tracking server."""
        return self._ledger.url(self.key)

    @property
    def scores_url(self) -> str | None:
        """Address of the table of all runs with their scores; None like `url`."""
        return self._ledger.scores_url

    def put(self, report: Report) -> None:
        """Queue a report for MLflow."""
        self._outbox.put(report)

    def close(self, status: str, patience: float) -> Path | None:
        """End the run and deliver what is left; returns the file that keeps what could not be delivered."""
        self.metrics(describe.by_weight(self._totals))
        self.put({"do": "close", "run": self.key, "status": status, "end": describe.now()})
        return None if self._parent else _close_outbox(self._outbox, patience)

    def total(self, values: Mapping[str, float]) -> None:
        """Keep what a stage came to; it is logged as the run closes, headline scores first."""
        self._totals.update(values)

    def describe(self, text: str) -> None:
        """Make Markdown the description of the run."""
        self.put({"do": "describe", "run": self.key, "text": describe.note(redact_text(text))})

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers to this very run."""
        self.put({"do": "metrics", "run": self.key, "metrics": _rows(values, step)})


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
        run.put({"do": "tags", "run": run.key, "tags": {"error": describe.error_line(error)}})
        run.close(describe.final_status(error), _patience(error))
        raise
    run.put({"do": "tags", "run": run.key, "tags": {"error": ""}})  # an earlier attempt may have left one
    run.close("FINISHED", PATIENCE)


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
        self._key: str | None = None
        self._stage, self._reused = "", False
        self._started = 0.0
        self._outbox: Outbox | None = None
        self._ledger: Ledger | None = None
        self._sampler: Any = None

    @property
    def run_id(self) -> str | None:
        """The MLflow run id of the current stage; None until the tracking server has answered."""
        return self._ledger.ids.get(self._key) if self._ledger and self._key else None

    @property
    def url(self) -> str | None:
        """Address of the current stage's run in the MLflow UI; None while unknown or without a tracking server."""
        return self._ledger.url(self._key) if self._ledger and self._key else None

    def begin(self, stage: str, fingerprint: str, config: RunConfig, plan: str, *, reused: bool) -> None:
        if not self._config.tracking.enabled:
            return
        self._stage, self._reused = stage, reused
        self._key, self._started = uuid.uuid4().hex, time.monotonic()
        if self._parent is not None:
            self._ledger, self._outbox = self._parent._ledger, self._parent._outbox
        else:
            self._ledger, self._outbox = _open_outbox(self._config)
        title = config.name if stage == "compare" else config.title  # several runs: no one's recipe and seed name them
        self._put(
            "open",
            parent=self._parent.key if self._parent else None,
            name=stage if self._parent else redact_text(f"{title} · {stage}"),
            match={"stage": stage, "fingerprint": fingerprint},
            tags={**describe.process_tags(), **redact(self._tags), "plan": redact_text(plan)[: describe.LONGEST_VALUE]},
            **describe.parameters(config),
            reused=reused,
            start=describe.now(),
        )
        if self._parent is None and self._outbox is not None:
            _put_config(self._outbox.put, self._key, config)
        if reused and self._outbox is not None:
            self._put("close", status="FINISHED", end=describe.now())  # it takes no time; the rest is told afterwards
            self._outbox.flush(_LOOKUP_PATIENCE)  # whether its original is there decides what is worth telling
        if config.tracking.system_metrics and not reused:
            from sra_core.watch.mlflow.ledger import start_sampler

            self._sampler = start_sampler(self._outbox, self._key, tracking_uri(self._config))

    @property
    def _repeats(self) -> bool:
        """Whether another run holds all that this reused one could tell."""
        return self._ledger is not None and self._key in self._ledger.repeats

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        self._put("metrics", metrics=_rows(values, step))
        if step is None and self._parent is not None and self._key:
            self._parent.total(values)

    def figure(self, name: str, draw: Callable[[], Figure]) -> None:
        self._stage_file(f"{name}.png", "figures", lambda path: draw().savefig(path, dpi=120, bbox_inches="tight"))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = list(rows[0]) if rows else []
        shown = redact({"columns": columns, "data": [list(row.values()) for row in rows]})
        text = json.dumps(finite(shown))
        self._stage_file(f"{name}.json", "tables", lambda path: path.write_text(text, encoding="utf-8"), table=True)

    def markdown(self, name: str, text: str) -> None:
        clean = redact_text(text)
        if name in _SUMMARIES and self._parent is not None and self._key:
            self._parent.describe(clean)
        self._stage_file(f"{name}.md", "reports", lambda path: path.write_text(clean, encoding="utf-8"))

    def artifact(self, path: Path) -> None:
        if self._repeats:
            return
        self._put("artifact", path=str(Path(path).absolute()), folder="", staged=False)

    def end(self, manifest: Manifest) -> None:
        if not self._key:
            return
        took = {} if self._reused else {f"{self._stage}_seconds": time.monotonic() - self._started}
        self.metrics({**manifest.metrics, **took})
        counts = {f"count/{name}": count for name, count in manifest.counts.items()}
        self._put("metrics", metrics=_rows(counts, None))
        if not self._repeats:
            self._put("inputs", inputs=describe.manifest_inputs(manifest))
        self._put("tags", tags={**describe.manifest_tags(manifest), "error": ""})
        if manifest.stage == "distill" and not self._repeats:
            name = redact_text(f"{self._config.name}-student")
            self._put("model", name=name, fingerprint=manifest.fingerprint, path=manifest.folder)
        self._close("FINISHED", PATIENCE)

    def failed(self, error: BaseException) -> None:
        self._put("tags", tags={"error": describe.error_line(error)})
        self._close(describe.final_status(error), _patience(error))

    def _put(self, do: str, **fields: Any) -> None:
        if self._key and self._outbox is not None:
            self._outbox.put({"do": do, "run": self._key, **fields})

    def _close(self, status: str, patience: float) -> None:
        if self._sampler is not None:
            self._sampler()
            self._sampler = None
        if not self._reused or status != "FINISHED":
            self._put("close", status=status, end=describe.now())
        if self._parent is None and self._outbox is not None:
            _close_outbox(self._outbox, patience)
        self._outbox = None

    def _stage_file(self, name: str, folder: str, write: Callable[[Path], object], **fields: Any) -> None:
        if not self._key or self._repeats:
            return
        try:
            path = _staged(self._config, name, write)
        except OSError as error:
            _log.warning("%s is not tracked: %s", name, error)
            return
        self._put("artifact", path=str(path), folder=folder, staged=True, **fields)


def _staged(config: RunConfig, name: str, write: Callable[[Path], object]) -> Path:
    """A file beside the spool; it is removed once MLflow has it."""
    path = spool(config) / "files" / uuid.uuid4().hex / file_name(name)
    path.parent.mkdir(parents=True)
    write(path)
    return path


def _put_config(put: Callable[[Report], None], key: str, config: RunConfig, *, grid: bool = False) -> None:
    """Keep the whole config with a run: its parameters are only what people compare runs by."""
    text = describe.config_text(config, grid=grid)
    try:
        path = _staged(config, "config.yaml", lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        _log.warning("config.yaml is not tracked: %s", error)
        return
    put({"do": "artifact", "run": key, "path": str(path), "folder": "", "staged": True})


def _open_outbox(config: RunConfig) -> tuple[Ledger, Outbox]:
    quiet_telemetry()
    for name, value in _CLIENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    from sra_core.watch.mlflow.ledger import Ledger

    uri = tracking_uri(config)
    artifacts = None
    if uri.startswith("sqlite:"):
        home(config).mkdir(parents=True, exist_ok=True)
        # Without a server nobody else says where artifacts go; `make up` starts one that uses the same folder.
        artifacts = home(config) / "mlflow-artifacts"
    ledger = Ledger(uri, config.tracking.experiment, artifacts)
    # A folder for each server and experiment: what was left for one is never sent to another.
    place = hashlib.sha256(f"{uri} {config.tracking.experiment}".encode()).hexdigest()[:12]
    return ledger, Outbox(ledger, passing=ledger.passing, merge=_merge, spool=spool(config) / place, pause=_PAUSE)


def _close_outbox(outbox: Outbox, patience: float) -> Path | None:
    waiting = outbox.close(patience)
    if waiting is not None:
        _log.warning("the tracking server does not answer; unsent reports are kept in %s for the next run", waiting)
    return waiting


def _rows(values: Mapping[str, float], step: int | None) -> list[list[Any]]:
    now = describe.now()
    return [[describe.metric_name(name), float(value), now, step] for name, value in values.items()]


def _merge(first: Report, second: Report) -> Report | None:
    both = {first["do"], second["do"]}
    if both != {"metrics"} or first["run"] != second["run"] or len(first["metrics"]) >= _BATCH:
        return None
    return {**first, "metrics": first["metrics"] + second["metrics"]}


def _patience(error: BaseException) -> float:
    return PATIENCE if isinstance(error, Exception) else _CANCELLED_PATIENCE
