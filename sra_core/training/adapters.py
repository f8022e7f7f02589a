"""Low-rank adapters on the student (peft), with the paper's targets by architecture."""

from __future__ import annotations

from typing import Any

from sra_core.config import LoraConfig
from sra_core.errors import ConfigError

__all__ = ["adapter_targets", "add_adapters"]

_TARGETS = {"gpt2": ["c_attn", "c_proj", "c_fc"], "gpt_neox": ["query_key_value"], "phi3": ["qkv_proj"]}
_USUAL = ["q_proj", "k_proj", "v_proj"]


def adapter_targets(config: LoraConfig, model: Any) -> list[str]:
    """Names of the modules that get an adapter.

    Raises:
        ConfigError: The model has no module of such a name.
    """
    targets = config.targets or _TARGETS.get(model.config.model_type, _USUAL)
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [target for target in targets if target not in names]
    if missing:
        raise ConfigError(
            f"distill.lora.targets: {type(model).__name__} has no module named {', '.join(missing)}",
            f"choose from {', '.join(sorted(name for name in names if name and not name.isdigit()))}",
        )
    return targets


def add_adapters(config: LoraConfig, model: Any) -> Any:
    """The model wrapped by trainable adapters; its own weights are frozen."""
    import peft

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=adapter_targets(config, model),
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, settings)
