"""Prefect flows: they orchestrate the plain functions of ``sra_core.stages`` and do nothing else.

Importing this package sets defaults that Prefect reads once, on its own import: no usage reports, log lines of
``sra_core`` shown in the flow run, and time enough for the temporary server of a flow that runs as a plain script.
"""

import os

from sra_core.watch import quiet_telemetry

__all__ = [
    "adapt",
    "benchmark",
    "cache",
    "common",
    "distill",
    "evaluate",
    "form",
    "generate",
    "pipeline",
    "prepare",
    "recovery",
    "retries",
    "server",
    "summary",
    "watcher",
]

quiet_telemetry()
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "sra_core")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")  # 20 unless told
