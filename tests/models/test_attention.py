"""Last-row attention against the model's own eager attention, and what it must leave alone."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from sra_core.errors import ConfigError, ModelError
from sra_core.models import last_row_attention

LAYERS = [1, 2, 3]
COMPILED = [pytest.mark.slow, pytest.mark.skipif(shutil.which("c++") is None, reason="flex attention compiles")]


def eager_rows(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> dict[int, Tensor]:
    """The last real token's row of the full attention matrices of an eager copy, text by text and head by head."""
    eager = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager", dtype=model.dtype).eval()
    eager.load_state_dict(model.state_dict())
    with torch.no_grad():
        matrices = eager(input_ids=ids, attention_mask=mask, output_attentions=True, use_cache=False).attentions
    rows = {}
    for layer, matrix in enumerate(matrices, start=1):
        rows[layer] = torch.zeros(ids.shape)
        for text in range(ids.shape[0]):
            last = max(position for position in range(ids.shape[1]) if mask[text, position])
            for head in range(matrix.shape[1]):
                rows[layer][text] += matrix[text, head, last, : ids.shape[1]].float()
    return rows


def captured_rows(model: PreTrainedModel, ids: Tensor, mask: Tensor | None) -> dict[int, Tensor]:
    with torch.no_grad(), last_row_attention(model, LAYERS) as rows:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    return dict(rows)


