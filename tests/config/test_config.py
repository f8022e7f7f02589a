"""The run config: what it refuses, what it says of each field, and that no field is decoration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

import sra_core
from sra_core.config import (
    AlignmentConfig,
    CorpusConfig,
    DistillConfig,
    ObjectiveConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
    hashed,
    merged,
)
from sra_core.config.load import load_config, parse_overrides
from sra_core.config.reference import FieldRow, fields, part_of
from sra_core.errors import ConfigError
from sra_core.runs import ORDER, Run
from tests.config.reads import declared, fields_read

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


def all_fields(part: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """Dotted name, part and own name of every field."""
    for name, field in part.model_fields.items():
        yield f"{prefix}{name}", part, name
        inner = part_of(field.annotation)
        if inner is not None:
            yield from all_fields(inner, f"{prefix}{name}.")


def unread(files: list[Path]) -> list[str]:
    read = fields_read(files)
    return [dotted for dotted, part, name in all_fields() if declared(part, name) not in read]


def test_every_field_is_read_somewhere() -> None:
    """An option that is accepted and ignored is a trap."""
    files = [path for folder in (SOURCE, SOURCE.parent / "flows") for path in sorted(folder.rglob("*.py"))]
    assert unread(files) == []
    assert "distill.warmup" in unread([path for path in files if path.parent.name not in ("training", "plan")])


def test_a_field_of_the_same_name_elsewhere_is_no_read(tmp_path: Path) -> None:
    file = tmp_path / "guest.py"
    file.write_text("def look(tensor, config: DistillConfig):\n    return tensor.batch_size + config.epochs\n")
    assert fields_read([file]) == {"TrainingConfig.epochs"}


BY_CONTENT = {
    "source",
    "revision",
    "sha256",
    "trust_remote_code",
    "subset",
    "hub_split",
    "layout",
    "columns",
    "split",
    "streaming",
}
"""Fields that say where something lies or how it is opened: the fingerprint hashes what is found there."""
BY_OTHERS = {"corpus.source", "corpus.ignore", "corpus.splits", "adapt.enabled", "evaluate.datasets"}
"""Fields that this corpus has no use for, or that others' tests change."""
NO_RESULT = ("name", "recipe", "store", "dask", "tracking", "bench")
"""What belongs to no stage's result."""
OTHER = {
    "student.tokenizer": "train",
    "student.template": "chat",
    "student.layer_choice": "importance",
    "student.template_arguments": {"enable_thinking": False},
    "teacher.template_arguments": {"enable_thinking": False},
    "corpus.prompt": "Q: {instruction}\n{context}",
    "corpus.system": "Be brief.",
    "objective.layers": [[3, 2]],
    "objective.cosine": 3.0,
    "distill.lora": None,
    "adapt.lora": None,
    "distill.deepspeed": {"gradient_clipping": 0.5},
    "adapt.deepspeed": {"gradient_clipping": 0.5},
    "evaluate.seeds": [1, 2],
    "evaluate.lm_eval": ["arc_easy"],
    "cache.layers": [1],
}
"""Another value of fields whose annotation does not tell one."""


def another(value: Any, field: FieldInfo) -> Iterator[Any]:
    """Values that differ from the one given, the likeliest to be accepted first."""
    choices = [
        get_args(each) for each in (field.annotation, *get_args(field.annotation)) if get_origin(each) is Literal
    ]
    yield from (choice for group in choices for choice in group if choice != value)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value + 1, value * 2, value / 2, 0.5)
    elif value is None:
        yield from (2, "x", ["x"])
    elif isinstance(value, str):
        yield f"{value}x"


def changed(base: RunConfig, dotted: str) -> RunConfig:
    """The config with one field changed."""
    part, _, leaf = dotted.rpartition(".")
    holder: Any = base
    for name in part.split(".") if part else ():
        holder = getattr(holder, name)
    values = [OTHER[dotted]] if dotted in OTHER else another(getattr(holder, leaf), type(holder).model_fields[leaf])
    for value in values:
        nested: Any = {leaf: value}
        for name in reversed(part.split(".") if part else ()):
            nested = {name: nested}
        with suppress(ConfigError):
            return load_config("smoke", merged(merged(BASE, WITH.get(dotted, {})), nested))
    raise AssertionError(f"no other value of {dotted} is known: add one to OTHER")


