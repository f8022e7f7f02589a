"""What a run tells while it goes on, and who listens: the terminal, MLflow (`watch.mlflow`), Prefect (in `flows`)."""

from sra_core.watch.outbox import Outbox, Report
from sra_core.watch.pace import Pace, duration
from sra_core.watch.redaction import redact, redact_text
from sra_core.watch.telemetry import QUIET, quiet_telemetry
from sra_core.watch.terminal import TerminalWatcher
from sra_core.watch.watcher import Watcher, Watchers, watched

__all__ = [
    "QUIET",
    "Outbox",
    "Pace",
    "Report",
    "TerminalWatcher",
    "Watcher",
    "Watchers",
    "duration",
    "quiet_telemetry",
    "redact",
    "redact_text",
    "watched",
]
