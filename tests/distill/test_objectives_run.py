"""Every objective trains on recipe `smoke`, all of them from one cache that was captured once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sra_core import stages
from sra_core.config import RunConfig
from sra_core.config.load import load_config

TEACHER = "random:llama?layers=3&width=32&heads=2&vocabulary=400&seed=1"
"""The teacher of recipe `smoke`: as the student's source it brings the teacher's own tokenizer."""


def make_config(store: Path, name: str, student: str | None, **cache: Any) -> RunConfig:
    changes = {"student": {"source": student}} if student else {}
    return load_config(
        "smoke",
        {
            "store": str(store),
            "tracking": {"enabled": False},
            "objective": {"name": name},
            "distill": {"max_steps": 2, "validate_every": 2, "checkpoint_every": 2},
            "cache": cache,
            **changes,
        },
    )


@pytest.mark.integration
@pytest.mark.parametrize(
    ("names", "student"),
    [
        (("sra", "uld", "mined", "dskd", "multilevel_ot", "alm", "strict_kl", "gold", "xtoken", "sft"), None),
        (("fkl", "rkl", "js", "skl"), TEACHER),
    ],
)
def test_every_objective_trains_from_one_cache(names: tuple[str, ...], student: str | None, tmp_path: Path) -> None:
    first = make_config(tmp_path, "sra", student, token_states=True)
    stages.prepare(first)
    made = stages.cache(first)
    for name in names:
        config = make_config(tmp_path, name, student)
        trained = stages.distill(config)
        assert trained.counts["steps"] == 2
        if name != "sft":
            assert trained.upstream["cache"].fingerprint == made.fingerprint
            assert stages.cache(config).fingerprint == made.fingerprint
    assert len(list((tmp_path / "teacher").glob("*/manifest.json"))) == 1
    assert len(list((tmp_path / "students").glob("*/manifest.json"))) == len(names)