WITH: dict[str, Any] = {
    "evaluate.protocol": {"evaluate": {"max_new_tokens": 512}},
    "student.template_arguments": {"student": {"template": "chat"}},
    "teacher.template_arguments": {"teacher": {"template": "chat"}},
}
"""What another value of a field needs beside it."""
BASE: dict[str, Any] = {
    "adapt": {"enabled": True, "lora": {}, "zero_stage": 1},
    "distill": {"lora": {}, "zero_stage": 1},
    "student": {"keep_layers": 1},
    "objective": {"layers": [[2, 1], [3, 2]], "weighted_loss": True},
}


def fingerprints(config: RunConfig, teacher: RunConfig) -> list[str]:
    """Of every stage, with the adapted teacher taken as given."""
    run = Run(config)
    run.adapted = config
    return [run.fingerprint(stage) for stage in ORDER]


@pytest.fixture(scope="module")
def base() -> tuple[RunConfig, list[str]]:
    config = load_config("smoke", BASE)
    return config, fingerprints(config, config)


@pytest.mark.parametrize(
    "row",
    [row for row in fields() if not row.name.startswith(NO_RESULT) and "[]" not in row.name],
    ids=lambda row: row.name,
)
def test_a_field_moves_a_fingerprint_or_is_marked_as_runtime(row: FieldRow, base: tuple[RunConfig, list[str]]) -> None:
    """Two configs that make different results never share one, and what only changes how a stage runs repeats none."""
    leaf = row.name.rpartition(".")[2]
    if leaf in BY_CONTENT or row.name in (
        "corpus.source",
        "corpus.ignore",
        "corpus.splits",
        "adapt.enabled",
        "evaluate.datasets",
    ):
        pytest.skip("identified by content")
    other = changed(base[0], row.name)
    assert (fingerprints(other, base[0]) != base[1]) is row.fingerprint


def test_arguments_of_a_template_move_the_fingerprint_only_where_there_are_any() -> None:
    assert "template_arguments" not in hashed(StudentConfig(template="chat"))

    def prepared(**arguments: Any) -> str:
        parts = {part: {"template": "chat", "template_arguments": arguments} for part in ("teacher", "student")}
        return Run(load_config("smoke", parts)).fingerprint("prepare")

    assert len({prepared(), prepared(day="2025-01-31"), prepared(day="2025-02-01")}) == 3


def test_a_date_in_yaml_is_a_text() -> None:
    override = parse_overrides(["teacher.template_arguments={strftime_now: 2025-01-31}", "teacher.template=chat"])
    assert load_config("smoke", override).teacher.template_arguments == {"strftime_now": "2025-01-31"}


def test_numbers_in_yaml_are_those_of_its_version_1_2() -> None:
    texts = {"5e8": 5e8, "1e-4": 1e-4, "2.5E+3": 2500.0, ".5": 0.5, "-3": -3, "010": 10, "0x1F": 31, "1:30": "1:30"}
    for text, value in texts.items():
        found = parse_overrides([f"x={text}"])["x"]
        assert (found, type(found)) == (value, type(value)), text


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
        (AlignmentConfig, {"max_length": 64, "max_prompt": 64}, "leaves no room for a response in max_length 64"),
        (AlignmentConfig, {"max_length": 64, "max_prompt": 63}, "leaves no room"),
        (DistillConfig, {"zero_stage": 4}, "zero_stage"),
        (TeacherConfig, {"template_arguments": {"a": 1}}, "a plain prompt takes none"),
        (StudentConfig, {"template": "chat", "template_arguments": {"tools": []}}, "tools is for the data and the run"),
        (StudentConfig, {"template": "chat", "template_arguments": {"a": {1}}}, "write texts, numbers, lists"),
        (StudentConfig, {"template": "chat", "template_arguments": {"strftime_now": "today"}}, "a day such as"),
        (DistillConfig, {"epochs": 0}, "epochs"),
    ],
)
def test_contradictions_are_refused_when_built(part: type[BaseModel], values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        part.model_validate(values)


def test_a_run_is_refused_whose_prompts_leave_no_room_though_only_one_limit_was_chosen() -> None:
    for limits in ({"max_length": 65}, {"max_prompt": 95}):  # recipe smoke has 96 and 64
        with pytest.raises(ConfigError, match="leaves no room for a response"):
            load_config("smoke", {"alignment": limits})
    with pytest.raises(ConfigError, match="leaves no room for a response"):
        load_config(None, {"alignment": {"max_length": 200}})
    assert load_config("smoke", {"alignment": {"max_prompt": 94}}).alignment.max_prompt == 94


def test_assignment_is_checked_too() -> None:
    config = RunConfig()
    with pytest.raises(ValidationError):
        config.distill.batch_size = 0
