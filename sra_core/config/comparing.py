"""What runs are compared by: tracking, and the grid of a benchmark."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from sra_core.config.part import Part, Seed

__all__ = ["BenchConfig", "TrackingConfig", "Variant"]


class TrackingConfig(Part):
    """MLflow."""

    enabled: bool = Field(True, description="Track every stage in MLflow.")
    uri: str | None = Field(
        None, description="Tracking server or database; unset keeps a SQLite database inside the store."
    )
    experiment: str = Field("sra", description="Experiment that collects the runs.")
    system_metrics: bool = Field(False, description="Log CPU, memory and GPU use while a stage runs.")


class Variant(Part):
    """One contender of a benchmark."""

    name: str = Field(min_length=1, description="Name in tables and figures.")
    overrides: dict[str, Any] = Field(
        {}, description='Dotted fields in which it differs from the run, such as {"objective.name": "sft"}.'
    )


class BenchConfig(Part):
    """The grid of `sra bench`: every variant with every seed, on one corpus with one budget."""

    variants: list[Variant] = Field(
        [
            Variant(name=name, overrides={"objective.name": name})
            for name in ("sra", "sft", "uld", "mined", "dskd", "multilevel_ot", "alm", "strict_kl", "gold", "xtoken")
        ],
        min_length=1,
        description="What is compared: variants, each with a name and the fields in which it differs from the run.",
    )
    seeds: list[Seed] = Field(
        [1, 2, 3], min_length=1, description="Seeds that every variant is trained with; each takes the place of `seed`."
    )
    reference: str = Field("sft", description="Variant that every other one is paired with, example by example.")

    @model_validator(mode="after")
    def _names_and_seeds_are_distinct(self) -> BenchConfig:
        names = [variant.name for variant in self.variants]
        kinds: tuple[tuple[str, list[Any]], ...] = (("variants", names), ("seeds", self.seeds))
        for what, values in kinds:
            if twice := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"{what}: {twice[0]!r} occurs twice; its results would count twice")
        if self.reference not in names:
            raise ValueError(f"reference: {self.reference!r} is not one of the variants {', '.join(names)}")
        return self
