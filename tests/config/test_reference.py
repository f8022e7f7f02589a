"""The reference of the config: nothing missing, in words, and the page in docs is the one that the config makes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from sra_core.config import LoraConfig, RunConfig
from sra_core.config.reference import FieldRow, fields, reference_page

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


class Inner(BaseModel):
    size: int = Field(2, ge=1, lt=9, description="How big.")


class Outer(BaseModel):
    kind: Literal["a", "b"] = Field("a", description="Which.")
    inner: Inner = Field(Inner(), description="Always there.", json_schema_extra={"fingerprint": False})
    maybe: Inner | None = Field(None, description="There or not.")
    many: list[Inner] = Field([Inner(size=3)], description="Several.")
    pairs: list[tuple[int, float]] = Field([(1, 0.5)], description="Pairs.")


def test_rows_follow_the_config_and_look_into_optional_parts() -> None:
    assert list(fields(Outer)) == [
        FieldRow("kind", "`a`, `b`", '"a"', "Which.", True),
        FieldRow("inner.size", "integer, >= 1, < 9", "2", "How big.", False),
        FieldRow("maybe", "section or null", "null", "There or not.", True),
        FieldRow("maybe.size", "integer, >= 1, < 9", "2", "How big.", True),
        FieldRow("many", "list of section", '[{"size": 3}]', "Several.", True),
        FieldRow("many[].size", "integer, >= 1, < 9", "2", "How big.", True),
        FieldRow("pairs", "list of (integer, number)", "[[1, 0.5]]", "Pairs.", True),
    ]


def test_optional_parts_of_the_run_config_are_listed() -> None:
    rows = {row.name: row for row in fields()}
    assert {f"{part}.lora.{name}" for part in ("distill", "adapt") for name in LoraConfig.model_fields} <= set(rows)
    assert rows["distill.lora"].default == "null"
    assert rows["adapt.lora"].default.startswith("set")
    assert not rows["cache.device"].fingerprint
    assert not rows["tracking.uri"].fingerprint


def test_the_page_is_the_one_that_the_config_makes() -> None:
    assert PAGE.read_text() == reference_page(), "docs/reference.md is stale; run `make docs`"


def test_the_page_has_a_table_for_every_section() -> None:
    page = reference_page()
    sections = [name for name, field in RunConfig.model_fields.items() if isinstance(field.default, BaseModel)]
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == ["The run", *sections]
