"""The terminal's view of a grid while it runs: one line a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sra_core.bench.grid import Bench
from sra_core.bench.scores import held_out_bits
from sra_core.watch import TerminalWatcher

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["BenchLines", "listing"]


class BenchLines(TerminalWatcher):
    """Prints a line as each cell ends, between the lines of its stages."""

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        self._say(f"[bold magenta]{done}/{total} {unit}[/]  ", note)


def listing(bench: Bench) -> Table:
    """The selected cells, their state and, where they are done, their held-out bits per byte."""
    from rich.table import Table
    from rich.text import Text

    table = Table("variant", "seed", "state", "bits per byte")
    for cell in bench.selected:
        made = bench.scores(cell)
        bits = held_out_bits(made) if made else ""
        table.add_row(Text(cell.variant), str(cell.seed), bench.state(cell), bits)
    return table
