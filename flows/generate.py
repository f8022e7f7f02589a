"""The corpus in the teacher's words, as a flow of its own."""

from typing import Any

import flows  # noqa: F401  sets defaults that Prefect reads on import

# isort: split
from prefect import flow

from flows.common import run_as_script, run_stage
from flows.form import asks_for_config
from sra_core.config import RunConfig

__all__ = ["generate"]


@flow(name="generate")
@asks_for_config()
def generate(config: RunConfig) -> Any:
    """Answer the training prompts with the teacher: a corpus for sequence-level distillation."""
    return run_stage("generate", config)


if __name__ == "__main__":
    raise SystemExit(run_as_script(generate))
