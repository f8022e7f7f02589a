"""The stages in a row: prepare, adapt if asked for, cache, distill, evaluate."""

from typing import Any

import flows  # noqa: F401  sets defaults that Prefect reads on import

# isort: split
from prefect import flow

from flows.common import run_as_script, run_pipeline
from flows.form import Overrides, Recipe, settle
from sra_core.config import RunConfig

__all__ = ["pipeline"]


@flow(name="pipeline", flow_run_name="pipeline-{recipe}")
def pipeline(recipe: Recipe = "quickstart", config: RunConfig = RunConfig(), overrides: Overrides = {}) -> Any:  # noqa: B006, B008
    """Distil a student: prepare, adapt (if enabled), cache, distill, evaluate.

    A stage that is done is found by its fingerprint and not repeated, so a retried run goes on where it stopped.

    Args:
        recipe: Run config to start from; `none` starts from the defaults.
        config: Fields that differ from their defaults win over the recipe.
        overrides: Dotted fields that win over everything else.
    """
    return run_pipeline(settle(recipe, config, overrides))


if __name__ == "__main__":
    raise SystemExit(run_as_script(pipeline))
