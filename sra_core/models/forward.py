"""The one way to run a decoder: over texts end to end, flat where that is exact, padded or text by text where it isn't.

Flat: linear layers, norms and embeddings see one row of all tokens, with position ids that restart at each text, and
:mod:`sra_core.models.attention` keeps the texts apart. Half or more of a padded batch of texts of many lengths is
padding, and none of it is computed (method section 9). Padded: what does not attend through transformers' interface or
mixes tokens elsewhere (convolutions, recurrences, state spaces, ALiBi). One text at a time: what reads a text in
another way when a longer one is beside it (rotary embeddings scaled by the longest text, an index of likely keys).

Shapes: B texts, N tokens of all texts, T tokens of the longest, d width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sra_core.errors import ModelError
from sra_core.models.attention import last_row_attention, separate_texts
from sra_core.models.batching import evaluating
from sra_core.models.layers import resolve_layer
from sra_core.models.structure import decoder_of, final_states, input_device, layer_count, layers_of, unwrap
from sra_core.models.texts import Texts

__all__ = ["Layout", "MappedStates", "choose_layout", "compile_layers", "mapped_states"]

_PROBE = (9, 1, 14, 5)
"""Lengths of the texts that a model is probed with. One is a single token, which sees nothing but itself: what leaks
into it from other texts weighs most."""
_ROUNDING = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative error of a state that rounding explains. Flat and alone differ by some 1e-6 in float32; a text that
sees its neighbour differs by 0.1 and more."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model is run over texts, and why so.

    Args:
        flat: Whether as one row of all tokens.
        reason: What the probe found.
        alone: Whether one text at a time, where neither a flat nor a padded batch is exact.
        longest: Tokens of the longest text that it was probed with.
        unreadable: Layers whose output is not their states, and what it is instead.
    """

    flat: bool
    reason: str
    alone: bool = False
    longest: int = 0
    unreadable: Mapping[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{'flat' if self.flat else 'one text at a time' if self.alone else 'padded'}: {self.reason}"


@dataclass(slots=True)
class MappedStates:
    """What the method reads from a model, by layer (counted from 1).

    Args:
        hidden: (N, d) output of each layer; of the last one after the final norm. Gradients flow through it.
        weights: (N,) float32, attention of each text's last token, summed over heads; sums to 1 over a text. Where it
            was not asked for, all tokens of a text weigh the same.
        final: (N, d) states after the final norm: what the LM head takes.
    """

    hidden: dict[int, Tensor]
    weights: dict[int, Tensor]
    final: Tensor


def mapped_states(
    model: nn.Module,
    input_ids: Tensor,
    starts: Tensor,
    layers: Iterable[int] = (),
    longest: int | None = None,
    attention: bool = True,
) -> MappedStates:
    """Run the base model (no LM head, no logits) over texts and read the given layers; -1 is the last.

    Source: paper section 2.

    Args:
        model: A causal language model, wrapped or not; probed if :func:`choose_layout` has not seen it yet.
        input_ids: (N,) tokens of all texts, one after another.
        starts: (B + 1,) first token of each text, and N.
        layers: Layers to read.
        longest: T; unset reads it from ``starts``, for which a GPU is waited for.
        attention: Read the layers' attention rows; off, any decoder will do.

    Raises:
        ConfigError: a layer that the model does not have.
        ModelError: a model that the method cannot read, or reentrant gradient checkpointing.
    """
    layout = choose_layout(model)
    wanted = sorted({resolve_layer(layer_count(model), layer) for layer in layers})
    if odd := {layer: layout.unreadable[layer] for layer in wanted if layer in layout.unreadable}:
        raise ModelError(
            f"the states of layers {sorted(odd)} of {type(unwrap(model)).__name__} can't be read: layer {min(odd)} "
            f"{odd[min(odd)]}",
            "map other layers (the last one, -1, is read after the final norm), or use another architecture",
        )
    texts = Texts.of(starts.to(input_ids.device), len(input_ids), longest)
    if not layout.alone:
        return _states(model, input_ids, texts, wanted, layout.flat, attention)
    parts = []
    for text in input_ids.split(starts.diff().tolist()):
        whole = torch.tensor([0, len(text)], device=text.device)
        parts.append(_states(model, text, Texts.of(whole, len(text), len(text)), wanted, False, attention))
    hidden, weights = dict[int, Tensor](), dict[int, Tensor]()
    for layer in wanted:
        hidden[layer] = torch.cat([part.hidden[layer] for part in parts])
        weights[layer] = torch.cat([part.weights[layer] for part in parts])
    return MappedStates(hidden, weights, torch.cat([part.final for part in parts]))


def _states(
    model: nn.Module, input_ids: Tensor, texts: Texts, wanted: list[int], flat: bool, attention: bool
) -> MappedStates:
    count = layer_count(model)
    outputs: dict[int, Any] = {}
    run = _run_flat if flat else _run_padded
    with (
        last_row_attention(model, wanted if attention else ()) as rows,
        _layer_outputs(model, [x for x in wanted if x < count], outputs),
    ):
        final = run(model, input_ids, texts)
    # The layers of a model may be spread over devices: all that was read meets where the final states are.
    texts = texts.to(final.device)
    hidden, weights = dict[int, Tensor](), dict[int, Tensor]()
    for layer, states in outputs.items():
        here = states.to(final.device)
        hidden[layer] = here[0, : len(texts)] if flat else texts.flat(here)
    if count in wanted:
        hidden[count] = final  # after the final norm, as its centres go through the LM head
    _refuse_reentrant(model, hidden, final)
    if attention:
        for layer, row in rows.items():
            # A row is a sum over heads; the method's weights are one in all (paper section 2).
            weights[layer] = texts.flat((row / row.sum(-1, keepdim=True).clamp_min(1e-9)).to(final.device))
    else:
        even = (1.0 / texts.starts.diff()).index_select(0, texts.text)
        weights = dict.fromkeys(wanted, even)
    return MappedStates(hidden, weights, final)


def _run_flat(model: nn.Module, input_ids: Tensor, texts: Texts) -> Tensor:
    """(N, d) final states from one row of all tokens."""
    extra = _tail(model, len(texts))
    ids, positions = (nn.functional.pad(each, (0, extra))[None] for each in (input_ids, texts.positions))
    with separate_texts(model, texts) as apart:
        # with a mask of ones transformers does not look for texts in the position ids, and makes no mask of its own
        arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}
        final: Tensor = apart(lambda: final_states(model, **arguments))
    # A layer that attends in another way has seen all texts as one.
    if apart.attended < layer_count(model):
        raise ModelError(
            f"{apart.attended} of {layer_count(model)} layers attend through transformers' attention interface",
            "run it padded",
        )
    return final[0, : len(texts)]


