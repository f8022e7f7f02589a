"""A plan: what is predicted, beside what it came to."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.table import Table

__all__ = ["Plan"]


@dataclass(slots=True)
class Plan:
    """A prediction, and what it came to where a stage is done.

    Attributes:
        counts: Examples by split, and tokens of either side and spans of the training split.
        bytes: Size of the results by stage, as their manifests count it; of models the weights and tokenizer alone,
            without configs, cards and metrics (some kilobytes), and without scores and answers.
        memory: Bytes at the peak of the stages that run a model (``adapt``, ``cache``, ``distill``); on a CPU, of
            the whole process as it starts: its heap grows over a long training (seen: to three times that).
        devices: Where these run.
        seconds: Duration on this machine of the capture, of the steps of either training, and of scoring the test split
            (the longest it takes, without other data sets).
        warnings: What speaks against the run as it is.
        actual: Those of the above, by the same names, that a finished stage shows.
    """

    counts: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    actual: dict[str, dict[str, float]] = field(
        default_factory=lambda: {"counts": {}, "bytes": {}, "memory": {}, "seconds": {}}
    )

    @property
    def total(self) -> tuple[float, float | None]:
        """Bytes of all results: predicted, and actual once every stage of the plan is done."""
        found = self.actual["bytes"]
        return sum(self.bytes.values()), sum(found.values()) if found.keys() == self.bytes.keys() else None

    def table(self) -> Table:
        """Predicted and actual, row by row."""
        return _table(self)


def _table(plan: Plan) -> Table:
    table = Table("", "predicted", "actual", "off by", box=None, pad_edge=False)
    shown = {
        "counts": (plan.counts, lambda value: f"{value:,.0f}", "{}"),
        "bytes": (plan.bytes, _megabytes, "{}: size"),
        "memory": (plan.memory, _megabytes, "{}: peak memory"),
        "seconds": (plan.seconds, _duration, "{}: time"),
    }
    for kind, (values, form, title) in shown.items():
        pairs = {name: (value, plan.actual[kind].get(name)) for name, value in values.items()}
        pairs |= {"all stages": plan.total} if kind == "bytes" else {}
        for name, (value, actual) in pairs.items():
            gap = "" if not actual else f"{(value - actual) / actual:+.1%}"
            where = f" ({plan.devices[name]})" if kind in ("memory", "seconds") else ""
            where = f", at most{where}" if kind == "seconds" and name == "evaluate" else where
            where = f", at least{where}" if kind == "memory" and plan.devices[name] == "cpu" else where
            table.add_row(title.format(name) + where, form(value), "" if actual is None else form(actual), gap)
    return table


def _megabytes(value: float) -> str:
    return f"{value / 1e6:,.3f} MB" if value < 1e7 else f"{value / 1e6:,.0f} MB"


def _duration(value: float) -> str:
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
