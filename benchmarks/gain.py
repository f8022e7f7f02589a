"""What an objective gains over plain fine-tuning, against how many spans are one token to one: a point a finished grid.

    python -m benchmarks.gain quality quality-coarse [--store FOLDER] [--variants sra mined] [--figure FILE]

Reads what `sra bench quality RECIPE` left in the store and trains nothing. Prints a table with the paired differences
in bits per byte, held out, and their 95 % bootstrap intervals over examples and seeds; draws them where a file is
named.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sra_core.bench.grid import Bench
from sra_core.bench.scores import collect, compare
from sra_core.config.load import load_config
from sra_core.prepare import audit_of


def points(recipe: str, store: str | None) -> list[dict[str, Any]]:
    """A row for each variant of a grid that is paired with its reference."""
    bench = Bench(load_config(recipe, {"store": store} if store else {}))
    prepared = bench.cells[0].run.folder("prepare").manifest()
    if prepared is None:
        sys.exit(
            f"recipe {recipe}: nothing is prepared in {bench.config.store}; run `sra bench quality {recipe}` first"
        )
    report = compare(bench, collect(bench, bench.cells))
    share = audit_of(prepared).overall.one_to_one
    return [
        {"grid": report.title, "share": share, **row}
        for row in report.differences
        if row["metric"] == "bits_per_byte" and row["second"] == report.reference
    ]


def draw(rows: list[dict[str, Any]], place: Path) -> None:
    """Gains with their intervals, a colour a variant, the grids in the order of their share."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.6", linewidth=1)
    variants = list(dict.fromkeys(row["first"] for row in rows))
    grids = sorted({(row["share"], row["grid"]) for row in rows})
    places = {name: number for number, (_, name) in enumerate(grids)}
    for number, variant in enumerate(variants):
        own = [row for row in rows if row["first"] == variant]
        shift = 0.15 * (number - (len(variants) - 1) / 2)  # so that intervals do not hide each other
        # A gain is a difference turned over: the high end of the one is the low end of the other.
        axes.errorbar(
            [places[row["grid"]] + shift for row in own],
            [-row["difference"] for row in own],
            yerr=[[row["high"] - row["difference"] for row in own], [row["difference"] - row["low"] for row in own]],
            fmt="o",
            capsize=3,
            label=variant,
        )
    axes.set_xticks(range(len(grids)), [f"{name}\n{share:.0%}" for share, name in grids])
    axes.margins(x=0.1)
    axes.set_xlabel("grid, and spans of one token on both sides")
    axes.set_ylabel("bits per byte better than SFT")
    axes.legend(fontsize=8)
    figure.savefig(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="recipes, by name or file, whose grids are in the store")
    parser.add_argument("--store", help="where the grids are; unset takes the recipes'")
    parser.add_argument("--variants", nargs="*", help="these alone")
    parser.add_argument("--figure", type=Path, help="where the figure goes, as .svg or .png")
    options = parser.parse_args()
    rows = [row for recipe in options.recipes for row in points(recipe, options.store)]
    rows = [row for row in rows if not options.variants or row["first"] in options.variants]
    print("| grid | one to one | first - second | difference | seeds |\n|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["share"], row["first"])):
        gap = f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        print(f"| {row['grid']} | {row['share']:.0%} | {row['first']} - {row['second']} | {gap} | {row['seeds']} |")
    if options.figure:
        draw(rows, options.figure)
        print(f"\n{options.figure}")


if __name__ == "__main__":
    main()
