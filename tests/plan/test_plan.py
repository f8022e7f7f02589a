"""A plan from 200 examples is right to 5 % about what the stages then write."""

from __future__ import annotations

from pathlib import Path

import pytest

from sra_core import stages
from sra_core.config.load import load_config
from sra_core.plan import Plan, plan_run
from tests.conftest import SmokeRun

SMALL_FILES = 40_000
"""Bytes of configs, cards and metrics beside a model's weights, which a plan leaves out."""


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "compression"), [("bfloat16", "none"), ("int8", "zstd")])
def test_counts_and_bytes_are_predicted_within_five_per_cent(
    dtype: str, compression: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = load_config(
        "smoke",
        {
            "store": str(tmp_path_factory.mktemp("plan")),
            "tracking": {"enabled": False},
            "corpus": {"max_train": 1500, "max_validation": 80, "max_test": 80},
            "alignment": {"examples_per_shard": 128},
            "cache": {"dtype": dtype, "compression": compression},
        },
    )
    before = plan_run(config)
    assert before.actual["bytes"] == {}
    stages.prepare(config)
    stages.cache(config)
    after = plan_run(config)
    assert within(before, after, "bytes", ("prepare", "cache"), 0.05)
    assert within(before, after, "counts", ("train", "teacher tokens", "student tokens", "spans"), 0.05)


def within(before: Plan, after: Plan, kind: str, names: tuple[str, ...], bound: float) -> bool:
    predicted = getattr(before, kind)
    gaps = {name: predicted[name] / after.actual[kind][name] - 1 for name in names}
    return all(abs(gap) < bound for gap in gaps.values())


def test_a_corpus_smaller_than_the_sample_is_counted_exactly(smoke_run: SmokeRun) -> None:
    plan = plan_run(smoke_run.config)
    for name, value in plan.actual["counts"].items():
        assert plan.counts[name] == pytest.approx(value), name
    for stage in ("prepare", "cache"):
        assert plan.bytes[stage] == pytest.approx(plan.actual["bytes"][stage], rel=0.05), stage
    assert 0 < plan.actual["bytes"]["distill"] - plan.bytes["distill"] < SMALL_FILES
    assert plan.total == (sum(plan.bytes.values()), sum(plan.actual["bytes"].values()))
    assert plan.devices == {"cache": "cpu", "distill": "cpu", "evaluate": "cpu"}
    assert all(0 < value < 60 for value in plan.seconds.values())
    assert all(1e8 < value < 3e9 for value in plan.memory.values())  # on a CPU, the libraries are most of it
    assert 0.2 < plan.memory["distill"] / plan.actual["memory"]["distill"] < 2
    metrics = smoke_run.results["distill"].metrics
    assert plan.actual["seconds"]["distill"] == plan.counts["steps"] * metrics["distill/seconds_per_step"]
    table = plan.table()
    assert "evaluate: time, at most (cpu)" in list(table.columns[0].cells)
    assert table.row_count == len(plan.counts) + len(plan.bytes) + 1 + len(plan.memory) + len(plan.seconds)


@pytest.mark.integration
@pytest.mark.parametrize("merge", [True, False])
def test_adapting_the_teacher_is_part_of_the_plan(merge: bool, tmp_path: Path) -> None:
    adapt = {"enabled": True, "max_steps": 3, "batch_size": 4, "merge": merge}
    config = load_config("smoke", {"store": str(tmp_path), "adapt": adapt, "tracking": {"enabled": False}})
    stages.prepare(config)
    stages.adapt(config)
    plan = plan_run(config)
    assert list(plan.bytes) == ["prepare", "adapt", "cache", "distill"]
    assert 0 < plan.actual["bytes"]["adapt"] - plan.bytes["adapt"] < SMALL_FILES
    assert 0.5 < plan.memory["adapt"] / plan.actual["memory"]["adapt"] < 2
    assert 0 < plan.seconds["adapt"] < 60
    assert plan.actual["seconds"]["adapt"] > 0


def test_the_total_of_what_is_not_done_has_no_actual() -> None:
    plan = Plan(bytes={"prepare": 10.0, "cache": 20.0})
    plan.actual["bytes"]["prepare"] = 11.0
    assert plan.total == (30.0, None)
    plan.actual["bytes"]["cache"] = 19.0
    assert plan.total == (30.0, 30.0)
