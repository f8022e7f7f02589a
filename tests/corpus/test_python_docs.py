"""The embedded documentation corpus."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import textwrap
from collections import Counter

import pytest

from sra_core.corpus import python_docs
from sra_core.errors import ConfigError, DataError

from .helpers import corpus, kept


@pytest.fixture(scope="module")
def examples():
    return kept("python-docs", max_validation=None, max_test=None)


def test_a_function_is_asked_for_and_answered_by_its_cleaned_docstring(examples):
    by_id = {example.id: example for example in examples}
    dedent = by_id["textwrap.dedent"]
    assert dedent.instruction == "What does `textwrap.dedent` do?"
    assert dedent.response == inspect.cleandoc(textwrap.dedent.__doc__).strip()
    assert dedent.source == "textwrap"
    assert by_id["builtins.len"].instruction == "What does `len` do?"
    assert by_id["builtins.str.split"].response == inspect.cleandoc(str.split.__doc__).strip()


def test_it_is_large_sorted_and_without_repetition(examples):
    ids = [example.id for example in examples]
    assert 2200 <= len(ids) <= 4000
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert max(Counter(example.response for example in examples).values()) == 1
    assert min(len(example.response) for example in examples) >= 20
    assert not [example for example in examples if " at 0x" in example.response]


def test_the_shortest_of_several_names_is_kept(examples):
    ids = {example.id for example in examples}
    assert "json.JSONDecoder" in ids
    assert "json.decoder.JSONDecoder" not in ids


def test_modules_with_side_effects_are_not_imported(examples):
    roots = {example.source.split(".")[0] for example in examples}
    assert not roots & {"antigravity", "this", "idlelib", "test", "turtle", "turtledemo", "tkinter", "lib2to3"}
    assert not [example for example in examples if "__main__" in example.source or example.source.startswith("_")]


def test_two_interpreters_collect_the_same_bytes():
    command = [sys.executable, "-I", "-S", str(python_docs.SCRIPT)]
    again = subprocess.run(command, capture_output=True, check=True)
    assert again.stdout.decode() == python_docs._collected()
    assert again.stderr == b""


def test_collecting_leaves_this_process_as_it_was():
    script = (
        "import sys, json; from sra_core.config import CorpusConfig; from sra_core.corpus import Corpus\n"
        "before = set(sys.modules); items = list(Corpus(CorpusConfig()))\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert len(json.loads(done.stdout)) < 5


def test_identity_is_the_version_and_the_digest():
    first, second = corpus("python-docs").identity(), corpus("python-docs").identity()
    assert first == second
    assert first["data"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert len(first["data"]["sha256"]) == 64


@pytest.mark.parametrize(
    "field",
    [{"columns": {"response": "x"}}, {"layout": "dolly"}, {"revision": "main"}, {"subset": "x"}, {"hub_split": "x"}],
)
def test_fields_that_it_would_ignore_are_refused(field):
    with pytest.raises(ConfigError, match=f"corpus.{next(iter(field))}"):
        corpus("python-docs", **field)


@pytest.mark.parametrize(
    ("script", "reason"), [("import sys; sys.exit('no memory')", "no memory"), ("import os; os.abort()", "ended with")]
)
def test_a_collector_that_crashes_is_a_data_error(tmp_path, monkeypatch, script, reason):
    broken = tmp_path / "broken.py"
    broken.write_text(script)
    monkeypatch.setattr(python_docs, "SCRIPT", broken)
    with pytest.raises(DataError, match=reason):
        python_docs._collected.__wrapped__()
