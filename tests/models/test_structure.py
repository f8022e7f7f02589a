"""Layers, heads, and the check that a model can be read at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from sra_core.errors import ConfigError, ModelError
from sra_core.models import layer_count, lm_head, mapped_states, resolve_layer
from sra_core.models.structure import check_decoder, decoder_of, layers_of
from tests.models import walk


def test_layer_count_of_model_and_config(tiny, architecture) -> None:
    name, overrides = architecture
    model = tiny(name, **overrides)
    assert layer_count(model) == layer_count(model.config) == len(layers_of(model)) == 3


@pytest.mark.parametrize(("layer", "number"), [(1, 1), (12, 12), (-1, 12)])
def test_resolve_layer(layer: int, number: int) -> None:
    assert resolve_layer(12, layer) == number


@pytest.mark.parametrize("layer", [0, 13, -2, -12])
def test_resolve_layer_refuses(layer: int) -> None:
    with pytest.raises(ConfigError, match="count layers from 1 to 12"):
        resolve_layer(12, layer)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 8.0}),
        ("hyperclovax", {"logits_scaling": 3.0}),
        ("gemma2", {"final_logit_softcapping": 5.0}),
        ("recurrent_gemma", {"logits_soft_cap": 0.5, "lru_width": 32}),
        ("phi", {}),  # a head with a bias
        ("gpt2", {}),  # tied
        ("gpt_neox", {}),  # its own name for the head
    ],
)
def test_head_gives_the_models_own_logits(tiny, name: str, overrides: dict[str, float], ids) -> None:
    model = tiny(name, std=0.2, **overrides)
    with torch.no_grad():
        states = model.get_decoder()(input_ids=ids)[0]
        torch.testing.assert_close(lm_head(model).logits(states), model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_head_is_the_models_own_parameter(tiny) -> None:
    model = tiny("phi")
    head = lm_head(model)
    assert head.weight is model.lm_head.weight
    assert head.bias is model.lm_head.bias
    assert head.softcap is None


def test_scaled_head_carries_gradients(tiny) -> None:
    model = tiny("cohere", logit_scale=0.25)
    lm_head(model).weight.sum().backward()
    assert torch.equal(model.lm_head.weight.grad, torch.full_like(model.lm_head.weight, 0.25))


def test_check_passes_what_the_method_can_read(tiny, architecture) -> None:
    name, overrides = architecture
    check_decoder(tiny(name, **overrides), name)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra"])
def test_an_encoder_is_refused(tiny, name: str) -> None:
    with pytest.raises(ModelError, match="it is an encoder"):
        check_decoder(tiny(name), name)


def test_logits_that_are_no_linear_map_are_refused(tiny) -> None:
    model = tiny("llama")
    model.lm_head = nn.Sequential(nn.Linear(32, 300))
    with pytest.raises(ModelError, match="no plain linear LM head"):
        check_decoder(model, "changed")
    model = tiny("llama")
    model.lm_head.register_forward_hook(lambda *call: call[2] * 1.5)
    with pytest.raises(ModelError, match="are not its LM head on the final states"):
        check_decoder(model, "changed")


def test_projected_states_of_opt_350m_are_refused(tiny) -> None:
    with pytest.raises(ModelError, match=r"projects its last states from 32 to 16"):
        check_decoder(tiny("opt", word_embed_proj_dim=16, do_layer_norm_before=False), "opt-350m")


@pytest.mark.parametrize("name", ["modernbert-decoder", "electra"])
def test_what_stands_before_the_linear_head_belongs_to_the_states(name: str, ids) -> None:
    config = walk.tiny_config(name)
    config.is_decoder = True
    model = AutoModelForCausalLM.from_config(config).eval()
    check_decoder(model, name)
    states = mapped_states(model, ids.flatten() % 100, torch.tensor([0, 9, 18]), [-1], attention=False)
    logits = model(input_ids=ids % 100, use_cache=False).logits
    torch.testing.assert_close(lm_head(model).logits(states.final), logits.flatten(0, 1), atol=1e-5, rtol=1e-4)
    assert torch.equal(states.hidden[layer_count(model)], states.final)


def test_projected_states_of_electra_small_are_refused() -> None:
    config = walk.tiny_config("electra")
    config.is_decoder, config.embedding_size = True, 16
    with pytest.raises(ModelError, match=r"projects its last states from 32 to 16"):
        check_decoder(AutoModelForCausalLM.from_config(config).eval(), "electra-small")


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(ModelError, match="encoder-decoder"):
        decoder_of(T5ForConditionalGeneration(T5Config(vocab_size=30, d_model=8, d_ff=8, num_layers=1, num_heads=2)))


def test_something_else_is_refused() -> None:
    with pytest.raises(ModelError, match="is not a transformers model"):
        lm_head(nn.Linear(2, 2))
