"""The cache stage as a flow of its own."""

from typing import Any

import flows  # noqa: F401  sets defaults that Prefect reads on import

# isort: split
from prefect import flow

from flows.common import run_as_script, run_stage
from flows.form import Overrides, Recipe, settle
from sra_core.config import RunConfig

__all__ = ["cache"]


@flow(name="cache", flow_run_name="cache-{recipe}")
def cache(recipe: Recipe = "quickstart", config: RunConfig = RunConfig(), overrides: Overrides = {}) -> Any:  # noqa: B006, B008
    """Run the teacher once over the prepared texts and store its span centres.

    Args:
        recipe: Run config to start from; `none` starts from the defaults.
        config: Fields that differ from their defaults win over the recipe.
        overrides: Dotted fields that win over everything else.
    """
    return run_stage("cache", settle(recipe, config, overrides))


if __name__ == "__main__":
    raise SystemExit(run_as_script(cache))
