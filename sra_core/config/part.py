"""What every part of the config is: checked when built, its fields told apart by what determines results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

__all__ = ["AUTO", "DType", "Part", "Seed", "hashed", "runtime", "where_set"]

Seed = Annotated[int, Field(ge=0, le=2**53)]
"""What every random generator takes, and JSON keeps."""

DType = Literal["auto", "float32", "bfloat16", "float16"]
AUTO = (
    "`auto` is bfloat16 where the device computes it natively (CUDA capability 8 and up; CPUs with avx512_bf16 or "
    "amx_bf16), else float32; what it comes to is part of the result's name."
)


def runtime(default: Any, description: str, **constraints: Any) -> Any:
    """A field that changes how a stage runs, never the bytes that it writes."""
    return Field(default, description=description, json_schema_extra={"fingerprint": False}, **constraints)


def where_set(default: Any, description: str, *, before: Any = None, **constraints: Any) -> Any:
    """A field that determines results, left out of their identity at one value: results from before it stay valid.

    Args:
        default: Its default.
        description: For people.
        before: What results from before the field were made with, where that is not the default.
        constraints: As for pydantic's ``Field``.
    """
    extra = {"fingerprint": "where set", "before": default if before is None else before}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


class Part(BaseModel):
    """A section of the run config: unknown keys are refused, values are checked when built."""

    model_config = ConfigDict(extra="forbid", validate_default=True, validate_assignment=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes it for 1, in a list too."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if not _holds(kind, bool) and any(isinstance(each, bool) for each in (value if _is_list(value) else [value])):
            if _holds(kind, float):
                raise ValueError(f"must be a number, not {value}")
            if _holds(kind, int):
                raise ValueError(f"must be an integer, not {value}")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _null_takes_a_mapping_back(cls, value: Any, info: ValidationInfo) -> Any:
        """An empty one would not: it is merged into what the recipe below has."""
        mapping = value is None and get_origin(cls.model_fields[str(info.field_name)].annotation) is dict
        return {} if mapping else value


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _holds(annotation: Any, kind: type) -> bool:
    """Whether a type is ``kind``, or has it for one of its parts or choices."""
    return annotation is kind or any(_holds(each, kind) for each in get_args(annotation))


def hashed(part: BaseModel) -> dict[str, Any]:
    """The fields of a config part that determine results, nested as in the config and ready for JSON.

    Fields marked ``runtime`` are left out, and those marked ``where_set`` where they are as they were before them.
    """
    return dict(_identity_items(part))


def _identity_items(part: BaseModel) -> Iterator[tuple[str, Any]]:
    for name, field in type(part).model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        marked, value = extra.get("fingerprint"), getattr(part, name)
        if marked is False or (marked == "where set" and value == extra["before"]):
            continue
        yield name, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return hashed(value)
    if _is_list(value):
        return [_plain(item) for item in value]
    return value
