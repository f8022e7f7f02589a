"""The parts of a decoder: its layers, its head, and whether the method can read it at all."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from sra_core.errors import ModelError
from sra_core.objective import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "check_decoder",
    "decoder_of",
    "final_states",
    "input_device",
    "input_embeddings",
    "layer_count",
    "layers_of",
    "lm_head",
    "unwrap",
    "weight_of",
]

_BEFORE_HEAD = {"modernbert-decoder": "lm_head", "electra": "generator_predictions"}
"""What stands between the final norm and the linear head, token by token, by type of model."""
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configs call the bound that a tanh puts on logits; RecurrentGemma and xLSTM have names of their own."""
_PROBE = ((3, 4, 5), (3, 4, 6))  # two texts that differ in their last token only


def layer_count(model_or_config: Any) -> int:
    """The number of decoder layers of a model (wrapped or not) or of its config.

    Raises:
        ModelError: it does not say.
    """
    config = model_or_config if not isinstance(model_or_config, nn.Module) else unwrap(model_or_config).config
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(count, int):
        raise ModelError(f"a config of type {config.model_type} names no number of layers", "use another architecture")
    return count


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a compiled, distributed, DeepSpeed or PEFT wrapper."""
    from transformers import PreTrainedModel

    while not isinstance(model, PreTrainedModel):
        if hasattr(model, "get_base_model"):  # PEFT
            model = model.get_base_model()
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        elif hasattr(model, "module"):  # DeepSpeed and DistributedDataParallel
            model = model.module
        else:
            raise ModelError(f"{type(model).__name__} is not a transformers model", "pass the model itself")
    return model


def decoder_of(model: nn.Module) -> nn.Module:
    """The module that turns token ids into the states after the final norm, without the LM head.

    Raises:
        ModelError: an encoder-decoder, or no such module.
    """
    inner = unwrap(model)
    config = inner.config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{type(inner).__name__} is an encoder-decoder", "use a decoder-only model")
    # `get_decoder` is a guess of transformers: it finds the head of ModernBERT-decoder, and all of Llama 4
    for candidate in (inner.get_decoder(), inner.base_model, *inner.children()):
        if candidate is not inner and "input_ids" in inspect.signature(candidate.forward).parameters:
            return candidate
    raise ModelError(
        f"{type(inner).__name__} has no part that turns tokens into final states", "use another architecture"
    )


def final_states(model: nn.Module, **arguments: Any) -> Tensor:
    """What the LM head takes: the decoder's states after the final norm, and after what some heads begin with.

    Args:
        model: A causal language model, wrapped or not.
        arguments: Of its decoder.
    """
    states: Tensor = decoder_of(model)(**arguments, use_cache=False)[0]
    inner = unwrap(model)
    name = _BEFORE_HEAD.get(inner.config.get_text_config().model_type)
    return states if name is None else getattr(inner, name)(states)


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The decoder's layers, first to last.

    Raises:
        ModelError: no list of layers can be told from the model.
    """
    count = layer_count(model)
    lists = [child for child in decoder_of(model).modules() if isinstance(child, nn.ModuleList)]
    # Outer ones first: a list of as many experts inside a layer comes later.
    for child in lists:
        if len(child) == count:
            return child
    raise ModelError(
        f"{type(unwrap(model)).__name__} has no list of its {count} layers",
        "use a decoder that keeps its layers in one ModuleList",
    )


def input_device(model: nn.Module) -> torch.device:
    """Where a model takes its tokens: of one that is spread over devices, where its embeddings run."""
    inner = unwrap(model)
    hook = getattr(inner.get_input_embeddings(), "_hf_hook", None) if hasattr(inner, "hf_device_map") else None
    if hook is None:
        return inner.device
    place = hook.execution_device  # the weights themselves may be on no device until they are used
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)


def input_embeddings(model: nn.Module) -> Tensor:
    """(V, d) the rows that tokens become."""
    return weight_of(unwrap(model).get_input_embeddings())


def weight_of(module: nn.Module, name: str = "weight") -> Tensor:
    """A weight of a module itself; one that is kept in main memory or on disk is fetched, where it is used."""
    with align_module_device(module):
        weight: Tensor = getattr(module, name)
    return weight


def lm_head(model: nn.Module) -> Head:
    """The LM head as tensors; a constant factor on the logits (Granite, Cohere, Inkling) is folded into the weight.

    The weight is the model's own parameter where there is no such factor, so that gradients reach it.

    Raises:
        ModelError: no output embeddings, or ones that an adapter replaced.
    """
    inner = unwrap(model)
    config = inner.config.get_text_config()
    linear = inner.get_output_embeddings()
    if linear is None or not isinstance(getattr(linear, "weight", None), Tensor) or hasattr(linear, "base_layer"):
        raise ModelError(
            f"{type(inner).__name__} has no plain linear LM head",
            "use a causal language model, and keep `lm_head` out of the LoRA targets",
        )
    weight, factor = weight_of(linear), _logit_factor(config)
    bias = None if getattr(linear, "bias", None) is None else weight_of(linear, "bias")
    if factor != 1.0:
        weight, bias = weight * factor, None if bias is None else bias * factor
    caps = (getattr(config, name, None) for name in _CAPS)
    return Head(weight, bias, next(filter(None, caps), None))


def _logit_factor(config: Any) -> float:
    kind = config.model_type
    # These divide by what others (HyperCLOVA X) multiply with under the same name.
    if kind.startswith(("granite", "minicpm")) and getattr(config, "logits_scaling", None):
        return 1.0 / config.logits_scaling
    if getattr(config, "logits_mup_width_multiplier", None):  # Inkling
        return 1.0 / config.logits_mup_width_multiplier
    for name in ("logit_scale", "lm_head_multiplier", "logits_scaling"):
        value = getattr(config, name, None)
        if isinstance(value, int | float):
            return float(value)
    return 1.0


@torch.no_grad()
def check_decoder(model: PreTrainedModel, name: str) -> None:
    """Run six tokens through the model and see that it is causal and that ``lm_head`` gives its logits.

    Raises:
        ModelError: a bidirectional model, last states of another width than all others (OPT-350m), or logits that are
            not the head of the final states.
    """
    ids = torch.tensor(_PROBE, device=input_device(model)) % unwrap(model).config.get_text_config().vocab_size
    states = final_states(model, input_ids=ids, attention_mask=torch.ones_like(ids))
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float()
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.03
    if not _close(logits[0, :2], logits[1, :2], tolerance):
        raise ModelError(
            f"{name} ({type(model).__name__}) looks at later tokens: it is an encoder", "use a decoder-only model"
        )
    width = getattr(unwrap(model).config.get_text_config(), "hidden_size", states.shape[-1])
    if states.shape[-1] != width:
        raise ModelError(
            f"{name} ({type(model).__name__}) projects its last states from {width} to {states.shape[-1]} before the "
            "LM head: one width does not hold for all layers",
            "use a model without this projection (every OPT but the 350m one)",
        )
    head = lm_head(model)
    found = head.logits(states.flatten(0, 1).to(head.weight.device)).to(logits.device)
    if not _close(found, logits.flatten(0, 1), tolerance):
        raise ModelError(
            f"the logits of {name} ({type(model).__name__}) are not its LM head on the final states",
            "use another architecture, or teach sra_core.models.structure.lm_head how this one makes its logits",
        )


def _close(left: Tensor, right: Tensor, tolerance: float) -> bool:
    return left.shape == right.shape and bool((left - right).abs().max() <= tolerance * right.abs().max())
