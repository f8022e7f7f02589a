"""Mapped states against output_hidden_states and the model's own logits."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from sra_core.errors import ConfigError, ModelError
from sra_core.models import last_row_attention, lm_head, mapped_states


def test_agrees_with_output_hidden_states(tiny, architecture, mask, ids) -> None:
    name, overrides = architecture
    model = tiny(name, **overrides)
    with torch.no_grad():
        states = mapped_states(model, ids, mask, [1, 2, -1])
        whole = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    assert states.hidden.keys() == states.weights.keys() == {1, 2, 3}
    for layer in (1, 2, 3):  # hidden_states[0] are the embeddings, the last entry is after the final norm
        torch.testing.assert_close(states.hidden[layer], whole.hidden_states[layer], atol=1e-5, rtol=1e-5)
    assert states.final is states.hidden[3]
    torch.testing.assert_close(lm_head(model).logits(states.final), whole.logits, atol=1e-4, rtol=1e-5)


def test_last_layer_is_after_the_final_norm(tiny, ids) -> None:
    model = tiny("llama")
    raw: list[torch.Tensor] = []
    model.model.layers[-1].register_forward_hook(lambda *call: raw.append(call[2]))
    with torch.no_grad():
        states = mapped_states(model, ids, None, [3])
        torch.testing.assert_close(states.hidden[3], model.model.norm(raw[0]))
    assert not torch.allclose(states.hidden[3], raw[0])


def test_weights_are_normalised_rows(tiny, mask, ids) -> None:
    model = tiny("mistral", sliding_window=4)
    with torch.no_grad():
        states = mapped_states(model, ids, mask, [2])
        with last_row_attention(model, [2]) as rows:
            model(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(states.weights[2], rows[2] / 4)
    torch.testing.assert_close(states.weights[2].sum(-1), torch.ones(2))
    assert (states.weights[2][mask == 0] == 0).all()


def test_no_layers_gives_only_the_final_states(tiny, ids) -> None:
    states = mapped_states(tiny("gpt2"), ids, None, [])
    assert not states.hidden
    assert not states.weights
    assert states.final.shape == (2, 9, 32)


def test_the_head_never_runs(tiny, ids) -> None:
    model = tiny("llama")
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("full logits were formed"))
    mapped_states(model, ids, None, [1])


def test_gradients_flow_through_hidden_and_not_through_weights(tiny, ids) -> None:
    model = tiny("qwen2").train()
    states = mapped_states(model, ids, None, [2, 3])
    assert not any(weights.requires_grad for weights in states.weights.values())
    (states.hidden[2].square().mean() + states.hidden[3].square().mean()).backward()
    gradients = [layer.mlp.down_proj.weight.grad for layer in model.model.layers]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_gradient_checkpointing_changes_no_gradient(tiny, ids) -> None:
    model = tiny("llama").train()

    def gradient() -> torch.Tensor:
        model.zero_grad()
        states = mapped_states(model, ids, None, [1, 3])
        (states.hidden[1] * states.weights[1][..., None] + states.final).square().sum().backward()
        return model.model.layers[0].self_attn.q_proj.weight.grad.clone()

    plain = gradient()
    model.enable_input_require_grads()
    for reentrant in (False, True):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        torch.testing.assert_close(gradient(), plain, atol=1e-4 * float(plain.abs().max()), rtol=0)


def test_states_that_checkpointing_cut_from_the_graph_are_refused(tiny, ids) -> None:
    model = tiny("llama").train()
    model.gradient_checkpointing_enable()
    model.model.layers[0].forward = torch.no_grad()(model.model.layers[0].forward)
    with pytest.raises(ModelError, match=r"layers \[1\] carry no gradient"):
        mapped_states(model, ids, None, [1, 2])


@pytest.mark.parametrize(("name", "targets"), [("llama", ["q_proj", "v_proj"]), ("gpt2", ["c_attn"])])
def test_wrapped_models(tiny, name: str, targets: list[str], ids) -> None:
    model = tiny(name)
    with torch.no_grad():
        plain = mapped_states(model, ids, None, [2, 3])
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, fan_in_fan_out=name == "gpt2")).train()

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    states = mapped_states(Wrapper(adapted.eval()), ids, None, [2, 3])
    torch.testing.assert_close(states.hidden[2], plain.hidden[2])
    torch.testing.assert_close(states.weights[3], plain.weights[3])
    states.hidden[3].sum().backward()
    assert all(p.grad is not None for n, p in adapted.named_parameters() if "lora_B" in n)
    assert lm_head(adapted).weight is model.get_output_embeddings().weight


def test_rows_are_captured_through_a_peft_forward(tiny, mask, ids) -> None:
    model = tiny("llama")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).eval()
    with torch.no_grad(), last_row_attention(adapted, [1]) as rows:
        adapted(input_ids=ids, attention_mask=mask)
        through = rows[1]
        mapped = mapped_states(adapted, ids, mask, [1])
    torch.testing.assert_close(through / 4, mapped.weights[1])


def test_unknown_layers_are_refused(tiny, ids) -> None:
    for layer in (0, 4, -2):
        with pytest.raises(ConfigError, match=f"no layer {layer}"):
            mapped_states(tiny("llama"), ids, None, [layer])
