"""A comparison of finished runs as a run of its own, its tables and figures under the names that each run's have."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sra_core.config import RunConfig
from sra_core.watch import watched
from sra_core.watch.mlflow import MlflowWatcher

if TYPE_CHECKING:
    from sra_core.compare.comparison import RunComparison

__all__ = ["track_comparison"]

_NOT_IN_NAMES = re.compile(r"[^\w\-. :]")
"""Characters that MLflow refuses in names of metrics."""


def track_comparison(config: RunConfig, comparison: RunComparison, page: Path) -> str:
    """Log a comparison to MLflow.

    Args:
        config: Tells the tracking server.
        comparison: What to log.
        page: Its HTML page, kept with the run.

    Returns:
        The MLflow run id, or ``pending`` while the tracking server does not answer.
    """
    from sra_core.compare.charts import figures
    from sra_core.compare.page import report_tables
    from sra_core.shards import Manifest, fingerprint

    made_of = {run.name: run.results["evaluate"] for run in comparison.runs}
    manifest = Manifest(
        stage="compare",
        fingerprint=fingerprint(made_of),
        identity=made_of,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        folder=str(page.absolute().parent),
        metrics={
            f"compare/{_NOT_IN_NAMES.sub('-', system)}/{name}": score.estimate
            for name, result in comparison.metrics.items()
            for system, score in result.scores.items()
        },
    )
    named = config.model_copy(update={"name": " / ".join(made_of)})
    watch = MlflowWatcher(named)
    with watched(watch, "compare", manifest.fingerprint, named, f"compare {', '.join(made_of)}"):
        for name, rows in report_tables(comparison).items():
            watch.table(f"evaluate/{name}", rows)
        for name, draw in figures(comparison).items():
            watch.figure(f"evaluate/{name}", draw)
        watch.artifact(page)
        watch.end(manifest)
    return watch.run_id or "pending"
