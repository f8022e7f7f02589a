"""One cache serves every config that needs no more than it holds, and its fingerprint knows nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from sra_core.cache import Holdings, find_cache, identity
from sra_core.config import RunConfig
from sra_core.errors import ConfigError
from sra_core.shards import StageFolder, fingerprint
from tests.cache.make import make_config, run_over

PREPARED, TEACHER = {"corpus": "a"}, {"weights": "b"}


def holding(layers: tuple[int, ...], pooling: Any, tokens: bool) -> Holdings:
    return Holdings(layers=layers, pooling=pooling, tokens=tokens)


def print_of(config: RunConfig, prepared: dict = PREPARED, teacher: dict = TEACHER) -> str:
    with patch("sra_core.cache.holdings.model_identity", lambda ref: teacher):
        return fingerprint(identity(run_over(config, prepared)))


def test_the_fingerprint_depends_on_what_changes_the_bytes_and_on_nothing_else(tmp_path: Path) -> None:
    base = print_of(make_config(tmp_path))

    def changed(**changes: dict) -> bool:
        return print_of(make_config(tmp_path, **changes)) != base

    assert print_of(make_config(tmp_path), {"corpus": "other"}) != base
    assert print_of(make_config(tmp_path), teacher={"weights": "other"}) != base
    for values in ({"dtype": "int8"}, {"compression": "zstd"}, {"compute_dtype": "bfloat16"}, {"layers": [1]}):
        assert changed(cache=values)
    assert changed(cache={"token_states": True})
    assert changed(objective={"layers": [[1, 1], [3, 2]]})
    assert changed(objective={"weighted_pooling": False})
    assert changed(objective={"name": "uld"})
    means = [{"weighted_pooling": False, "weighted_loss": weighted} for weighted in (True, False)]
    assert len({print_of(make_config(tmp_path, objective=values)) for values in means}) == 2

    for values in ({"device": "cpu"}, {"tokens_per_batch": 7}, {"workers": 3}, {"check": 0}, {"compile": True}):
        assert not changed(cache=values)
    for values in ({"max_center_error": 0.5}, {"max_mass_error": 0.5}, {"max_loss_error": 0.5}):
        assert not changed(cache=values)
    for values in (
        {"alpha": 0.1},
        {"temperature": 5.0},
        {"geometry": 0.0},
        {"weighted_loss": True, "mass_power": 0.0},
        {"weighted_loss": True},
        {"layers": [[2, 2], [-1, 1]]},
        {"logit_reduction": "sum"},
    ):
        assert not changed(objective=values)
    assert not changed(cache={"layers": [2, 3]})
    assert not changed(distill={"epochs": 1}, seed=3)


def test_baselines_share_one_cache(tmp_path: Path) -> None:
    prints = {
        print_of(make_config(tmp_path, objective={"name": name, "layers": layers, "weighted_pooling": weighted}))
        for name in ("uld", "mined", "dskd", "multilevel_ot", "alm", "fkl")
        for layers in ([[1, 1]], [[3, 2]])
        for weighted in (True, False)
    }
    assert len(prints) == 1


@pytest.mark.parametrize(
    ("held", "wanted", "served"),
    [
        (((1, 2, 3), "attention", False), ((2, 3), "attention", False), True),
        (((2, 3), "attention", False), ((1, 2), "attention", False), False),
        (((2, 3), "attention", False), ((2, 3), "mean", False), False),
        (((2, 3), "mean", False), ((2,), "unweighted", False), True),
        (((2, 3), "unweighted", False), ((2,), "mean", False), False),
        (((2, 3), "attention", False), ((2,), "unweighted", False), False),
        (((2, 3), "attention", True), ((), "none", True), True),
        (((2, 3), "attention", False), ((), "none", True), False),
        (((), "none", True), ((3,), "attention", False), False),
    ],
)
def test_what_covers_what(held: tuple, wanted: tuple, served: bool) -> None:
    assert holding(*held).covers(holding(*wanted)) is served
    assert Holdings.model_validate(holding(*held).model_dump(mode="json")) == holding(*held)


def test_a_cache_that_holds_more_is_found_and_an_exact_one_is_preferred(tmp_path: Path) -> None:
    def folder(**changes: dict) -> StageFolder:
        return StageFolder(tmp_path, "cache", identity(run_over(make_config(tmp_path, **changes), PREPARED)))

    wanted = folder()
    assert find_cache(wanted) is wanted
    folder(cache={"layers": [1], "dtype": "int8"}).commit()  # of another type: does not serve
    folder(objective={"layers": [[3, 2]]}).commit()  # holds less
    assert find_cache(wanted) is wanted
    more = folder(cache={"layers": [1], "token_states": True})
    more.commit()
    found = find_cache(wanted)
    assert found.path == more.path
    assert found.manifest() is not None
    assert find_cache(folder(objective={"name": "alm"})).path == more.path
    wanted.commit()
    assert find_cache(wanted) is wanted


def test_a_layer_that_the_teacher_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no layer 9 in a model of 3 layers"):
        Holdings.of(make_config(tmp_path, cache={"layers": [9]}))
