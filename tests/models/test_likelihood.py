from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sra_core.errors import EvaluationError
from sra_core.models import bits_per_byte, evaluating, likelihood, pad, response_likelihood
from sra_core.models.batching import token_batches
from sra_core.objective import Head
from tests.models.rows import build_model, build_rows


@pytest.fixture(scope="module")
def llama():
    return build_model("llama")


@pytest.fixture
def rows():
    return build_rows(12)


KINDS = ["llama", "mistral", "neox", "gemma2", "gpt2", "opt"]


def plain_nats(model, ids, first: int) -> float:
    """One row at a time through the whole model, token by token."""
    with torch.no_grad():
        logits = model(torch.tensor(ids[None].astype(np.int64))).logits[0].double()
    total = 0.0
    for position in range(max(first, 1), len(ids)):
        row = logits[position - 1]
        total += float(torch.log(torch.exp(row).sum()) - row[int(ids[position])])
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens_per_batch", [1, 64, 100_000])
def test_equals_a_plain_loop_over_tokens(kind, tokens_per_batch, rows):
    model = build_model(kind)
    scored = response_likelihood(model, rows, "student", eos_token_id=1, tokens_per_batch=tokens_per_batch)
    expected = [plain_nats(model, row.student_ids[:-1], row.student_response) for row in rows]
    np.testing.assert_allclose(scored.nats, expected, rtol=1e-5)
    assert scored.ids == tuple(row.id for row in rows)
    assert scored.tokens.tolist() == [len(row.student_ids) - 1 - row.student_response for row in rows]


def test_the_side_picks_the_tokens(llama, rows):
    scored = response_likelihood(llama, rows, "teacher", eos_token_id=1)
    expected = [plain_nats(llama, row.teacher_ids[:-1], row.teacher_response) for row in rows]
    np.testing.assert_allclose(scored.nats, expected, rtol=1e-5)


def test_bytes_are_utf8_and_bits_are_pooled(llama, rows):
    scored = response_likelihood(llama, rows, eos_token_id=1)
    assert scored.bytes.tolist() == [len(row.response.encode("utf-8")) for row in rows]
    assert any(len(row.response.encode()) != len(row.response) for row in rows)
    pooled = sum(scored.nats) / math.log(2) / sum(scored.bytes)
    assert bits_per_byte(llama, rows, eos_token_id=1) == pytest.approx(pooled)


def test_a_uniform_model_costs_log2_of_the_vocabulary_a_token(rows):
    model = build_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    scored = response_likelihood(model, rows, eos_token_id=1)
    np.testing.assert_allclose(scored.nats, scored.tokens * math.log(97), rtol=1e-5)


def test_end_of_text_counts_only_when_asked(llama, rows):
    without = response_likelihood(llama, rows, eos_token_id=1)
    with_end = response_likelihood(llama, rows)
    assert (with_end.tokens == without.tokens + 1).all()
    assert (with_end.nats > without.nats).all()


def test_a_truncated_response_keeps_its_last_token(llama):
    row = build_rows(1)[0]
    row.student_ids = row.student_ids[:-1]
    assert response_likelihood(llama, [row], eos_token_id=1).tokens[0] == len(row.student_ids) - row.student_response


def test_first_token_without_context_is_paid_uniformly(llama):
    row = build_rows(1)[0]
    row.student_response = 0
    scored = response_likelihood(llama, [row], eos_token_id=1)
    assert scored.nats[0] == pytest.approx(plain_nats(llama, row.student_ids[:-1], 0) + math.log(97), rel=1e-5)


def test_small_chunks_change_nothing(llama, rows, monkeypatch):
    whole = response_likelihood(llama, rows, eos_token_id=1)
    monkeypatch.setattr(likelihood, "LOGIT_BYTES", 4 * 97 * 3)
    np.testing.assert_allclose(response_likelihood(llama, rows, eos_token_id=1).nats, whole.nats, rtol=1e-6)


def test_logits_only_at_response_positions(llama, rows, monkeypatch):
    seen = []
    original = Head.logits
    monkeypatch.setattr(Head, "logits", lambda head, rows: (seen.append(len(rows)), original(head, rows))[1])
    scored = response_likelihood(llama, rows, eos_token_id=1, tokens_per_batch=64)
    assert sum(seen) == scored.tokens.sum()


def test_training_goes_on_as_before(rows):
    model = build_model("gpt2").train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    first = bits_per_byte(model, rows, eos_token_id=1)
    assert [module.training for module in model.modules()] == modes
    assert bits_per_byte(model, rows, eos_token_id=1) == first  # dropout was off
    assert all(parameter.grad is None for parameter in model.parameters())
    model(torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()


def test_modes_come_back_after_an_error(llama):
    llama.train()
    try:
        with pytest.raises(RuntimeError, match="on purpose"), evaluating(llama):
            raise RuntimeError("on purpose")
        assert llama.training
    finally:
        llama.eval()


def test_adapters_are_scored(rows):
    from peft import LoraConfig, get_peft_model

    model = build_model("llama")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    scored = response_likelihood(adapted, rows, eos_token_id=1)
    expected = [plain_nats(adapted, row.student_ids[:-1], row.student_response) for row in rows]
    np.testing.assert_allclose(scored.nats, expected, rtol=1e-5)


def test_scaled_logits_are_the_models_own(rows):
    from transformers import CohereConfig, CohereForCausalLM

    model = CohereForCausalLM(
        CohereConfig(
            vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
            logit_scale=0.0625, initializer_range=0.5, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    ).eval()  # fmt: skip
    scored = response_likelihood(model, rows, eos_token_id=1)
    expected = [plain_nats(model, row.student_ids[:-1], row.student_response) for row in rows]
    np.testing.assert_allclose(scored.nats, expected, rtol=1e-5)


@pytest.mark.parametrize(("change", "words"), [("response", "response is empty"), ("student_ids", "outside")])
def test_bad_rows_are_named(llama, rows, change, words):
    setattr(rows[3], change, "" if change == "response" else rows[3].student_ids + 97)
    with pytest.raises(EvaluationError, match=f"row-3.*{words}"):
        response_likelihood(llama, rows, eos_token_id=1)


def test_no_rows_is_an_error(llama):
    with pytest.raises(EvaluationError, match="no examples"):
        response_likelihood(llama, [])


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 2000))
def test_batches_hold_everything_once_within_the_bound(lengths, bound):
    batches = list(token_batches(lengths, bound))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= bound
    flat = list(token_batches(lengths, bound, flat=True))
    assert sorted(index for batch in flat for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[index] for index in batch) <= bound for batch in flat)
    assert len(flat) <= len(batches)


def test_padding_goes_to_the_left():
    ids, mask = pad([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
