"""The teacher adapted to the corpus first: what is kept, and what then reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sra_core import stages
from sra_core.adapt import identity, with_adapted_teacher
from sra_core.check_cache import check_cache
from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.errors import ConfigError, ManifestMismatch
from sra_core.models import load_model, model_identity
from sra_core.runs import Run


def config_with(store: Path, **adapt: Any) -> RunConfig:
    fields = {"enabled": True, "max_steps": 3, "batch_size": 4, "learning_rate": 1e-2, "validate_every": 1, **adapt}
    return load_config("smoke", {"store": str(store), "adapt": fields, "tracking": {"enabled": False}})


def test_off_by_default_and_refused_then(tmp_path: Path) -> None:
    config = load_config("smoke", {"store": str(tmp_path)})
    assert "adapt" not in Run(config).stages
    assert Run(config_with(tmp_path)).stages[:3] == ["prepare", "adapt", "cache"]
    with pytest.raises(ConfigError, match="not to be adapted"):
        stages.adapt(config)


def test_the_identity_holds_training_data_teacher_and_seed_but_not_the_switch(tmp_path: Path) -> None:
    base = config_with(tmp_path)

    def of(config: RunConfig, prepared: str = "p") -> dict[str, Any]:
        run = Run(config)
        run._identities["prepare"] = {"examples": prepared}
        return identity(run)

    first = of(base)
    assert of(config_with(tmp_path, seed=5)) != first
    assert of(base, "q") != first
    assert of(config_with(tmp_path, learning_rate=1e-3)) != first
    assert of(config_with(tmp_path, log_every=3)) == first
    assert "enabled" not in first["adapt"]


@pytest.mark.integration
def test_an_adapter_kept_alone_gives_the_teacher_that_was_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRA_CACHE_HOME", str(tmp_path / "cache"))
    whole, alone = config_with(tmp_path / "store"), config_with(tmp_path / "store", merge=False)
    stages.prepare(whole)
    with pytest.raises(ManifestMismatch, match="adapt"):
        stages.cache(whole)
    merged, kept = stages.adapt(whole), stages.adapt(alone)
    assert merged.fingerprint != kept.fingerprint
    assert kept.size() < merged.size()
    ids = torch.tensor([[4, 9, 17]])
    adapted = [with_adapted_teacher(c, made).teacher for c, made in ((whole, merged), (alone, kept))]
    first, second = (load_model(ref)(input_ids=ids).logits for ref in adapted)
    before = load_model(whole.teacher)(input_ids=ids).logits
    assert torch.allclose(first, second, atol=1e-5)
    assert not torch.allclose(first, before, atol=1e-3)
    cache = stages.cache(whole)
    fidelity = check_cache(whole, 6)  # against the adapted teacher: the one that was captured
    fidelity.require(whole)
    assert fidelity.states["stored"]["center_error_max"] < 2**-8
    plain = whole.model_copy(deep=True)
    plain.adapt.enabled = False
    assert cache.fingerprint != Run(plain).folder("cache").fingerprint
    assert model_identity(adapted[0])["weights"] in str(cache.identity)


def test_the_teacher_is_adapted_with_the_seed_of_the_adaptation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def stopped(job: Any, watch: Any) -> dict[str, Any]:
        trained.append(job.config.seed)
        raise ConfigError("far enough", "")

    monkeypatch.setattr("sra_core.training.launch", stopped)
    config = config_with(tmp_path, seed=7).model_copy(update={"seed": 1})
    stages.prepare(config)
    with pytest.raises(ConfigError, match="far enough"):
        stages.adapt(config)
    assert trained == [7]


def test_students_of_several_seeds_learn_from_one_adapted_teacher(tmp_path: Path) -> None:
    def adapted(seed: int) -> str:
        return Run(config_with(tmp_path).model_copy(update={"seed": seed})).fingerprint("adapt")

    other = Run(config_with(tmp_path, seed=7)).fingerprint("adapt")
    assert adapted(1) == adapted(2) != other