def _run_padded(model: nn.Module, input_ids: Tensor, texts: Texts) -> Tensor:
    """(N, d) final states from (B, T) tokens, padded on the right."""
    mask = texts.real.to(input_ids.dtype)
    final = final_states(model, input_ids=texts.padded(input_ids), attention_mask=mask)
    return texts.to(final.device).flat(final)


def compile_layers(model: nn.Module) -> None:
    """Compile each layer of a model; attention itself stays as it is."""
    for layer in layers_of(model):
        layer.compile(dynamic=True)


def _tail(model: nn.Module, tokens: int) -> int:
    """Tokens that belong to no text, added where layers are compiled: they then meet eight sizes an octave."""
    if not any(getattr(layer, "_compiled_call_impl", None) for layer in layers_of(model)):
        return 0
    # An eighth of the power of two below `tokens`: so much is computed for nothing at most.
    step = max(16, 1 << max(0, tokens.bit_length() - 4))
    return -tokens % step


# Weak: what was found of a model must not keep it in memory.
_layouts: WeakKeyDictionary[nn.Module, Layout] = WeakKeyDictionary()


def choose_layout(model: nn.Module, wanted: Literal["auto", "flat", "padded"] = "auto", longest: int = 0) -> Layout:
    """How a model is run from now on: ``auto`` probes it, once.

    The probe runs texts of several lengths flat, padded and one by one, in evaluation mode, without gradients and
    without drawing a random number. Flat is taken where no state differs by more than rounding explains, else padded
    where none does, else one text at a time.

    Args:
        model: A causal language model, wrapped or not.
        wanted: How to run it.
        longest: Tokens of the longest text of the run, which the probe's texts then include: some models read a short
            text in another way when a text past a certain length is beside it.

    Raises:
        ModelError: ``flat`` is wanted of a model that can't be run so.
    """
    inner = unwrap(model)
    known = _layouts.get(inner)
    if wanted == "auto" and known is not None and known.longest >= longest:
        return known
    unreadable = _unreadable_layers(model)
    if wanted == "padded":
        _layouts[inner] = Layout(False, "as asked for", longest=longest, unreadable=unreadable)
        return _layouts[inner]
    lengths: tuple[int, ...] = _PROBE
    if longest > max(_PROBE):
        end = _longest_probe(inner, longest)
        lengths = (*_PROBE, end - end // 4, end)  # what changes past a length, changes for a text between the two
    error, reason = _probe(model, lengths, flat=True)
    tolerance, alone = _rounding(inner), False
    if wanted == "flat" and error == float("inf"):
        raise ModelError(f"{type(inner).__name__} can't be run flat: {reason}", "set layout to auto or padded")
    # Forced, a model is run flat however far the states are apart.
    flat = wanted == "flat" or error <= tolerance
    if not flat:
        error, found = _probe(model, lengths, flat=False)
        if not error <= tolerance:
            alone, reason = True, f"padded, {found}"
    _layouts[inner] = Layout(flat, reason, alone, longest, unreadable)
    return _layouts[inner]


def _rounding(model: nn.Module) -> float:
    return _ROUNDING.get(next(model.parameters()).dtype, 1e-4)


def _longest_probe(inner: nn.Module, longest: int) -> int:
    """Tokens of the probe's longest text: not past learned positions; rotary ones have no end, and change there."""
    config = inner.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or getattr(config, "rope_parameters", None) is not None:
        return longest
    return min(longest, int(positions) - 2)  # some count from the padding token's id


def _probe_ids(model: nn.Module, tokens: int) -> Tensor:
    """Tokens without an order: in an arithmetic series, ties of an index of likely keys happened to be drawn alike."""
    vocabulary = unwrap(model).config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(0))
    return ids.to(input_device(model))


