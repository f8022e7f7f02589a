"""Rates between two reports."""

from __future__ import annotations

import pytest
import torch

from sra_core.training.meter import Meter


def test_tokens_of_earlier_sessions_are_no_part_of_a_resumed_ones_rate() -> None:
    meter = Meter(tokens=5_000_000)
    meter.add({"loss": torch.ones(())}, None)
    values = meter.close(5_000_640)
    assert values["tokens_per_second"] * values["seconds_per_step"] == pytest.approx(640)
