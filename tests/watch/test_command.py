"""Hints name the command as the user's shell finds it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sra_core.watch import as_typed, sra_command


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    sra_command.cache_clear()
    yield
    sra_command.cache_clear()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment's interpreter with `sra` beside it, in the working folder, and nothing on the search path."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "sra").write_text("#!/bin/sh\n")
    (folder / "sra").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return folder / "sra"


def test_a_program_off_the_search_path_is_named_by_its_path(
    program: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert as_typed("run `sra prepare` first; an sra run, `sralike`") == (
        "run `.venv/bin/sra prepare` first; an sra run, `sralike`"
    )
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    sra_command.cache_clear()
    assert as_typed("`sra fields`") == f"`{program} fields`"


def test_a_program_on_the_search_path_is_named_as_it_is(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(program.parent))
    assert as_typed("`sra fields`") == "`sra fields`"


def test_without_a_program_the_words_stay(program: Path) -> None:
    program.unlink()
    assert as_typed("`sra fields`") == "`sra fields`"
