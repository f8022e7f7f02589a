"""A run reads what identifies its results once, and runs that share inputs read those once together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sra_core import stages
from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.corpus import Corpus
from sra_core.errors import ManifestMismatch
from sra_core.run import ORDER, Run
from tests.conftest import SmokeRun


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often the corpus was read for its identity."""
    seen: list[str] = []
    real = Corpus.identity

    def identity(self: Corpus) -> dict[str, Any]:
        seen.append("corpus")
        return real(self)

    monkeypatch.setattr(Corpus, "identity", identity)
    return seen


def test_a_finished_run_reads_its_inputs_once(smoke_run: SmokeRun, reads: list[str]) -> None:
    results = stages.run(smoke_run.config)
    assert reads == ["corpus"]
    assert results == smoke_run.results


def test_runs_that_are_alike_share_what_they_read(smoke_run: SmokeRun, reads: list[str]) -> None:
    first = Run(smoke_run.config)
    other = smoke_run.config.model_copy(update={"seed": 9})
    second = Run(other, like=first)
    assert first.fingerprint("prepare") == second.fingerprint("prepare")
    assert first.fingerprint("distill") != second.fingerprint("distill")
    assert reads == ["corpus"]
    longer = smoke_run.config.model_copy(deep=True)
    longer.alignment.max_length = 90
    assert Run(longer, like=first).fingerprint("prepare") != first.fingerprint("prepare")
    assert reads == ["corpus", "corpus"], "another limit is other input"


def test_what_a_run_reads_is_what_its_results_say(smoke_run: SmokeRun) -> None:
    run = Run(smoke_run.config)
    assert run.stages == ["prepare", "cache", "distill", "evaluate"]
    assert run.finished
    for stage in run.stages:
        assert run.result(stage) == smoke_run.results[stage]
        assert run.fingerprint(stage) == smoke_run.results[stage].fingerprint
        assert run.folder(stage).path == Path(smoke_run.results[stage].folder)


def test_a_run_is_itself_and_a_config_is_settled() -> None:
    config = RunConfig()
    run = Run(config)
    assert Run.of(run) is run
    assert Run.of(config).config is config


def test_what_rests_on_the_adapted_teacher_waits_for_it(tmp_path: Path) -> None:
    run = Run(load_config("smoke", {"store": str(tmp_path), "adapt": {"enabled": True}}))
    assert run.stages == list(ORDER)
    assert run.identity("adapt")["prepared"] == run.fingerprint("prepare")
    for stage in ("cache", "distill", "evaluate"):
        with pytest.raises(ManifestMismatch, match="sra adapt"):
            run.identity(stage)
    assert not run.finished