def world(model: PreTrainedModel) -> tuple[Any, ...]:
    """All that a capture touches."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return dict(AttentionInterface._global_mapping), model.config.to_dict(), model.config._attn_implementation, hooks


def test_agrees_with_eager_attention(tiny, architecture, mask, ids) -> None:
    name, overrides = architecture
    model = tiny(name, **overrides)
    rows = captured_rows(model, ids, mask)
    expected = eager_rows(model, ids, mask)
    for layer in LAYERS:
        assert rows[layer].dtype == torch.float32
        assert rows[layer].shape == ids.shape
        torch.testing.assert_close(rows[layer], expected[layer], atol=2e-5, rtol=0)
        assert (rows[layer][mask == 0] == 0).all()


def test_attention_of_the_tiny_models_is_far_from_uniform(tiny, architecture, ids) -> None:
    name, overrides = architecture
    rows = captured_rows(tiny(name, **overrides), ids, None)
    assert max(float(row.max() - row.min()) for row in rows.values()) > 0.5


def test_rows_sum_to_the_number_of_heads(tiny, mask, ids) -> None:
    for row in captured_rows(tiny("qwen2"), ids, mask).values():
        torch.testing.assert_close(row.sum(-1), torch.full((2,), 4.0))


def test_without_a_mask_all_tokens_are_real(tiny, ids) -> None:
    model = tiny("mistral", sliding_window=4)
    without, ones = captured_rows(model, ids, None), captured_rows(model, ids, torch.ones_like(ids))
    for layer in LAYERS:
        assert torch.equal(without[layer], ones[layer])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_output_is_what_it_would_be_without_capture(tiny, attention: str, mask, ids) -> None:
    model = tiny("llama", attention)
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask).logits
        with last_row_attention(model, [2]) as rows:
            watched = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(plain, watched)
    assert list(rows) == [2]


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("llama", "eager"),
        ("gpt_oss", "eager"),
        pytest.param("llama", "flex_attention", marks=COMPILED),
        pytest.param("gemma2", "flex_attention", marks=COMPILED),
    ],
)
def test_other_implementations(tiny, name: str, attention: str, ids) -> None:
    mask = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    model = tiny(name, attention, sliding_window=4, head_dim=16)
    rows, expected = captured_rows(model, ids, mask), eager_rows(model, ids, mask)
    for layer in LAYERS:
        torch.testing.assert_close(rows[layer], expected[layer], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_flash_attention_gets_flat_masks_and_applies_the_window_itself(
    tiny, name: str, mask, ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in with flash attention's arguments: a (B, T) mask or none, window and softcap as keywords."""

    def stand_in(module, query, key, value, mask, scaling=None, sliding_window=None, softcap=None, **_):
        groups, tokens = query.shape[1] // key.shape[1], query.shape[2]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(2, 3) * scaling
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
        seen = (distance >= 0) & (distance < (sliding_window or tokens))
        seen = seen & torch.ones(len(query), 1, 1, tokens).bool() if mask is None else seen & mask[:, None, None].bool()
        return (scores.masked_fill(~seen, -1e30).softmax(-1) @ value).transpose(1, 2), None

    window = {} if name == "llama" else {"sliding_window": 4}
    model = tiny(name, **window)
    expected = eager_rows(model, ids, mask)
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", stand_in)
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    rows = captured_rows(model, ids, mask)
    for layer in LAYERS:
        torch.testing.assert_close(rows[layer], expected[layer], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_leaves_the_model_as_it_found_it(tiny, name: str, ids) -> None:
    model = tiny(name)
    before = world(model)
    captured_rows(model, ids, None)
    assert world(model) == before


def test_leaves_the_model_as_it_found_it_after_an_exception(tiny, ids) -> None:
    model = tiny("llama")
    before = world(model)
    with pytest.raises(IndexError), last_row_attention(model, LAYERS):
        model(input_ids=torch.full_like(ids, 10_000))
    assert world(model) == before
    with pytest.raises(KeyboardInterrupt), last_row_attention(model, LAYERS):
        raise KeyboardInterrupt
    assert world(model) == before
    assert captured_rows(model, ids, None).keys() == set(LAYERS)


def test_an_unknown_layer_is_refused_before_anything_changes(tiny) -> None:
    model = tiny("llama")
    before = world(model)
    with pytest.raises(ConfigError, match=r"no layer 4 in a model of 3 layers"), last_row_attention(model, [4]):
        pass
    assert world(model) == before


def test_a_forward_that_failed_leaves_no_rows_of_the_one_before(tiny, ids) -> None:
    model = tiny("llama")
    with torch.no_grad(), last_row_attention(model, LAYERS) as rows:
        model(input_ids=ids)
        assert rows
        with pytest.raises(IndexError):
            model(input_ids=torch.full_like(ids, 10_000))
        assert not rows


def test_nested_captures_of_one_model(tiny, ids) -> None:
    model = tiny("llama")
    before, expected = world(model), captured_rows(model, ids, None)
    with torch.no_grad(), last_row_attention(model, [1]) as outer:
        with last_row_attention(model, [1, 3]) as inner:
            model(input_ids=ids)
        assert inner.keys() == {1, 3}
        assert outer.keys() == {1}
        assert torch.equal(inner[3], expected[3])
        assert torch.equal(outer[1], inner[1])
        model(input_ids=ids[:, :4])
        assert outer[1].shape == (2, 4)
        assert inner[1].shape == (2, 9)
    assert world(model) == before


def test_two_models_at_once_closed_in_the_order_they_were_opened(tiny, ids) -> None:
    first, second = tiny("llama"), tiny("qwen2")
    before = world(first), world(second)
    expected = captured_rows(first, ids, None), captured_rows(second, ids, None)
    one, two = ExitStack(), ExitStack()
    rows_one, rows_two = (
        one.enter_context(last_row_attention(first, [2])),
        two.enter_context(last_row_attention(second, [2])),
    )
    with torch.no_grad():
        first(input_ids=ids)
        second(input_ids=ids)
        one.close()
        assert torch.equal(rows_one[2], expected[0][2])
        assert torch.equal(rows_two[2], expected[1][2])
        first(input_ids=ids[:, :4])
        second(input_ids=ids[:, :4])
    assert rows_one[2].shape == (2, 9)
    assert rows_two[2].shape == (2, 4)
    two.close()
    assert (world(first), world(second)) == before


def test_a_function_registered_meanwhile_is_kept(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    original = AttentionInterface._global_mapping["sdpa"]
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", original)

    def other(*_: Any) -> None: ...

    with last_row_attention(tiny("llama"), [1]):
        AttentionInterface.register("sdpa", other)
    assert AttentionInterface._global_mapping["sdpa"] is other


@pytest.mark.parametrize("reentrant", [False, True])
def test_training_with_gradient_checkpointing(tiny, reentrant: bool, ids) -> None:
    model = tiny("llama").train()
    expected = captured_rows(model, ids, None)

    def gradients(capture: bool) -> list[Tensor]:
        model.zero_grad()
        with ExitStack() as stack:
            if capture:
                rows = stack.enter_context(last_row_attention(model, LAYERS))
            first = model(input_ids=ids, labels=ids, use_cache=False).loss
            second = model(input_ids=ids[:1, :4], labels=ids[:1, :4], use_cache=False).loss
            (first + second).backward()  # recomputes the layers of both forwards
            if capture:
                assert all(row.shape == (1, 4) and not row.requires_grad for row in rows.values())
                model(input_ids=ids)
                torch.testing.assert_close(rows[3], expected[3])
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients(False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    for left, right in zip(gradients(True), plain, strict=True):
        torch.testing.assert_close(left, right)


def test_half_precision_and_autocast_give_float32_rows(tiny, ids) -> None:
    model = tiny("llama")
    expected = captured_rows(model, ids, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = captured_rows(model, ids, None)
    half = captured_rows(model.bfloat16(), ids, None)
    for layer in LAYERS:
        for rows in (cast, half):
            assert rows[layer].dtype == torch.float32
            torch.testing.assert_close(rows[layer].sum(-1), torch.full((2,), 4.0))
    torch.testing.assert_close(half[1], expected[1], atol=0.1, rtol=0)


def test_no_square_of_the_text_is_formed(tiny) -> None:
    tokens, largest = 400, 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes() // tensor.element_size())
            return out

    model = tiny("llama")
    ids = torch.randint(0, 300, (1, tokens))
    with torch.no_grad(), last_row_attention(model, LAYERS), Largest():
        model.model(input_ids=ids, use_cache=False)
    assert largest < tokens * tokens


def test_past_keys_and_square_masks_are_refused(tiny, ids) -> None:
    model = tiny("llama")
    with torch.no_grad(), last_row_attention(model, [1]):
        past = model(input_ids=ids, use_cache=True).past_key_values
        with pytest.raises(ModelError, match="without past keys"):
            model(input_ids=ids[:, :1], past_key_values=past)
        with pytest.raises(ModelError, match=r"shape \(B, T\)"):
            model(input_ids=ids, attention_mask=torch.ones(2, 1, 9, 9))


@pytest.mark.parametrize("name", ["bloom", "falcon"])
def test_attention_outside_the_interface_is_refused(tiny, name: str, ids) -> None:
    with pytest.raises(ModelError, match=r"layers \[1, 2, 3\] of .* gave no attention row"):
        captured_rows(tiny(name), ids, None)


def test_a_text_without_real_tokens_has_a_row_of_zeros(tiny, ids) -> None:
    mask = torch.tensor([[1] * 9, [0] * 9])
    for row in captured_rows(tiny("llama"), ids, mask).values():
        assert (row[1] == 0).all()
        assert torch.isfinite(row).all()