def _probe(model: nn.Module, lengths: Sequence[int], flat: bool) -> tuple[float, str]:
    """Largest relative error of a state, infinite where the model cannot run so, and the finding in words."""
    if flat and "position_ids" not in inspect.signature(decoder_of(model).forward).parameters:
        return float("inf"), "it takes no position ids"
    ids = _probe_ids(model, sum(lengths))
    starts = torch.tensor([0, *lengths], device=ids.device).cumsum(0)
    with evaluating(model):
        alone = [final_states(model, input_ids=text[None])[0] for text in ids.split(list(lengths))]
        try:
            batched = _states(model, ids, Texts.of(starts, len(ids)), [], flat, attention=False).final
        except ModelError as error:
            return float("inf"), error.problem
        except Exception as error:  # a model's own code, given what it was not written for
            return float("inf"), f"it fails ({type(error).__name__})"
    largest = _gap(batched, torch.cat(alone))
    return largest, f"states differ by {largest:.1g} from those of one text at a time"


def _gap(states: Tensor, expected: Tensor) -> float:
    """Largest relative error of a state; infinite where one is no number."""
    whole = expected.to(states.device).float()
    gap = (states.float() - whole).norm(dim=-1) / whole.norm(dim=-1).clamp_min(1e-9)
    return float(gap.nan_to_num(nan=float("inf")).max())


def _unreadable_layers(model: nn.Module) -> dict[int, str]:
    """Layers whose module gives something else than the states after them, by one text of the probe.

    Some keep several streams of states, some return what is added to the states later: pooled, that is nonsense.
    """
    count, tolerance, outputs = layer_count(model), _rounding(model), dict[int, Any]()
    ids = _probe_ids(model, max(_PROBE))[None]
    with evaluating(model), _layer_outputs(model, list(range(1, count)), outputs):
        whole = decoder_of(model)(input_ids=ids, use_cache=False, output_hidden_states=True)
    # with or without the embeddings in front: architectures differ in what comes first
    final, known = whole[0], getattr(whole, "hidden_states", None)
    odd = {}
    for layer in range(1, count):
        states = outputs.get(layer)
        if not isinstance(states, Tensor):
            odd[layer] = "is not run as a module" if states is None else f"gives a {type(states).__name__}"
        elif states.shape != final.shape:
            odd[layer] = f"gives {tuple(states.shape)} where the final states are {tuple(final.shape)}"
        elif min((_gap(states, each) for each in known or () if each.shape == states.shape), default=0.0) > tolerance:
            odd[layer] = "gives something else than what transformers calls hidden states"
    return odd


def _refuse_reentrant(model: nn.Module, hidden: dict[int, Tensor], final: Tensor) -> None:
    """Reentrant checkpointing runs the layers without a graph: what a hook sees there carries no gradient."""
    checkpointing = any(getattr(layer, "gradient_checkpointing", False) for layer in layers_of(model))
    cut = [layer for layer, states in hidden.items() if final.requires_grad and not states.requires_grad]
    if checkpointing and cut:
        raise ModelError(
            f"the states of layers {cut} carry no gradient under gradient checkpointing",
            'enable it with gradient_checkpointing_kwargs={"use_reentrant": False}',
        )


@contextmanager
def _layer_outputs(model: nn.Module, layers: list[int], into: dict[int, Any]) -> Iterator[None]:
    modules = layers_of(model)
    handles: list[Any] = []

    def keep(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            into[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    try:
        handles.extend(modules[layer - 1].register_forward_hook(keep(layer)) for layer in layers)
        yield
    finally:
        for handle in handles:
            handle.remove()
