"""The prepare stage as a flow of its own."""

from typing import Any

import flows  # noqa: F401  sets defaults that Prefect reads on import

# isort: split
from prefect import flow

from flows.common import run_as_script, run_stage
from flows.form import asks_for_config
from sra_core.config import RunConfig

__all__ = ["prepare"]


@flow(name="prepare")
@asks_for_config()
def prepare(config: RunConfig) -> Any:
    """Read the corpus, tokenize it with both tokenizers and store the span maps."""
    return run_stage("prepare", config)


if __name__ == "__main__":
    raise SystemExit(run_as_script(prepare))
