"""Texts end to end against each text alone under eager attention, and who is run how."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedModel

from sra_core.errors import ConfigError, ModelError
from sra_core.models import attention, choose_layout, lm_head, mapped_states
from sra_core.models.forward import _PROBE
from tests.models import walk
from tests.models.conftest import tiny_model

LENGTHS = (9, 1, 5, 12, 3)
STARTS = torch.tensor([0, *LENGTHS]).cumsum(0)
PADDED = ["bloom", "mpt", "falcon", "falcon-alibi", "mamba", "jamba", "gpt_neo"]
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon-alibi": ("falcon", {"alibi": True}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 4}),
}


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 300, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))


def eager_copy(model: PreTrainedModel) -> PreTrainedModel:
    eager = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager", dtype=model.dtype).eval()
    eager.load_state_dict(model.state_dict())
    return eager


def alone(model: PreTrainedModel, ids: Tensor, lengths: tuple[int, ...] = LENGTHS) -> tuple[dict, dict]:
    """Hidden states (N, d) and last rows (N,) by layer, each text in a forward of its own."""
    hidden: dict[int, list[Tensor]] = {1: [], 2: [], 3: []}
    rows: dict[int, list[Tensor]] = {1: [], 2: [], 3: []}
    for text in ids.split(lengths):
        out = model(input_ids=text[None], output_hidden_states=True, output_attentions=True, use_cache=False)
        for layer in (1, 2, 3):
            hidden[layer].append(out.hidden_states[layer][0])
            row = out.attentions[layer - 1][0, :, -1, : len(text)].detach().sum(0)
            rows[layer].append(row / row.sum())
    return tuple({layer: torch.cat(values) for layer, values in each.items()} for each in (hidden, rows))


def gradients(model: nn.Module, hidden: dict[int, Tensor]) -> dict[str, Tensor]:
    """Of one number that every state of layers 2 and 3 moves in its own way."""
    model.zero_grad()
    places = torch.arange(hidden[3].numel()).view_as(hidden[3]).cos()
    ((hidden[2] + hidden[3]) * places).mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(found[name], value, atol=1e-4 * scale + 1e-7, rtol=0, msg=lambda t, n=name: n + t)


@pytest.mark.parametrize("layout", ["flat", "flat as on a GPU", "padded"])
def test_states_rows_and_gradients_are_those_of_each_text_alone(
    tiny, architecture, layout: str, ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, overrides = architecture
    if layout == "flat as on a GPU":
        monkeypatch.setattr(attention, "calls_are_cheap", lambda device: False)
        layout = "flat"
    model = tiny(name, **overrides)
    assert choose_layout(model, layout).flat == (layout == "flat")
    states = mapped_states(model, ids, STARTS, [1, 2, -1])
    eager = eager_copy(model)
    hidden, rows = alone(eager, ids)
    assert states.hidden.keys() == states.weights.keys() == {1, 2, 3}
    assert states.final is states.hidden[3]
    for layer in (1, 2, 3):
        assert not states.weights[layer].requires_grad
        torch.testing.assert_close(states.hidden[layer], hidden[layer], atol=3e-5, rtol=1e-4)
        torch.testing.assert_close(states.weights[layer], rows[layer], atol=2e-5, rtol=0)
    assert_near(gradients(model, states.hidden), gradients(eager, hidden))


def test_a_probe_finds_every_architecture_of_this_kind_flat(tiny, architecture) -> None:
    name, overrides = architecture
    layout = choose_layout(tiny(name, **overrides))
    assert layout.flat, layout.reason
    assert str(layout).startswith("flat: states differ by")


@pytest.mark.parametrize("name", PADDED)
def test_a_probe_finds_what_mixes_tokens_elsewhere_padded(name: str, ids) -> None:
    kind, overrides = OTHERS.get(name, (name, {}))
    model = tiny_model(kind, std=0.1, **overrides)
    layout = choose_layout(model)
    assert not layout.flat
    with torch.no_grad():
        final = mapped_states(model, ids, STARTS).final
        each = [model(input_ids=x[None], output_hidden_states=True, use_cache=False) for x in ids.split(LENGTHS)]
    expected = [output.hidden_states[-1][0] for output in each]
    torch.testing.assert_close(final, torch.cat(expected), atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="can't be run flat"):
        choose_layout(model, "flat")


@pytest.mark.parametrize("share", [1e-3, 0.5])
def test_a_probe_sees_a_trace_of_the_token_before(tiny, share: float) -> None:
    """A token shift in a layer, as recurrences and short convolutions have it, leaks over the edge of a text."""
    model = tiny("llama")
    attend = model.model.layers[1].mlp.forward
    model.model.layers[1].mlp.forward = lambda x: attend(x + share * torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1])
    layout = choose_layout(model)
    assert not layout.flat
    assert layout.reason.startswith("states differ by")


LONGROPE = {
    "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4}
    | {"long_factor": [4.0] * 4, "original_max_position_embeddings": 20},
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 20,
}
DYNAMIC = {
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "max_position_embeddings": 20,
}


@pytest.mark.parametrize(("name", "overrides"), [("phi3", LONGROPE), ("llama", DYNAMIC)])
def test_what_depends_on_the_longest_text_of_a_batch_is_run_alone(name: str, overrides: dict[str, Any], ids) -> None:
    """Short texts beside one that is past the length where the rotary embedding changes."""
    model = tiny_model(name, **overrides)
    assert choose_layout(model, longest=18).flat  # no text of such a run is that long
    layout = choose_layout(model, longest=30)
    assert str(layout).startswith("one text at a time: padded, states differ by")
    lengths = (9, 30, 1)
    ids = torch.randint(0, 300, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    states = mapped_states(model, ids, torch.tensor([0, 9, 39, 40]), [1, 3])
    hidden, rows = alone(eager_copy(model), ids, lengths)
    for layer in (1, 3):
        torch.testing.assert_close(states.hidden[layer], hidden[layer], atol=3e-5, rtol=1e-4)
        torch.testing.assert_close(states.weights[layer], rows[layer], atol=2e-5, rtol=0)
    assert states.hidden[1].requires_grad


def test_an_index_of_likely_keys_is_run_alone() -> None:
    """Past the size of its index, which keys a text sees depends on the width of the batch where keys tie."""
    model = walk.tiny_model("deepseek_v32")
    assert choose_layout(model, longest=8).alone is False
    assert choose_layout(model, longest=40).alone


@pytest.mark.parametrize("spoil", ["streams", "something else"])
def test_a_layer_whose_output_is_no_state_is_refused(tiny, spoil: str, ids) -> None:
    model = tiny("llama")
    layer = model.model.layers[0]
    if spoil == "streams":
        layer.register_forward_hook(lambda module, args, output: torch.stack([output, output]))
        model.model.layers[1].register_forward_pre_hook(lambda module, args: (args[0][1], *args[1:]))
    else:  # the model's own list of states has something else in this place

        def change(module: nn.Module, args: tuple, output: Any) -> None:
            if output.hidden_states:
                states = list(output.hidden_states)
                output.hidden_states = (states[0], 2 * states[1], *states[2:])

        model.model.register_forward_hook(change)
    mapped_states(model, ids, STARTS, [2, -1])
    found = r"gives \(2, 1, 14, 32\) where" if spoil == "streams" else "gives something else than what transformers"
    with pytest.raises(ModelError, match=rf"states of layers \[1\] of LlamaForCausalLM can't be read: layer 1 {found}"):
        mapped_states(model, ids, STARTS, [1, 2])


@pytest.mark.parametrize("name", ["bloom", "mamba", "falcon-alibi", "llama"])
def test_without_attention_any_decoder_will_do(name: str, ids) -> None:
    kind, overrides = OTHERS.get(name, (name, {}))
    model = tiny_model(kind, std=0.1, **overrides)
    states = mapped_states(model, ids, STARTS, [1, 3], attention=False)
    even = torch.cat([torch.full((length,), 1 / length) for length in LENGTHS])
    assert states.hidden.keys() == states.weights.keys() == {1, 3}
    assert torch.equal(states.weights[1], even)
    states.hidden[1].sum().backward()
    if name != "llama":
        with pytest.raises(ModelError, match=r"set objective.weighted_pooling and objective.weighted_loss to false"):
            mapped_states(model, ids, STARTS, [1, 3])


def test_a_choice_is_kept_and_can_be_forced(tiny, ids, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    first = choose_layout(model)
    monkeypatch.setattr("sra_core.models.forward._probe", lambda *_, **__: pytest.fail("probed again"))
    assert choose_layout(model) is first
    assert choose_layout(model, "padded").reason == "as asked for"
    shapes: list[torch.Size] = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    mapped_states(model, ids, STARTS)
    assert shapes == [(len(LENGTHS), max(LENGTHS), 32)]
    monkeypatch.undo()
    choose_layout(model, "flat")
    shapes.clear()
    mapped_states(model, ids, STARTS)
    assert shapes == [(1, sum(LENGTHS), 32)]


def test_a_probe_leaves_no_trace(tiny) -> None:
    model = tiny("gpt2", resid_pdrop=0.5).train()
    registries = dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping)
    state = torch.get_rng_state()
    assert choose_layout(model).flat
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping)) == registries
    assert 1 in _PROBE
    assert len(set(_PROBE)) == len(_PROBE)


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_no_text_sees_another(tiny, layout: str, ids) -> None:
    model = tiny("llama")
    choose_layout(model, layout)
    other = ids.clone()
    other[STARTS[2] : STARTS[3]] = 7
    with torch.no_grad():
        before, after = (mapped_states(model, each, STARTS, [1]) for each in (ids, other))
    same = torch.ones(len(ids), dtype=torch.bool)
    same[STARTS[2] : STARTS[3]] = False
    assert torch.equal(before.final[same], after.final[same])
    assert torch.equal(before.weights[1][same], after.weights[1][same])
    assert not torch.equal(before.final[~same], after.final[~same])


def test_plain_causal_layers_attend_without_a_mask(tiny, ids, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, bool]] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(query: Tensor, *args: Any, **kw: Any) -> Tensor:
        mask = kw["attn_mask"]
        seen.append((None if mask is None else tuple(mask.shape), kw["is_causal"]))
        return original(query, *args, **kw)

    for window in (4, 13):
        model = tiny("mistral", sliding_window=window)
        choose_layout(model, "flat")
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
        seen.clear()
        mapped_states(model, ids, STARTS)
        # a window that no text outgrows needs no mask; else one mask serves all texts
        assert seen == [((1, 1, n, n), False) if window == 4 else (None, n > 1) for n in LENGTHS] * 3
        seen.clear()
        monkeypatch.setattr(attention, "calls_are_cheap", lambda device: False)  # as on a GPU
        mapped_states(model, ids, STARTS)
        longest = max(LENGTHS)
        assert seen == [((1, 1, longest, longest), False) if window == 4 else (None, True)] * 3
        monkeypatch.undo()


@pytest.mark.parametrize("name", ["llama", "granite", "gpt2"])
def test_the_kernel_for_texts_end_to_end_gets_what_it_needs(
    tiny, name: str, ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in with torch's signature, which attends text by text from its arguments alone."""
    from torch.nn.attention import varlen

    calls = 0

    def stand_in(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
        nonlocal calls
        calls += 1
        assert window_size == (-1, 0)
        assert cu_q.dtype == torch.int32
        assert max_q == max_k == max(LENGTHS)
        outputs = []
        for begin, end in pairwise(cu_q.tolist()):
            parts = (each[begin:end].transpose(0, 1)[None] for each in (q, k, v))
            out = torch.nn.functional.scaled_dot_product_attention(
                *parts, is_causal=True, scale=scale, enable_gqa=enable_gqa
            )
            outputs.append(out[0].transpose(0, 1))
        return torch.cat(outputs)

    model = tiny(name)
    choose_layout(model, "flat")
    expected = mapped_states(model, ids, STARTS, [2])
    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    monkeypatch.setattr(attention, "varlen_fits", lambda options, *operands: True)
    states = mapped_states(model, ids, STARTS, [2])
    assert calls == 3
    torch.testing.assert_close(states.final, expected.final, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states.weights[2], expected.weights[2])


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(tiny, reentrant: bool, ids) -> None:
    """Layers run again in the backward, after other batches have gone through the model."""
    model = tiny("gemma2", sliding_window=4).train()
    choose_layout(model, "flat")

    def grads() -> dict[str, Tensor]:
        model.zero_grad()
        states = mapped_states(model, ids, STARTS, [1, 3])
        later = mapped_states(model, ids[:14], torch.tensor([0, 3, 14]), [1])
        ((states.hidden[1] * states.weights[1][:, None] + states.final).square().sum() + later.final.sum()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = grads()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert_near(grads(), plain)
    assert "sdpa" in AttentionInterface._global_mapping
    assert AttentionInterface._global_mapping["sdpa"].__module__.startswith("transformers")


def test_dropout_draws_the_same_again_for_checkpointing(tiny, ids) -> None:
    model = tiny("gpt2", attn_pdrop=0.5, resid_pdrop=0.5).train()
    choose_layout(model, "flat")

    def grads() -> dict[str, Tensor]:
        torch.manual_seed(3)
        return gradients(model, mapped_states(model, ids, STARTS, [2, 3]).hidden)

    plain = grads()
    assert_near(grads(), plain)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_near(grads(), plain)
    model.eval()
    assert any(not torch.equal(value, plain[name]) for name, value in grads().items())


def test_states_that_checkpointing_cut_from_the_graph_are_refused(tiny, ids) -> None:
    model = tiny("llama").train()
    choose_layout(model)
    model.gradient_checkpointing_enable()
    model.model.layers[0].forward = torch.no_grad()(model.model.layers[0].forward)
    with pytest.raises(ModelError, match=r"layers \[1\] carry no gradient"):
        mapped_states(model, ids, STARTS, [1, 2])


@pytest.mark.parametrize(("name", "targets"), [("llama", ["q_proj", "v_proj"]), ("gpt2", ["c_attn"])])
def test_wrapped_models(tiny, name: str, targets: list[str], ids) -> None:
    model = tiny(name)
    with torch.no_grad():
        plain = mapped_states(model, ids, STARTS, [2, 3])
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, fan_in_fan_out=name == "gpt2")).train()

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    assert choose_layout(adapted).flat
    states = mapped_states(Wrapper(adapted.eval()), ids, STARTS, [2, 3])
    torch.testing.assert_close(states.hidden[2], plain.hidden[2])
    torch.testing.assert_close(states.weights[3], plain.weights[3])
    states.hidden[3].sum().backward()
    assert all(p.grad is not None for n, p in adapted.named_parameters() if "lora_B" in n)
    assert lm_head(adapted).weight is model.get_output_embeddings().weight


