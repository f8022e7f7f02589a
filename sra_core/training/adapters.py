"""Low-rank adapters on a model (peft), with the paper's targets by architecture."""

from __future__ import annotations

from typing import Any

import torch

from sra_core.config import LoraConfig
from sra_core.errors import ConfigError

__all__ = ["adapter_targets", "add_adapters"]

_USUAL = ("q_proj", "k_proj", "v_proj")
_TARGETS = {
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "gpt_neox": ("query_key_value",),
    "bloom": ("query_key_value",),
    "falcon": ("query_key_value",),
    "phi3": ("qkv_proj",),
}
"""Paper section 5: the attention's q, k and v; all linear maps of GPT-2. Others by their names for these."""


def adapter_targets(config: LoraConfig, model: Any) -> list[str]:
    """Names of the modules that get an adapter.

    Raises:
        ConfigError: The model has no module of such a name, or one of them is the LM head or shares its weights.
    """
    targets = list(config.targets or _TARGETS.get(model.config.model_type, _USUAL))
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "weight")}
    head = {
        name.rpartition(".")[2] for name, module in model.named_modules() if module is model.get_output_embeddings()
    }
    # merged into shared weights, an adapter of the embeddings would change the head, which was trained without it
    tied = {name for name in names - head if _shares_head(name, model)}
    if shared := sorted(tied & set(targets)):
        raise ConfigError(
            f"lora.targets: {', '.join(shared)} of {type(model).__name__} has the weights of its LM head too, which an "
            "adapter does not reach",
            "leave it out, or train all weights (lora: null)",
        )
    names -= tied
    missing = [target for target in targets if target not in names - head]
    if missing:
        raise ConfigError(
            f"lora.targets: {type(model).__name__} has no module named {', '.join(missing)} that can be adapted",
            f"choose from {', '.join(sorted(name for name in names - head if name and not name.isdigit()))}",
        )
    return targets


def _shares_head(name: str, model: Any) -> bool:
    """Whether a module of that name holds the LM head's own weights."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    modules = (module for path, module in model.named_modules() if path.rpartition(".")[2] == name)
    return weight is not None and any(getattr(module, "weight", None) is weight for module in modules)


def add_adapters(config: LoraConfig, model: Any, seed: int = 0) -> Any:
    """The model wrapped by trainable adapters, whose start depends on the seed alone; its own weights are frozen."""
    import peft

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=adapter_targets(config, model),
        fan_in_fan_out=model.config.model_type == "gpt2",  # its Conv1D keeps weights as (in, out)
        task_type="CAUSAL_LM",
    )
    # peft draws the adapters on the CPU; the caller's own draws go on as if it had drawn nothing.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.get_peft_model(model, settings)
