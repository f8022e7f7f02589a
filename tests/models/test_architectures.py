"""What becomes of each architecture, pinned: run exactly in which way, or refused with which words.

`ARCHITECTURES=write pytest -m slow tests/models/test_architectures.py` walks all of transformers' causal-LM mapping and
writes the pins and the table of docs/models.md anew; architectures that can't be built tiny are left out, and those
that `walk.LEFT_OUT` names with its reasons.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest

from tests.models.walk import names, outcome

PINS = Path(__file__).with_name("architectures.json")
GUIDE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- architectures -->\n", "<!-- end of architectures -->\n"
SAMPLE = [
    "afmoe",
    "axk2",
    "bamba",
    "bart",
    "bert",
    "bloom",
    "blt",
    "cohere2",
    "deepseek_v3",
    "doge",
    "ernie4_5",
    "exaone4",
    "falcon",
    "gemma3",
    "gemma3n_text",
    "glm_moe_dsa",
    "gpt2",
    "granitemoehybrid",
    "hunyuan_v1_dense",
    "llama",
    "llama4",
    "mamba",
    "mamba2",
    "modernbert-decoder",
    "mpt",
    "phi3",
    "recurrent_gemma",
    "xlstm",
]


def pins() -> dict[str, str]:
    return json.loads(PINS.read_text())


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_architectures(name: str) -> None:
    assert outcome(name) == pins()[name]


@pytest.mark.slow
def test_every_architecture_that_is_pinned() -> None:
    if os.environ.get("ARCHITECTURES") == "write":
        _write()
    assert {name: outcome(name) for name in pins()} == pins()


def test_the_guide_shows_what_is_pinned() -> None:
    text = GUIDE.read_text()
    assert text[text.index(BEGIN) : text.index(END)] == BEGIN + table(pins())


def table(found: dict[str, str]) -> str:
    """A row for each way to run, or not to run, an architecture."""
    rows: dict[str, list[str]] = {}
    for name, what in sorted(found.items()):
        way, _, rest = what.partition("; ")
        way = "refused" if what.startswith("refused") else f"exact, {way}"
        if "rows none" in rest:
            way += ", without attention rows"
        elif rest and "rows all" not in rest:
            way += ", some layers only"
        rows.setdefault(way, []).append(name)
    lines = [f"| {way} | {', '.join(rows[way])} |\n" for way in sorted(rows)]
    return "\n| what becomes of it | model types |\n|---|---|\n" + "".join(lines) + "\n"


def _write() -> None:
    found = {}
    for name in names():
        try:
            found[name] = outcome(name)
        except AssertionError:
            raise  # what is read is not what the model computes
        except Exception as error:  # a config that can't be shrunk so: each fails in its own way
            warnings.warn(f"{name} is left out: {type(error).__name__}: {error}", stacklevel=1)
    PINS.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")
    text = GUIDE.read_text()
    GUIDE.write_text(text[: text.index(BEGIN)] + BEGIN + table(found) + text[text.index(END) :])
