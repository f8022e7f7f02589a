"""`sra bench`: variants of one run times seeds, paired example by example, resumed cell by cell."""

from sra_core.bench.grid import Bench, Cell
from sra_core.bench.lines import BenchLines, listing
from sra_core.bench.report import Report, figure, markdown, terminal
from sra_core.bench.run import bench_report, run_cells

__all__ = [
    "Bench",
    "BenchLines",
    "Cell",
    "Report",
    "bench_report",
    "figure",
    "listing",
    "markdown",
    "run_cells",
    "terminal",
]