def test_adapters_get_the_gradients_of_padded_texts(tiny, ids) -> None:
    adapted = get_peft_model(
        tiny("llama"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    found = {}
    for layout in ("flat", "padded"):
        choose_layout(adapted, layout)
        found[layout] = gradients(adapted, mapped_states(adapted, ids, STARTS, [2, 3]).hidden)
    assert all("lora" in name for name in found["flat"])
    assert_near(found["flat"], found["padded"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny, dtype: torch.dtype, ids) -> None:
    model = tiny("llama")
    with torch.no_grad():
        exact = mapped_states(model, ids, STARTS, [2])
        half = tiny("llama").to(dtype)
        assert choose_layout(half).flat
        states = mapped_states(half, ids, STARTS, [2])
    assert states.final.dtype == dtype
    assert states.weights[2].dtype == torch.float32
    torch.testing.assert_close(states.weights[2], exact.weights[2], atol=0.1, rtol=0)


def test_two_threads_with_texts_of_their_own(tiny, ids) -> None:
    """The registry is shared; who sees which texts is not."""
    batches = [(ids, STARTS), (ids[:14], torch.tensor([0, 9, 14]))] * 2
    models = [tiny("llama") for _ in batches]
    for number, model in enumerate(models):
        choose_layout(model, "flat" if number < 3 else "padded")
    with torch.no_grad():
        expected = [mapped_states(model, *batch, [1]).final for model, batch in zip(models, batches, strict=True)]
    wrong: list[int] = []

    def work(number: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                if not torch.equal(mapped_states(models[number], *batches[number], [1]).final, expected[number]):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_nothing_of_the_size_of_all_tokens_squared_is_formed(tiny) -> None:
    largest, texts, length = 0, 8, 60

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes() // tensor.element_size())
            return out

    model = tiny("mistral", sliding_window=40)
    choose_layout(model, "flat")
    ids = torch.randint(0, 300, (texts * length,))
    with torch.no_grad(), Largest():
        mapped_states(model, ids, torch.arange(0, texts * length + 1, length), [1, 2, 3])
    assert largest < (texts * length) ** 2 / 2


def test_compiled_layers_meet_few_sizes(tiny, ids) -> None:
    model = tiny("llama")
    assert choose_layout(model).flat
    expected = mapped_states(model, ids, STARTS, [1, 3])
    grads = gradients(model, {2: expected.hidden[1], 3: expected.final})
    for layer in model.model.layers:
        layer.compile(backend="aot_eager", dynamic=True)
    widths = set()
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: widths.add(output.shape[1]))
    for last in (30, 29, 21, 18):
        states = mapped_states(model, ids[:last], torch.tensor([0, 9, 10, 15, last]), [1, 3])
    assert widths == {32}
    states = mapped_states(model, ids, STARTS, [1, 3])
    torch.testing.assert_close(states.final, expected.final, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states.hidden[1], expected.hidden[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states.weights[3], expected.weights[3])
    assert_near(gradients(model, {2: states.hidden[1], 3: states.final}), grads)


def test_last_layer_is_after_the_final_norm(tiny, ids) -> None:
    model = tiny("llama")
    raw: list[Tensor] = []
    choose_layout(model)
    model.model.layers[-1].register_forward_hook(lambda *call: raw.append(call[2]))
    with torch.no_grad():
        states = mapped_states(model, ids, STARTS, [3])
        torch.testing.assert_close(states.hidden[3], model.model.norm(raw[0])[0])
    assert not torch.allclose(states.hidden[3], raw[0][0])


def test_no_layers_gives_only_the_final_states(tiny, ids) -> None:
    states = mapped_states(tiny("gpt2"), ids, STARTS)
    assert not states.hidden
    assert not states.weights
    assert states.final.shape == (len(ids), 32)


def test_the_head_never_runs(tiny, ids) -> None:
    model = tiny("llama")
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("full logits were formed"))
    mapped_states(model, ids, STARTS, [1])


def test_unknown_layers_are_refused(tiny, ids) -> None:
    for layer in (0, 4, -2):
        with pytest.raises(ConfigError, match=f"no layer {layer}"):
            mapped_states(tiny("llama"), ids, STARTS, [layer])
