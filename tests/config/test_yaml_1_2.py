"""What is written as YAML is read back as it was, by this project's rules (YAML 1.2) and by PyYAML's (1.1)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_core.config.yaml_1_2 import NotYaml, read_yaml, write_yaml

LOOKS_LIKE_OTHERS = (
    "08",
    "1e3",
    "0o17",
    "1234e56",
    "010",
    "1:30",
    "off",
    "yes",
    "2026-01-01",
    "null",
    "~",
    "=",
    "<<",
    "",
    "-",
)
texts = st.sampled_from(LOOKS_LIKE_OTHERS) | st.text("0123456789eExo.+-_: ") | st.text(st.characters(codec="utf-8"))
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.dictionaries(texts, st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(texts, inner)))


@settings(deadline=None)
@given(values)
def test_it_is_read_back_as_it_was(value: dict[str, Any]) -> None:
    text = write_yaml(value)
    assert text.isascii()
    for found in (read_yaml(text), yaml.safe_load(text), read_yaml(write_yaml(value, allow_unicode=True))):
        assert repr(found) == repr(value)  # 1 is neither 1.0 nor True


def test_a_line_end_that_pyyaml_writes_as_it_is_comes_back() -> None:
    for text in ("a\x85b", "\x85"):
        assert read_yaml(write_yaml({text: text}, allow_unicode=True)) == {text: text}


def test_not_a_number_and_infinity() -> None:
    found = read_yaml(write_yaml([math.nan, math.inf, -math.inf]))
    assert repr(found) == "[nan, inf, -inf]"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3", "'a' stands here and in line 1; write it once\n  in line 3"),
        ("a:\n\t- b", "in line 2"),
        ("a: &a [*a]", "Circular"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_what_is_no_yaml_is_named_by_its_line(text: str, told: str) -> None:
    with pytest.raises(NotYaml) as caught:
        read_yaml(text)
    assert told in str(caught.value)
