"""What only a GPU can show of running models; with TEST_DEVICE=cpu the same checks run without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import dispatch_model

from sra_core.models import attention, choose_layout, mapped_states
from sra_core.models.structure import check_decoder
from tests.models.conftest import ARCHITECTURES, tiny_model
from tests.models.test_forward import LENGTHS, STARTS, alone, assert_near, eager_copy, gradients

pytestmark = pytest.mark.gpu

NAMES = ["llama", "qwen3", "gpt2", "mistral-window", "gemma2", "gemma3", "gpt_oss"]
ROUNDING = {torch.float32: 2e-4, torch.bfloat16: 6e-2}


def on(device: str, name: str, dtype: torch.dtype, **changes: Any) -> tuple[Any, torch.Tensor]:
    kind, overrides = ARCHITECTURES[name]
    ids = torch.randint(1, 300, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    return tiny_model(kind, std=0.1, **overrides, **changes).to(device, dtype), ids.to(device)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm().detach() / expected.float().norm().detach())


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_flat_padded_and_eager_agree(device: str, name: str, dtype: torch.dtype) -> None:
    model, ids = on(device, name, dtype)
    found = {}
    for layout in ("flat", "padded"):
        choose_layout(model, layout)
        found[layout] = mapped_states(model, ids, STARTS, [1, 2, 3])
    hidden, rows = alone(eager_copy(model).to(device), ids)
    for layer in (1, 2, 3):
        assert relative(found["flat"].hidden[layer], found["padded"].hidden[layer]) < ROUNDING[dtype]
        for states in found.values():
            assert relative(states.hidden[layer], hidden[layer]) < ROUNDING[dtype]
            assert relative(states.weights[layer], rows[layer]) < ROUNDING[dtype]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_padded_texts(device: str, name: str) -> None:
    model, ids = on(device, name, torch.float32)
    found = {}
    for layout in ("flat", "padded"):
        choose_layout(model, layout)
        found[layout] = gradients(model, mapped_states(model, ids, STARTS, [1, 2, 3]).hidden)
    assert_near(found["flat"], found["padded"])


@pytest.mark.parametrize("name", NAMES)
def test_a_probe_finds_flat(device: str, name: str) -> None:
    for dtype in ROUNDING:
        layout = choose_layout(on(device, name, dtype)[0])
        assert layout.flat, f"{dtype}: {layout.reason}"


def test_torchs_kernel_serves_plain_causal_layers(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cpu":
        pytest.skip("the kernel is CUDA's")
    calls = []
    original = attention.varlen_attention
    monkeypatch.setattr(attention, "varlen_attention", lambda *args: (calls.append(1), original(*args))[1])
    model, ids = on(device, "llama", torch.bfloat16)
    choose_layout(model, "flat")
    states = mapped_states(model, ids, STARTS, [3])
    gradients(model, {2: states.final, 3: states.final})
    assert len(calls) == 3
    choose_layout(model, "padded")
    assert relative(states.final, mapped_states(model, ids, STARTS, [3]).final) < ROUNDING[torch.bfloat16]
    window, ids = on(device, "gemma2", torch.bfloat16)
    calls.clear()
    choose_layout(window, "flat")
    mapped_states(window, ids, STARTS, [3])
    assert not calls


def test_greedy_answers_are_those_of_the_cpu(device: str) -> None:
    model, _ = on("cpu", "llama", torch.float32)
    prompt = torch.tensor([[5, 9, 17, 3]])
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(prompt, **settings)
    found = model.to(device).generate(prompt.to(device), **settings)
    assert found.cpu().tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_layers_on_two_devices_are_read_as_on_one(device: str, name: str) -> None:
    """As accelerate spreads a teacher; its main device is set to the CPU here, so that one GPU makes two devices."""
    model, ids = on("cpu", name, torch.float32)
    expected = mapped_states(model, ids, STARTS, [1, 2, 3])
    parts = ("model.embed_tokens", "model.rotary_emb", "model.layers.1", "lm_head")
    others = ("model.layers.0", "model.layers.2", "model.norm")
    places = {**dict.fromkeys(parts, "cpu"), **dict.fromkeys(others, device)}
    dispatch_model(model, places, main_device="cpu", force_hooks=True)
    check_decoder(model, name)
    for layout in ("flat", "padded"):
        choose_layout(model, layout)
        found = mapped_states(model, ids, STARTS, [1, 2, 3])
        assert {states.device for states in (*found.hidden.values(), *found.weights.values())} == {found.final.device}
        for layer in (1, 2, 3):
            assert relative(found.hidden[layer].cpu(), expected.hidden[layer]) < 1e-3
            assert relative(found.weights[layer].cpu(), expected.weights[layer]) < 1e-3
