"""The distill stage as a flow of its own."""

from typing import Any

import flows  # noqa: F401  sets defaults that Prefect reads on import

# isort: split
from prefect import flow

from flows.common import run_as_script, run_stage
from flows.form import asks_for_config
from sra_core.config import RunConfig

__all__ = ["distill"]


@flow(name="distill")
@asks_for_config()
def distill(config: RunConfig) -> Any:
    """Train the student on the teacher's stored span centres."""
    return run_stage("distill", config)


if __name__ == "__main__":
    raise SystemExit(run_as_script(distill))
