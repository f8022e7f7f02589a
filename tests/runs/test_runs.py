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
from sra_core.runs import ORDER, Run, settled
from sra_core.training import deepspeed_settings
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
    assert Run.of(config).config == settled(config)


def test_what_rests_on_the_adapted_teacher_waits_for_it(tmp_path: Path) -> None:
    run = Run(load_config("smoke", {"store": str(tmp_path), "adapt": {"enabled": True}}))
    assert run.stages == list(ORDER)
    assert run.identity("adapt")["prepared"] == run.fingerprint("prepare")
    for stage in ("cache", "distill", "evaluate"):
        with pytest.raises(ManifestMismatch, match="sra adapt"):
            run.identity(stage)
    assert not run.finished


@pytest.mark.parametrize(("flags", "expected"), [({"avx512_bf16"}, "bfloat16"), ({"avx512f"}, "float32")])
def test_auto_precision_is_what_the_machine_computes_natively(
    flags: set[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sra_core.processes.devices._cpu_flags", lambda: flags)
    config = RunConfig.model_validate({"cache": {"device": "cpu"}, "distill": {"device": "cpu"}})
    assert (config.cache.compute_dtype, config.distill.precision) == ("auto", "auto")
    run = Run(config)
    assert (run.config.cache.compute_dtype, run.config.distill.precision) == (expected, expected)
    assert config.distill.precision == "auto", "the config that was given stays as it is"


def test_what_generates_names_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_config("smoke")
    monkeypatch.setattr("sra_core.runs.find_spec", lambda name: name)
    monkeypatch.setattr("sra_core.runs.is_cuda", lambda device: False)
    assert Run(plain).config.evaluate.backend == "auto", "no GPU: the project's own loop answers, as without vLLM"
    monkeypatch.setattr("sra_core.runs.is_cuda", lambda device: True)
    assert Run(plain).config.evaluate.backend == "vllm"
    nothing = load_config("smoke", {"evaluate": {"generate": 0}})
    assert Run(nothing).config.evaluate.backend == "auto", "nothing is generated"
    monkeypatch.setattr("sra_core.runs.find_spec", lambda name: None)
    assert Run(plain).config.evaluate.backend == "auto"


def test_what_auto_comes_to_names_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that compute in different types make different results, and a named type is the same everywhere."""
    smoke = load_config("smoke", {"cache": {"compute_dtype": "auto"}, "distill": {"precision": "auto"}})
    found = {}
    for flags in ({"avx512_bf16"}, set()):
        monkeypatch.setattr("sra_core.processes.devices._cpu_flags", lambda flags=flags: flags)
        monkeypatch.setattr("sra_core.processes.devices._has_nvidia_driver", lambda: False)
        run = Run(smoke)
        found[run.config.distill.precision] = [run.fingerprint(stage) for stage in ("prepare", "cache", "distill")]
        assert run.identity("cache")["cache"]["compute_dtype"] == run.config.cache.compute_dtype
    assert found["bfloat16"][0] == found["float32"][0]
    assert not set(found["bfloat16"][1:]) & set(found["float32"][1:])
    plain = Run(load_config("smoke"))
    assert [plain.fingerprint(stage) for stage in ("prepare", "cache", "distill")] == found["float32"]


@pytest.mark.parametrize(
    ("precision", "asked", "run_as"),
    [("float32", 0, 0), ("bfloat16", 0, 1), ("float16", 0, 1), ("bfloat16", 3, 3), ("float32", 2, 2)],
)
def test_half_precision_has_its_optimizer_from_zero_1_on(precision: str, asked: int, run_as: int) -> None:
    values = {"precision": precision, "zero_stage": asked}
    config = RunConfig.model_validate({"distill": values, "adapt": values})
    found = settled(config)
    assert (found.distill.zero_stage, found.adapt.zero_stage) == (run_as, run_as)
    assert (config.distill.zero_stage, config.adapt.zero_stage) == (asked, asked)
    assert deepspeed_settings(found.distill, 1, 1, "distill")["zero_optimization"]["stage"] == run_as


@pytest.mark.parametrize(("objective", "same"), [("sra", True), ("sft", True), ("uld", False)])
def test_who_shares_a_step_is_no_part_of_a_name(tmp_path: Path, objective: str, same: bool) -> None:
    """Halves of uneven texts have other means: where terms are means over the tokens of a forward, the cut is named."""

    def names(**steps: int) -> list[str]:
        parts = {"adapt": {"enabled": True, **steps}, "distill": steps, "objective": {"name": objective}}
        run = Run(load_config("smoke", {"store": str(tmp_path), **parts}))
        run.adapted = run.config
        return [run.fingerprint(stage) for stage in ("adapt", "distill", "evaluate")]

    alone = names(batch_size=8)
    adapted, *trained = names(batch_size=4, processes=2)
    assert adapted == alone[0], "adapt trains on cross-entropy alone"
    assert (trained == alone[1:]) is same
    assert names(batch_size=8, processes=2)[:2] != alone[:2]
    assert names(batch_size=4, accumulation=2) == names(batch_size=4, processes=2)


@pytest.mark.parametrize(("start", "fitted"), [("auto", True), ("fit", True), ("identity", False), ("random", False)])
def test_a_student_whose_maps_are_fitted_has_another_name(tmp_path: Path, start: str, fitted: bool) -> None:
    objective = {"name": "dskd", "projector_start": start}
    run = Run(load_config("smoke", {"store": str(tmp_path), "objective": objective}))
    assert ("maps" in run.identity("distill")) is fitted
