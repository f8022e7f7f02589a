"""The evaluate stage as a flow of its own."""

from typing import Any

import flows  # noqa: F401  sets defaults that Prefect reads on import

# isort: split
from prefect import flow

from flows.common import run_as_script, run_stage
from flows.form import asks_for_config
from sra_core.config import RunConfig

__all__ = ["evaluate"]


@flow(name="evaluate")
@asks_for_config()
def evaluate(config: RunConfig) -> Any:
    """Score the student, its start and the teacher on held-out texts."""
    return run_stage("evaluate", config)


if __name__ == "__main__":
    raise SystemExit(run_as_script(evaluate))
