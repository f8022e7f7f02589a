"""Looking into a run shows why it goes as it does, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sra_core.config import DistillConfig
from tests.training.make import again, make_config, make_job, read_history
from tests.training.test_exactness import final_weights
from tests.training.warm import Run, finish

TERMS = ("ce", "cosine", "geometry", "logit")


@pytest.mark.integration
@pytest.mark.parametrize(
    "fields",
    [
        {"accumulation": 2},
        {"lora": {"rank": 2, "dropout": 0.3}},
        {"gradient_checkpointing": True},
        {"zero_stage": 1, "precision": "bfloat16"},
        {"zero_stage": 2},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_weights_are_the_same_to_the_bit_with_and_without(fields: dict[str, Any], tmp_path: Path) -> None:
    plain = make_job(tmp_path / "plain", make_config("dropout", keep_best=False, **fields))
    finish(plain)
    looked = again(plain, tmp_path / "looked", diagnose_every=2)
    finish(looked)
    assert final_weights(looked) == final_weights(plain)
    assert read_history(looked, "train/loss") == read_history(plain, "train/loss")
    for name in TERMS:
        norms = read_history(looked, f"diagnose/gradient_norm/{name}")
        assert list(norms) == [1, 2, 4, 6]
        assert all(norm > 0 for norm in norms.values())
    assert read_history(plain, "diagnose/gradient_norm/ce") == {}


@pytest.mark.integration
def test_a_killed_run_shows_what_a_whole_one_shows(tmp_path: Path) -> None:
    config = make_config("dropout", keep_best=False, diagnose_every=2, checkpoint_every=3, max_steps=9)
    whole = make_job(tmp_path / "whole", config)
    finish(whole)
    killed = again(whole, tmp_path / "killed")
    Run(killed).kill_at(5)
    finish(killed)
    assert final_weights(killed) == final_weights(whole)
    for name in ("gradient_norm/logit", "center_cosine_3_2", "covered_tokens", "shared_vocabulary"):
        found = read_history(whole, f"diagnose/{name}")
        assert list(found) == [1, 2, 4, 6, 8, 9]
        assert read_history(killed, f"diagnose/{name}") == found


@pytest.mark.integration
def test_weighted_terms_are_logged_and_add_up_to_the_loss(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", make_config("plain", max_steps=4, log_every=2))
    finish(job)
    weighted = [read_history(job, f"train/weighted/{name}") for name in TERMS]
    for step, loss in read_history(job, "train/loss").items():
        assert sum(values[step] for values in weighted) == pytest.approx(loss, rel=1e-5)


def test_the_teacher_fades_out_from_step_to_step(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", make_config("plain", max_steps=4))
    finish(job)
    weighted, raw = read_history(job, "train/weighted/logit"), read_history(job, "train/logit")
    shares = {step: weighted[step] / raw[step] for step in raw}
    assert shares == pytest.approx({1: 0.5, 2: 0.375, 3: 0.25, 4: 0.125})
    weighted, raw = read_history(job, "train/weighted/ce"), read_history(job, "train/ce")
    assert {step: weighted[step] / raw[step] for step in raw} == pytest.approx({1: 0.5, 2: 0.625, 3: 0.75, 4: 0.875})


@pytest.mark.integration
def test_two_processes_report_the_mean_of_what_both_saw(tmp_path: Path) -> None:
    one = make_job(tmp_path / "one", make_config("plain", accumulation=1, diagnose_every=1, max_steps=2))
    finish(one, world=2)
    assert list(read_history(one, "diagnose/gradient_norm/ce")) == [1, 2]


def test_partitioned_parameters_are_refused() -> None:
    with pytest.raises(ValidationError, match="diagnose_every: under ZeRO 3"):
        DistillConfig(zero_stage=3, diagnose_every=10)
