"""Hidden states and attention weights of the mapped layers, from one forward of the base model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sra_core.errors import ModelError
from sra_core.models.attention import last_row_attention
from sra_core.models.layers import resolve_layer
from sra_core.models.structure import decoder_of, layer_count, layers_of

__all__ = ["MappedStates", "mapped_states"]


@dataclass(slots=True)
class MappedStates:
    """What the method reads from a model, by layer (counted from 1).

    Args:
        hidden: (B, T, d) output of each layer; of the last one after the final norm. Gradients flow through it.
        weights: (B, T) float32, the last real token's attention, summed over heads; rows sum to 1, zero at padding.
        final: (B, T, d) states after the final norm: what the LM head takes.
    """

    hidden: dict[int, Tensor]
    weights: dict[int, Tensor]
    final: Tensor


def mapped_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, layers: Iterable[int]
) -> MappedStates:
    """Run the base model (no LM head, no logits) on (B, T) ids and read the given layers; -1 is the last.

    Source: paper section 2.

    Raises:
        ConfigError: a layer that the model does not have.
        ModelError: a model that the method cannot read, or reentrant gradient checkpointing.
    """
    count = layer_count(model)
    wanted = sorted({resolve_layer(count, layer) for layer in layers})
    hidden: dict[int, Tensor] = {}
    with last_row_attention(model, wanted) as rows, _layer_outputs(model, [x for x in wanted if x < count], hidden):
        final = decoder_of(model)(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
    if count in wanted:
        hidden[count] = final
    _refuse_reentrant(model, hidden, final)
    weights = {layer: row / row.sum(-1, keepdim=True).clamp_min(1e-9) for layer, row in rows.items()}
    return MappedStates(hidden, weights, final)


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
