"""The cache stage as a flow of its own."""

from typing import Any

import flows  # noqa: F401  sets defaults that Prefect reads on import

# isort: split
from prefect import flow

from flows.common import run_as_script, run_stage
from flows.form import asks_for_config
from sra_core.config import RunConfig

__all__ = ["cache"]


@flow(name="cache")
@asks_for_config()
def cache(config: RunConfig) -> Any:
    """Run the teacher once over the prepared texts and store its span centres."""
    return run_stage("cache", config)


if __name__ == "__main__":
    raise SystemExit(run_as_script(cache))
