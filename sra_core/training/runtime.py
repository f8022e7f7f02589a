"""DeepSpeed's settings and start-up on this machine."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from sra_core.config import TrainingConfig, merged
from sra_core.errors import ConfigError

__all__ = ["deepspeed_settings", "make_optimizer", "quiet_libraries", "start_processes"]

_INSTEAD = {
    "train_micro_batch_size_per_gpu": "batch_size and micro_batch",
    "gradient_accumulation_steps": "accumulation",
    "train_batch_size": "batch_size, accumulation and processes",
    "gradient_clipping": "clip",
    "optimizer": "learning_rate and weight_decay",
    "scheduler": "warmup and min_learning_rate",
}
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16"}


def deepspeed_settings(config: TrainingConfig, micro_batch: int, forwards: int, section: str) -> dict[str, Any]:
    """DeepSpeed's JSON: what the run config says, then ``deepspeed`` of the section merged over it, key by key.

    Args:
        config: How to train.
        micro_batch: Examples of one process in one forward.
        forwards: Forwards of one process in one step.
        section: Section of the run config, for messages.

    Raises:
        ConfigError: ``deepspeed`` sets a key that the config itself decides, or contradicts it.
    """
    for key, instead in _INSTEAD.items():
        if key in config.deepspeed:
            raise ConfigError(
                f"{section}.deepspeed.{key} is decided by the run config", f"remove it; set {section}'s {instead}"
            )
    made: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": forwards,
        # In plain float32 the trainer clips itself, which also lets it drop a step that is not finite.
        "gradient_clipping": 0.0 if config.zero_stage == 0 and config.precision == "float32" else config.clip,
        "zero_optimization": _zero(config),
        "zero_allow_untested_optimizer": True,  # torch's AdamW; DeepSpeed's own are compiled at first use
        "zero_force_ds_cpu_optimizer": False,  # else offload is refused with any optimizer but DeepSpeed's CPU Adam
        "steps_per_print": 10**9,  # the trainer reports
        "wall_clock_breakdown": False,
    }
    if config.precision in _PRECISIONS:
        made[_PRECISIONS[config.precision]] = {"enabled": True}
    settings = merged(made, config.deepspeed)
    _agree(config, settings, section)
    return settings


def _zero(config: TrainingConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if config.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return zero


def _agree(config: TrainingConfig, settings: Mapping[str, Any], section: str) -> None:
    """What the loop itself must know cannot be changed behind its back."""
    if settings["zero_optimization"].get("stage") != config.zero_stage:
        raise ConfigError(
            f"{section}.deepspeed.zero_optimization.stage contradicts the run config",
            f"remove it and set {section}.zero_stage (0 is run as 1 in bfloat16 and float16)",
        )
    for name, key in _PRECISIONS.items():
        if bool(settings.get(key, {}).get("enabled")) != (config.precision == name):
            raise ConfigError(
                f"{section}.deepspeed.{key}.enabled contradicts the run config", f"set {section}.precision"
            )


def quiet_libraries() -> None:
    """No progress bars and start-up notes of transformers and DeepSpeed; their errors still show."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.|peft\.")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # found by itself, it announces that it found nothing else


def start_processes(device: str, precision: str) -> torch.device:
    """Join the training processes (environment set by the launcher) and return this one's device.

    Raises:
        ConfigError: The device cannot compute in this precision, or there are fewer GPUs than processes.
    """
    on_gpu = device.startswith("cuda")
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if on_gpu and local >= gpus:
        raise ConfigError(
            f"training process {local} of this machine has no GPU: there are {gpus}",
            f"set processes to {gpus} here, or let torchrun start them on several machines (docs/gpu.md)",
        )
    if not on_gpu:
        # Before the import: DeepSpeed chooses its accelerator once, and on a machine with a GPU would take that.
        os.environ["DS_ACCELERATOR"] = "cpu"
    quiet_libraries()
    sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]  # DeepSpeed's autotuner would spend seconds on it
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops import __compatible_ops__
    from deepspeed.utils import logger

    # Again: DeepSpeed sets a level of its own when it is imported, over what `quiet_libraries` has set.
    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"torch\.|deepspeed\.")
    accelerator = get_accelerator()
    if (precision == "float16" and not accelerator.is_fp16_supported()) or (
        precision == "bfloat16" and not accelerator.is_bf16_supported()
    ):
        raise ConfigError(f"this device cannot train in {precision}", "set precision to bfloat16 or float32")
    # Compiled at first use, for over a minute; gloo carries the few megabytes of a CPU run just as well.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", verbose=False)
    if not on_gpu:
        return torch.device("cpu")
    torch.cuda.set_device(local)
    if precision == "float32":
        torch.set_float32_matmul_precision("high")  # TF32: ten bits of mantissa, many times the speed
    return torch.device("cuda", local)


def make_optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW, fused: one pass over weights and moments, on CPUs too (DeepSpeed's own CPU Adam wants a compiler)."""
    return torch.optim.AdamW(groups, fused=True)
