"""What objectives gain over a reference, held out, from finished grids: a table and a figure.

    python -m benchmarks.gain quality quality-coarse [--variants sra mined] [--figure FILE]
    python -m benchmarks.gain quality-long --metrics bits_per_byte top1 rougeL chrf [--figure FILE]
    python -m benchmarks.gain quality-long --curves --figure FILE

Reads what `sra bench quality RECIPE` left in the store and trains nothing. Paired differences with 95 % bootstrap
intervals over examples and seeds. Several grids are drawn in the order of their share of spans that are one token to
one; a single grid with a panel a metric; `--curves` draws its validation texts while training went on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sra_core.bench.grid import Bench
from sra_core.bench.report import Report
from sra_core.bench.scores import collect, compare
from sra_core.config.load import load_config
from sra_core.errors import SraError
from sra_core.prepare import audit_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def grid(recipe: str, store: str | None, reference: str) -> tuple[Report, float]:
    """The report of a grid, and its share of spans that are one token to one."""
    settings: dict[str, Any] = {"bench": {"reference": reference}} if reference else {}
    bench = Bench(load_config(recipe, settings | ({"store": store} if store else {})))
    prepared = bench.cells[0].run.folder("prepare").manifest()
    if prepared is None:
        sys.exit(
            f"recipe {recipe}: nothing is prepared in {bench.config.store}; run `sra bench quality {recipe}` first"
        )
    return compare(bench, collect(bench, bench.cells)), audit_of(prepared).overall.one_to_one


def rows_of(report: Report, share: float, metrics: list[str], variants: list[str]) -> list[dict[str, Any]]:
    """A row for each variant that is paired with the reference, and each metric; variants in the order asked for."""
    higher = {metric.name: metric.higher for metric in report.metrics}
    found = [
        {"grid": report.title, "share": share, "higher": higher[row["metric"]], **row}
        for row in report.differences
        if row["metric"] in metrics and row["second"] == report.reference and row["first"] in (variants or row["first"])
    ]
    return sorted(found, key=lambda row: variants.index(row["first"]) if variants else 0)


def draw_grids(rows: list[dict[str, Any]]) -> Figure:
    """Gains with their intervals, a colour a variant, the grids in the order of their share."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.6", linewidth=1)
    variants = list(dict.fromkeys(row["first"] for row in rows))
    grids = sorted({(row["share"], row["grid"]) for row in rows})
    places = {name: number for number, (_, name) in enumerate(grids)}
    for number, variant in enumerate(variants):
        own = [row for row in rows if row["first"] == variant]
        shift = 0.12 * (number - (len(variants) - 1) / 2)  # so that intervals do not hide each other
        gains, errors = zip(*map(_gain, own), strict=True)
        x = [places[row["grid"]] + shift for row in own]
        axes.errorbar(x, gains, yerr=np.transpose(errors), fmt="o", capsize=3, label=variant)
    axes.set_xticks(range(len(grids)), [f"{name}\n{share:.0%}" for share, name in grids])
    axes.margins(x=0.1)
    axes.set_xlabel("grid, and spans of one token on both sides")
    axes.set_ylabel(f"bits per byte better than {rows[0]['second']}")
    axes.legend(fontsize=8)
    return figure


def draw_metrics(rows: list[dict[str, Any]], titles: dict[str, str]) -> Figure:
    """A panel a metric, a line a variant: what it gains, with its interval."""
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    variants = list(dict.fromkeys(row["first"] for row in rows))[::-1]
    figure = Figure(figsize=(1.2 + 2.6 * len(metrics), 1 + 0.28 * len(variants)), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        axes.axvline(0, color="0.6", linewidth=1)
        own = [row for row in rows if row["metric"] == metric]
        gains, errors = zip(*map(_gain, own), strict=True)
        places = [variants.index(row["first"]) for row in own]
        axes.errorbar(gains, places, xerr=np.transpose(errors), fmt="o", capsize=3, color="C0")
        axes.set_xlabel(titles[metric], fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_yticks(range(len(variants)), variants)
    figure.suptitle(f"{rows[0]['grid']}: better than {rows[0]['second']} to the right", fontsize=9)
    return figure


def draw_curves(report: Report, variants: list[str]) -> Figure:
    """Held-out bits per byte better than the reference at the same step: the mean over seeds, a band from the lowest
    to the highest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.6", linewidth=1)
    for variant in variants or report.variants:
        gains = []
        for (name, seed), curve in report.curves.items():
            reference = dict(report.curves.get((report.reference, seed), ()))
            if name == variant != report.reference and reference:
                # Step 0 is the untrained student, the same in all.
                gains.append({step: reference[step] - bits for step, bits in curve if step and step in reference})
        if gains:
            steps = sorted(set.intersection(*map(set, gains)))
            values = np.array([list(map(each.__getitem__, steps)) for each in gains])
            (line,) = axes.plot(steps, values.mean(0), marker=".", label=f"{variant}, seeds: {len(gains)}")
            axes.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="step", ylabel=f"bits per byte better than {report.reference}", title=report.title)
    axes.legend(fontsize=8)
    return figure


def _gain(row: dict[str, Any]) -> tuple[float, tuple[float, float]]:
    """The gain, and how far its interval reaches below and above."""
    way = 1 if row["higher"] else -1
    low, high = sorted((way * row["low"], way * row["high"]))
    gain = way * row["difference"]
    return gain, (gain - low, high - gain)


def _figure(text: str) -> Path:
    if Path(text).suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"{text} is no .svg or .png")
    return Path(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="recipes, by name or file, whose grids are in the store")
    parser.add_argument("--store", help="where the grids are; unset takes the recipes'")
    parser.add_argument("--reference", default="", help="variant to compare with; unset takes the recipes' own")
    parser.add_argument("--variants", nargs="*", default=[], help="these alone")
    parser.add_argument("--metrics", nargs="*", default=["bits_per_byte"], help="bits_per_byte, top1, rougeL, chrf")
    parser.add_argument("--curves", action="store_true", help="draw validation texts over the steps of one grid")
    parser.add_argument("--figure", type=_figure, help="where the figure goes, as .svg or .png")
    options = parser.parse_args()
    if options.figure and len(options.recipes) > 1 and (options.curves or len(options.metrics) > 1):
        sys.exit("a figure shows several grids by one metric, or one grid by several metrics or over its steps")
    try:
        grids = [grid(recipe, options.store, options.reference) for recipe in options.recipes]
    except SraError as error:
        sys.exit(str(error))
    rows = [row for each in grids for row in rows_of(*each, options.metrics, options.variants)]
    if lacking := [name for name in options.metrics if name not in {row["metric"] for row in rows}]:
        measured = {metric.name for report, _ in grids for metric in report.metrics}
        sys.exit(f"no pair to show for {', '.join(lacking)}: measured by all cells that are done: {sorted(measured)}")
    print(
        "| grid | one to one | metric | first - second | difference | p (Holm) | seeds |\n|---|---|---|---|---|---|---|"
    )
    for row in rows:
        gap = f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        cells = (row["grid"], f"{row['share']:.0%}", row["metric"], f"{row['first']} - {row['second']}", gap)
        print(f"| {' | '.join(cells)} | {row['p']:.4f} | {row['seeds']} |")
    if options.figure:
        if options.curves:
            figure = draw_curves(grids[0][0], options.variants)
        elif len(grids) > 1:
            figure = draw_grids(rows)
        else:
            figure = draw_metrics(rows, {metric.name: metric.title for metric in grids[0][0].metrics})
        figure.savefig(options.figure)
        print(f"\n{options.figure}")


if __name__ == "__main__":
    main()
