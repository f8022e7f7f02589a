"""What there is to learn from a teacher, told before anything is trained."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sra_core.compare import few_texts, kept_nats, teacher_lead
from sra_core.shards import Manifest

SIZES = np.array([100, 300, 50, 150, 200, 80, 120, 400])


def cache(nats: np.ndarray | None) -> Manifest:
    notes = {} if nats is None else kept_nats(nats)
    return Manifest(stage="cache", fingerprint="f", identity={}, created="", notes=notes)


def nats(bits_per_byte: np.ndarray | float) -> np.ndarray:
    return bits_per_byte * SIZES * math.log(2)


def test_a_teacher_that_is_ahead_on_every_text_is_clearly_better() -> None:
    lead = teacher_lead(cache(nats(1.0)), nats(1.2), SIZES)
    assert lead is not None
    assert (lead.teacher, lead.student) == pytest.approx((1.0, 1.2), abs=1e-6)
    assert lead.ahead.estimate == pytest.approx(0.2, abs=1e-6)
    assert lead.clear
    told = lead.told(adapted=False)
    assert told == (
        "there is something to learn: on 8 validation texts the teacher takes 1.000 bits per byte, "
        "the student as it starts 1.200"
    )
    assert lead.metrics()["teacher_ahead_low"] == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize(("adapted", "remedy"), [(False, "adapt.enabled"), (True, "adapt.max_steps")])
def test_a_teacher_that_is_ahead_on_half_of_the_texts_is_warned_of(adapted: bool, remedy: str) -> None:
    """Ahead on the whole by 0.0125 bits a byte: an unpaired look at the two figures would call it better."""
    student = np.where(np.arange(8) % 2, 1.05, 0.95)
    lead = teacher_lead(cache(nats(1.0)), nats(student), SIZES)
    assert lead is not None
    assert lead.student > lead.teacher
    assert not lead.clear
    told = lead.told(adapted)
    assert told.startswith("WARNING: the teacher is not clearly better: on 8 validation texts the teacher takes 1.000 ")
    assert f"the student as it starts {lead.student:.3f} (ahead by" in told
    assert remedy in told


def test_texts_are_compared_pair_by_pair() -> None:
    """Texts differ among themselves by far more than the two models do on each of them."""
    hard = np.linspace(0.5, 4.0, 8)
    lead = teacher_lead(cache(nats(hard)), nats(hard + 0.02), SIZES)
    assert lead is not None
    assert lead.clear


def test_a_cache_that_keeps_no_code_lengths_of_these_texts_says_nothing() -> None:
    assert teacher_lead(cache(None), nats(1.0), SIZES) is None
    assert teacher_lead(cache(nats(1.0)[:3]), nats(1.0), SIZES) is None
    assert teacher_lead(cache(np.empty(0)), np.empty(0), np.empty(0, np.int64)) is None


def test_two_texts_show_nothing() -> None:
    """All of them agree, and the interval leaves out 0; five that agree would do so by chance once in sixteen times."""
    for count, clear in ((2, False), (5, False), (6, True)):
        lead = teacher_lead(cache(nats(1.0)[:count]), nats(1.2)[:count], SIZES[:count])
        assert lead is not None
        assert lead.ahead.low > 0
        assert lead.clear is clear
        assert lead.told(adapted=False).startswith("there is something") is clear
        assert ("too few texts to tell" in lead.told(adapted=False)) is not clear


@pytest.mark.parametrize("count", [1, 5])
def test_few_texts_do_not_show_that_there_is_nothing_to_learn_either(count: int) -> None:
    lead = teacher_lead(cache(nats(1.2)[:count]), nats(1.0)[:count], SIZES[:count])
    assert lead is not None
    assert lead.ahead.low < 0
    assert not lead.told(adapted=False).startswith("WARNING")
    assert "too few texts to tell" in lead.told(adapted=False)


@pytest.mark.parametrize("count", [1, 5])
def test_few_texts_are_told_before_anything_runs(count: int) -> None:
    told = few_texts(count)
    assert told is not None
    assert told.startswith("1 validation text is too few" if count == 1 else "5 validation texts are too few")
    assert "keep at least 6 (corpus.validation_share" in told
    assert few_texts(0) is few_texts(6) is None
