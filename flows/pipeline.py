"""The stages in a row: prepare, adapt if asked for, cache, distill, evaluate."""

from typing import Any

import flows  # noqa: F401  sets defaults that Prefect reads on import

# isort: split
from prefect import flow

from flows.common import run_as_script, run_pipeline
from flows.form import asks_for_config
from sra_core.config import RunConfig

__all__ = ["pipeline"]


@flow(name="pipeline")
@asks_for_config()
def pipeline(config: RunConfig) -> Any:
    """Distil a student: prepare, adapt (if enabled), cache, distill, evaluate.

    A stage that is done is found by its fingerprint and not repeated, so a retried run goes on where it stopped.
    """
    return run_pipeline(config)


if __name__ == "__main__":
    raise SystemExit(run_as_script(pipeline))
