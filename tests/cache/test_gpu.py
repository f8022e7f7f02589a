"""The teacher cache made on a GPU; with TEST_DEVICE=cpu the same checks run without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sra_core import stages
from sra_core.config.load import load_config
from sra_core.shards import TeacherSet
from sra_core.training.data import _floats
from tests.cache.make import make_config

pytestmark = pytest.mark.gpu


def test_what_is_kept_is_what_the_cpu_keeps(device: str, tmp_path: Path) -> None:
    kept = {}
    for where in ("cpu", device):
        config = make_config(tmp_path / where, cache={"device": where, "dtype": "float32", "compute_dtype": "float32"})
        stages.prepare(config)
        kept[where] = TeacherSet(stages.cache(config), "train")
    rows = list(range(len(kept["cpu"])))
    ours, theirs = kept[device].gather(rows), kept["cpu"].gather(rows)
    for layer, centers in theirs.centers.items():
        wide = _floats(centers).numpy()
        np.testing.assert_allclose(_floats(ours.centers[layer]).numpy(), wide, atol=2e-3 * np.abs(wide).max())
        np.testing.assert_allclose(ours.mass[layer], theirs.mass[layer], atol=1e-3)


def test_the_whole_pipeline_runs(device: str, tmp_path: Path) -> None:
    steps = {"max_steps": 4, "validate_every": 2, "checkpoint_every": 2, "device": device}
    config = load_config(
        "smoke", {"store": str(tmp_path), "tracking": {"enabled": False}, "distill": steps, "cache": {"device": device}}
    )
    results = stages.run(config)
    assert results["distill"].counts["steps"] == 4
    assert results["evaluate"].metrics
