"""A benchmark: variants of one run with several seeds, cell by cell, and what they show."""

from typing import Annotated, Any

import flows  # noqa: F401  sets defaults that Prefect reads on import

# isort: split
from prefect import flow
from pydantic import Field

from flows.common import run_as_script, run_grid
from flows.form import Overrides, Recipe, settle
from sra_core.config import RunConfig

__all__ = ["benchmark"]

Cells = Annotated[
    list[str], Field(title="Variants", description="Only variants of these names; empty runs all of the grid.")
]
Seeds = Annotated[list[int], Field(title="Seeds", description="Only these seeds of the grid; empty runs all of them.")]


@flow(name="benchmark", flow_run_name="benchmark-{recipe}")
def benchmark(
    recipe: Recipe = "quality",
    config: RunConfig = RunConfig(),  # noqa: B008
    overrides: Overrides = {},  # noqa: B006
    cells: Cells = [],  # noqa: B006
    seeds: Seeds = [],  # noqa: B006
) -> Any:
    """Compare objectives over seeds, on one corpus with one budget.

    A cell that is done is found by its fingerprint and not repeated, so a retried run goes on where it stopped.

    Args:
        recipe: Run config to start from; `none` starts from the defaults.
        config: Fields that differ from their defaults win over the recipe; `bench` holds the grid.
        overrides: Dotted fields that win over everything else.
        cells: Only variants of these names.
        seeds: Only these seeds.
    """
    return run_grid(settle(recipe, config, overrides), cells, seeds)


if __name__ == "__main__":
    raise SystemExit(run_as_script(benchmark))
