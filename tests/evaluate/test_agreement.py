from __future__ import annotations

import numpy as np
import pytest
import torch

from sra_core.evaluate import agreement as module
from sra_core.evaluate import teacher_agreement
from sra_core.models import lm_head, mapped_states
from sra_core.objective import Head
from tests.models.rows import build_model, build_rows


@pytest.fixture
def spanned():
    rows = build_rows(7)
    random = np.random.default_rng(3)
    for index, row in enumerate(rows):
        last = len(row.student_ids) - 1
        cuts = np.unique(random.integers(row.student_response, last + 1, 6))
        row.student_spans = np.stack([cuts[:-1], cuts[1:]], 1).astype(np.int32)
        if index == 4:
            row.student_spans = np.empty((0, 2), np.int32)
    return rows


def plain(model, row, centers, student_head, teacher_head, temperature):
    """Span by span, one text at a time."""
    ids = torch.tensor(row.student_ids[None].astype(np.int64))
    with torch.no_grad():
        states = mapped_states(model, ids[0], torch.tensor([0, ids.shape[1]]), [-1])
    (layer,) = states.hidden
    total, same = 0.0, 0
    for (start, end), theirs in zip(row.student_spans, centers, strict=True):
        weights = states.weights[layer][start:end]
        own = (weights[:, None] * states.hidden[layer][start:end]).sum(0) / max(float(weights.sum()), 1e-5)
        q = torch.softmax(student_head.weight @ own / temperature, 0)
        p = torch.softmax(teacher_head.weight @ torch.from_numpy(theirs) / temperature, 0)
        total += float((p * (p.log() - q.log())).sum())
        same += int(p.argmax() == q.argmax())
    return total, same


@pytest.mark.parametrize("tokens_per_batch", [1, 10_000])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equals_a_plain_loop(llama, spanned, tokens_per_batch, temperature, monkeypatch):
    monkeypatch.setattr(module, "LOGIT_BYTES", 8 * 40 * 3)  # chunks of three spans
    random = np.random.default_rng(0)
    centers = [random.normal(size=(len(row.student_spans), 48)).astype(np.float32) for row in spanned]
    shared = torch.arange(5, 45)
    student_head = lm_head(llama).rows(shared).constant()
    teacher_head = Head(torch.randn(40, 48, generator=torch.Generator().manual_seed(1)))
    got = teacher_agreement(
        llama, spanned, centers, student_head, teacher_head, temperature=temperature, tokens_per_batch=tokens_per_batch
    )
    expected = [
        plain(llama, row, c, student_head, teacher_head, temperature) for row, c in zip(spanned, centers, strict=True)
    ]
    np.testing.assert_allclose(got.kl, [kl for kl, _ in expected], rtol=1e-4)
    assert got.same.tolist() == [same for _, same in expected]
    assert got.spans.tolist() == [len(row.student_spans) for row in spanned]
    some = [(kl / len(row.student_spans), same / len(row.student_spans))
            for row, (kl, same) in zip(spanned, expected, strict=True) if len(row.student_spans)]  # fmt: skip
    assert got.span_kl == pytest.approx(np.mean([kl for kl, _ in some]), rel=1e-4)
    assert got.top1 == pytest.approx(np.mean([same for _, same in some]))


def test_a_model_agrees_with_itself(llama, spanned):
    head = lm_head(llama).rows(torch.arange(97)).constant()
    centers = []
    for row in spanned:
        with torch.no_grad():
            centers.append(module._centers(llama, [row], -1, True).numpy())
    got = teacher_agreement(llama, spanned, centers, head, head)
    assert got.top1 == 1.0
    assert got.span_kl == pytest.approx(0, abs=1e-5)
    other = teacher_agreement(build_model("llama", seed=5), spanned, centers, head, head)
    assert other.span_kl > 0.1
    assert other.top1 < 1
