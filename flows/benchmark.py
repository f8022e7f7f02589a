"""A benchmark: variants of one run with several seeds, cell by cell, and what they show."""

from typing import Annotated, Any

import flows  # noqa: F401  sets defaults that Prefect reads on import

# isort: split
from prefect import flow

from flows.common import run_as_script, run_grid
from flows.form import asks_for_config, described
from sra_core.config import RunConfig

__all__ = ["benchmark"]

Cells = Annotated[list[str], described(list[str], "Only variants of these names; empty runs all of the grid.")]
Seeds = Annotated[list[int], described(list[int], "Only these seeds of the grid; empty runs all of them.")]


# Lists as defaults: Prefect's form shows none that a factory would make.
@flow(name="benchmark")
@asks_for_config("quality", without=("seed",))
def benchmark(config: RunConfig, cells: Cells = [], seeds: Seeds = []) -> Any:  # noqa: B006
    """Compare objectives over seeds, on one corpus with one budget.

    A cell that is done is found by its fingerprint and not repeated, so a retried run goes on where it stopped.
    """
    return run_grid(config, cells, seeds)


if __name__ == "__main__":
    raise SystemExit(run_as_script(benchmark))
