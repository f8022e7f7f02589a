"""The adapt stage as a flow of its own."""

from typing import Any

import flows  # noqa: F401  sets defaults that Prefect reads on import

# isort: split
from prefect import flow

from flows.common import run_as_script, run_stage
from flows.form import asks_for_config
from sra_core.config import RunConfig

__all__ = ["adapt"]


@flow(name="adapt")
@asks_for_config()
def adapt(config: RunConfig) -> Any:
    """Fine-tune the teacher on the training examples before its states are cached."""
    return run_stage("adapt", config)


if __name__ == "__main__":
    raise SystemExit(run_as_script(adapt))
