"""DeepSpeed's settings and start-up on this machine."""

from __future__ import annotations

import os
from typing import Any

import torch

from sra_core.config import DistillConfig, merged
from sra_core.errors import ConfigError

__all__ = ["deepspeed_settings", "make_optimizer", "start_processes"]

_OWNED = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "optimizer", "scheduler")


def deepspeed_settings(config: DistillConfig) -> dict[str, Any]:
    """DeepSpeed's JSON from the config, with ``distill.deepspeed`` merged over it.

    Raises:
        ConfigError: ``distill.deepspeed`` sets a key that the config itself decides.
    """
    for key in _OWNED:
        if key in config.deepspeed:
            raise ConfigError(f"distill.deepspeed.{key} is decided by the run config", f"remove it; {_INSTEAD[key]}")
    made: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip,
        "zero_optimization": {"stage": config.zero_stage, "stage3_gather_16bit_weights_on_model_save": True},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if config.precision == "bfloat16":
        made["bf16"] = {"enabled": True}
    elif config.precision == "float16":
        made["fp16"] = {"enabled": True}
    return merged(made, config.deepspeed)


_INSTEAD = {
    "train_micro_batch_size_per_gpu": "set distill.batch_size",
    "gradient_accumulation_steps": "set distill.accumulation",
    "train_batch_size": "set distill.batch_size, distill.accumulation and distill.processes",
    "optimizer": "set distill.learning_rate and distill.weight_decay",
    "scheduler": "set distill.warmup and distill.min_learning_rate",
}


def start_processes(device: str) -> torch.device:
    """Join the training processes (environment set by the launcher) and return this one's device."""
    on_gpu = device.startswith("cuda")
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    # Compiled at first use, for over a minute; gloo carries the few megabytes of a CPU run just as well.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", verbose=False)
    if not on_gpu:
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def make_optimizer(groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """AdamW: fused on a GPU, plain elsewhere (DeepSpeed's own CPU Adam wants a compiler)."""
    return torch.optim.AdamW(groups, fused=device.type == "cuda")
