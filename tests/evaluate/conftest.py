"""A tiny model and rows, shared with the tests of `models`."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from tests.models.rows import Row, build_model, build_rows


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    return build_model("llama")


@pytest.fixture
def rows() -> list[Row]:
    return build_rows(12)
