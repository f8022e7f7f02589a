"""The run config: what it refuses, what it says of each field, and that no field is decoration."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

import sra_core
from sra_core.config import AlignmentConfig, CorpusConfig, DistillConfig, ObjectiveConfig, RunConfig, hashed
from sra_core.config.reference import fields

SOURCE = Path(sra_core.__file__).parent


def parts(part: type[BaseModel] = RunConfig) -> list[type[BaseModel]]:
    inner = [type(field.get_default(call_default_factory=True)) for field in part.model_fields.values()]
    nested = [each for each in inner if isinstance(each, type) and issubclass(each, BaseModel)]
    return [part, *(deeper for each in nested for deeper in parts(each))]


def test_unknown_keys_are_refused_in_every_part() -> None:
    for part in parts():
        with pytest.raises(ValidationError, match="Extra inputs"):
            part.model_validate({"no_such_field": 1})


def test_every_field_is_described() -> None:
    bare = [row.name for row in fields() if len(row.meaning) < 10]
    assert bare == []


def test_choices_have_a_title_for_the_form() -> None:
    untitled = [
        f"{part.__name__}.{name}"
        for part in parts()
        for name, field in part.model_fields.items()
        if str(field.annotation).startswith("typing.Literal") and not field.title
    ]
    assert untitled == []


def test_every_field_is_read_somewhere() -> None:
    """An option that is accepted and ignored is a trap: each name is read outside the config, or hashed as a whole."""
    read: set[str] = set()
    by_prefix: set[str] = set()  # getattr(config, f"max_{split}")
    for path in SOURCE.rglob("*.py"):
        own = path.name == "config.py"  # there only a validator's self.field counts
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and (not own or getattr(node.value, "id", "") == "self"):
                read.add(node.attr)
            elif own:
                continue
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
                starts = [arg.values[0] for arg in node.args if isinstance(arg, ast.JoinedStr)]
                by_prefix |= {start.value for start in starts if isinstance(start, ast.Constant)}
    leaves = [(row.name, row.name.rpartition(".")[2]) for row in fields()]
    unread = [name for name, leaf in leaves if leaf not in read and not leaf.startswith(tuple(by_prefix))]
    assert unread == []


def test_runtime_fields_stay_out_of_the_identity() -> None:
    fast = AlignmentConfig(workers=8)
    assert hashed(fast) == hashed(AlignmentConfig())
    assert hashed(AlignmentConfig(max_length=64)) != hashed(AlignmentConfig())


def test_identity_is_nested_and_json_ready() -> None:
    made = hashed(RunConfig())
    assert made["objective"]["layers"] == [[-1, -1]]
    assert "tracking" not in made
    assert "store" not in made
    assert made["distill"]["lora"] is None


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (ObjectiveConfig, {"layers": [[0, 1]]}, "not a pair of layers"),
        (ObjectiveConfig, {"layers": [[1, 1], [2, 2]], "cosine": [1.0]}, "1 weights for 2 layer pairs"),
        (ObjectiveConfig, {"trajectory": 1.0}, "at least two layer pairs"),
        (CorpusConfig, {"validation_share": 0.6, "test_share": 0.4}, "leave nothing to train on"),
        (DistillConfig, {"zero_stage": 4}, "zero_stage"),
        (DistillConfig, {"epochs": 0}, "epochs"),
    ],
)
def test_contradictions_are_refused_when_built(part: type[BaseModel], values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        part.model_validate(values)


def test_assignment_is_checked_too() -> None:
    config = RunConfig()
    with pytest.raises(ValidationError):
        config.distill.batch_size = 0
