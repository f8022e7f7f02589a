"""What `sra cache --check` reports: errors by stored type, down to the loss terms, and a refusal past the bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from sra_core.check_cache import Fidelity, check_cache
from sra_core.config import RunConfig
from sra_core.errors import ShardError
from tests.conftest import SmokeRun


@pytest.fixture(scope="module")
def fidelity(smoke_run: SmokeRun) -> Fidelity:
    return check_cache(smoke_run.config, 6)


def test_errors_grow_as_types_shrink(fidelity: Fidelity) -> None:
    largest = {name: values["center_error_max"] for name, values in fidelity.states.items()}
    assert largest["float32"] == 0
    assert 1e-4 < largest["bfloat16"] < 2**-8
    assert largest["bfloat16"] < largest["int8"] < 0.02
    assert largest["int8"] < largest["fp8"] < 0.05
    assert fidelity.stored == "bfloat16"
    # the cache itself was captured in other batches, which changes a float32 state by less than storing it does
    assert largest["stored"] == pytest.approx(largest["bfloat16"], rel=0.05)
    for values in fidelity.states.values():
        assert values["center_error_mean"] <= values["center_error_max"]
        assert values["mass_error_max"] < 1e-5


def test_every_loss_term_is_compared(fidelity: Fidelity) -> None:
    names = {"loss", "cosine", "cosine_2_1", "cosine_3_2", "geometry", "logit"}
    for terms in fidelity.terms.values():
        assert set(terms) == names
    assert all(value == (0, 0) for value in fidelity.terms["float32"].values())
    assert 0 < fidelity.terms["bfloat16"]["cosine"][0] < 0.01
    assert fidelity.terms["int8"]["logit"][0] > fidelity.terms["bfloat16"]["logit"][0]


def test_the_table_has_a_row_an_error(fidelity: Fidelity) -> None:
    table = fidelity.table()
    assert table.row_count == 2 + len(fidelity.terms["stored"])
    assert len(table.columns) == 6


@pytest.mark.parametrize(
    ("bound", "named"),
    [("max_center_error", "center_error_max"), ("max_loss_error", "loss term")],
)
def test_a_bound_that_is_passed_is_named(bound: str, named: str, fidelity: Fidelity, smoke_run: SmokeRun) -> None:
    fidelity.require(smoke_run.config)
    with pytest.raises(ShardError, match=named) as caught:
        fidelity.require(bounded(smoke_run.config, bound, 1e-6))
    assert f"cache.{bound}" in caught.value.remedy


def test_a_loss_term_that_is_no_number_is_past_any_bound(fidelity: Fidelity, smoke_run: SmokeRun) -> None:
    (first, *others) = fidelity.terms["stored"]
    terms = {"stored": {first: (0.0, 0.0), **dict.fromkeys(others, (math.nan, math.nan))}}
    with pytest.raises(ShardError, match=f"loss term {others[0]} by nan"):
        replace(fidelity, terms=terms).require(smoke_run.config)


def bounded(config: RunConfig, name: str, value: float) -> RunConfig:
    return config.model_copy(update={"cache": config.cache.model_copy(update={name: value})})
