"""The one way to run a decoder: over texts end to end, flat where that is exact and padded where it isn't.

Flat: linear layers, norms and embeddings see one row of all tokens, with position ids that restart at each text, and
:mod:`sra_core.models.attention` keeps the texts apart. Half or more of a padded batch of texts of many lengths is
padding, and none of it is computed (method section 9). Padded: what does not attend through transformers' interface or
mixes tokens elsewhere (convolutions, recurrences, state spaces, ALiBi).

Shapes: B texts, N tokens of all texts, T tokens of the longest, d width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sra_core.errors import ModelError
from sra_core.models.attention import last_row_attention, separate_texts
from sra_core.models.batching import evaluating
from sra_core.models.layers import resolve_layer
from sra_core.models.structure import decoder_of, layer_count, layers_of, unwrap
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
    """How a model is run over texts, and why so."""

    flat: bool
    reason: str

    def __str__(self) -> str:
        return f"{'flat' if self.flat else 'padded'}: {self.reason}"


@dataclass(slots=True)
class MappedStates:
    """What the method reads from a model, by layer (counted from 1).

    Args:
        hidden: (N, d) output of each layer; of the last one after the final norm. Gradients flow through it.
        weights: (N,) float32, attention of each text's last token, summed over heads; sums to 1 over a text.
        final: (N, d) states after the final norm: what the LM head takes.
    """

    hidden: dict[int, Tensor]
    weights: dict[int, Tensor]
    final: Tensor


def mapped_states(
    model: nn.Module, input_ids: Tensor, starts: Tensor, layers: Iterable[int] = (), longest: int | None = None
) -> MappedStates:
    """Run the base model (no LM head, no logits) over texts and read the given layers; -1 is the last.

    Source: paper section 2.

    Args:
        model: A causal language model, wrapped or not; probed if :func:`choose_layout` has not seen it yet.
        input_ids: (N,) tokens of all texts, one after another.
        starts: (B + 1,) first token of each text, and N.
        layers: Layers to read.
        longest: T; unset reads it from ``starts``, for which a GPU is waited for.

    Raises:
        ConfigError: a layer that the model does not have.
        ModelError: a model that the method cannot read, or reentrant gradient checkpointing.
    """
    texts = Texts.of(starts.to(input_ids.device), len(input_ids), longest)
    return _states(model, input_ids, texts, layers, choose_layout(model).flat)


def _states(model: nn.Module, input_ids: Tensor, texts: Texts, layers: Iterable[int], flat: bool) -> MappedStates:
    count = layer_count(model)
    wanted = sorted({resolve_layer(count, layer) for layer in layers})
    outputs: dict[int, Tensor] = {}
    run = _run_flat if flat else _run_padded
    with last_row_attention(model, wanted) as rows, _layer_outputs(model, [x for x in wanted if x < count], outputs):
        final = run(model, input_ids, texts)
    hidden = {layer: states[0, : len(texts)] if flat else texts.flat(states) for layer, states in outputs.items()}
    if count in wanted:
        hidden[count] = final
    _refuse_reentrant(model, hidden, final)
    weights = {layer: texts.flat(row / row.sum(-1, keepdim=True).clamp_min(1e-9)) for layer, row in rows.items()}
    return MappedStates(hidden, weights, final)


def _run_flat(model: nn.Module, input_ids: Tensor, texts: Texts) -> Tensor:
    """(N, d) final states from one row of all tokens."""
    decoder = decoder_of(model)
    extra = _tail(model, len(texts))
    ids, positions = (nn.functional.pad(each, (0, extra))[None] for each in (input_ids, texts.positions))
    with separate_texts(model, texts) as apart:
        # with a mask of ones transformers does not look for texts in the position ids, and makes no mask of its own
        arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}
        final: Tensor = apart(lambda: decoder(**arguments, use_cache=False)[0])
    if apart.attended < layer_count(model):
        raise ModelError(
            f"{apart.attended} of {layer_count(model)} layers attend through transformers' attention interface",
            "run it padded",
        )
    return final[0, : len(texts)]


def _run_padded(model: nn.Module, input_ids: Tensor, texts: Texts) -> Tensor:
    """(N, d) final states from (B, T) tokens, padded on the right."""
    mask = texts.real.to(input_ids.dtype)
    final: Tensor = decoder_of(model)(input_ids=texts.padded(input_ids), attention_mask=mask, use_cache=False)[0]
    return texts.flat(final)


def compile_layers(model: nn.Module) -> None:
    """Compile each layer of a model; attention itself stays as it is."""
    for layer in layers_of(model):
        layer.compile(dynamic=True)


def _tail(model: nn.Module, tokens: int) -> int:
    """Tokens that belong to no text, added where layers are compiled: they then meet eight sizes an octave."""
    if not any(getattr(layer, "_compiled_call_impl", None) for layer in layers_of(model)):
        return 0
    step = max(16, 1 << max(0, tokens.bit_length() - 4))
    return -tokens % step


_layouts: WeakKeyDictionary[nn.Module, Layout] = WeakKeyDictionary()


def choose_layout(model: nn.Module, wanted: Literal["auto", "flat", "padded"] = "auto") -> Layout:
    """How a model is run from now on: ``auto`` probes it, once.

    The probe runs texts of several lengths flat and one by one, in evaluation mode, without gradients and without
    drawing a random number. Flat is taken where no state differs by more than rounding explains.

    Raises:
        ModelError: ``flat`` is wanted of a model that can't be run so.
    """
    inner = unwrap(model)
    if wanted == "auto" and inner in _layouts:
        return _layouts[inner]
    if wanted == "padded":
        _layouts[inner] = Layout(False, "as asked for")
    else:
        error, reason = _probe(model)
        fits = error <= _ROUNDING.get(next(inner.parameters()).dtype, 1e-4)
        if wanted == "flat" and error == float("inf"):
            raise ModelError(f"{type(inner).__name__} can't be run flat: {reason}", "set layout to auto or padded")
        _layouts[inner] = Layout(wanted == "flat" or fits, reason)
    return _layouts[inner]


def _probe(model: nn.Module) -> tuple[float, str]:
    """Largest relative error of a flat state, infinite where the model cannot run flat, and the finding in words."""
    decoder = decoder_of(model)
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return float("inf"), "it takes no position ids"
    device = next(model.parameters()).device
    vocabulary = unwrap(model).config.get_text_config().vocab_size
    ids = (torch.arange(sum(_PROBE), device=device) * 7 + 3) % vocabulary
    starts = torch.tensor([0, *_PROBE], device=device).cumsum(0)
    with evaluating(model):
        alone = [decoder(input_ids=text[None], use_cache=False)[0][0] for text in ids.split(_PROBE)]
        try:
            flat = _states(model, ids, Texts.of(starts, len(ids)), (), flat=True).final
        except ModelError as error:
            return float("inf"), error.problem
        except Exception as error:  # a model's own code, given what it was not written for
            return float("inf"), f"it fails ({type(error).__name__})"
    whole = torch.cat(alone).float()
    gap = (flat.float() - whole).norm(dim=-1) / whole.norm(dim=-1).clamp_min(1e-9)
    largest = float(gap.nan_to_num(nan=float("inf")).max())
    return largest, f"states differ by {largest:.1g} from those of one text at a time"


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
def _layer_outputs(model: nn.Module, layers: list[int], into: dict[int, Tensor]) -> Iterator[None]:
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
