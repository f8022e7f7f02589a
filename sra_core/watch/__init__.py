"""What a run tells while it goes on, and who listens: the terminal, MLflow (`watch.mlflow`), Prefect (in `flows`)."""

from sra_core.watch.command import as_typed, sra_command
from sra_core.watch.counts import counted
from sra_core.watch.finite import finite
from sra_core.watch.markdown import escape_markdown, fenced
from sra_core.watch.outbox import Outbox, Report
from sra_core.watch.pace import Pace
from sra_core.watch.redaction import mask_logs, redact, redact_text
from sra_core.watch.telemetry import QUIET, quiet_telemetry
from sra_core.watch.terminal import TerminalWatcher, duration
from sra_core.watch.watcher import Watcher, Watchers, watched

__all__ = [
    "QUIET",
    "Outbox",
    "Pace",
    "Report",
    "TerminalWatcher",
    "Watcher",
    "Watchers",
    "as_typed",
    "counted",
    "duration",
    "escape_markdown",
    "fenced",
    "finite",
    "mask_logs",
    "quiet_telemetry",
    "redact",
    "redact_text",
    "sra_command",
    "watched",
]
