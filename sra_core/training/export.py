"""From trained parameters to a Hugging Face folder that loads with no code of ours."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sra_core.config import DistillConfig
from sra_core.errors import TrainingError
from sra_core.training.adapters import add_adapters

__all__ = ["export_student"]


def export_student(config: DistillConfig, initial: Path, trained: Path, tokenizer: Any, folder: Path) -> None:
    """Put trained parameters into the initial student and save model, tokenizer and generation config.

    Adapters are merged. The folder appears whole or not at all.

    Args:
        config: Tells precision and adapters.
        initial: Hugging Face folder of the student before training.
        trained: Safetensors file of the trained parameters.
        tokenizer: The student's tokenizer.
        folder: Where the student goes.

    Raises:
        TrainingError: The trained parameters are not those of this student.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float32)
    if config.lora:
        model = add_adapters(config.lora, model)
    tensors = load_file(trained)
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if wanted != set(tensors):
        odd = sorted(wanted ^ set(tensors))
        raise TrainingError(
            f"{trained} does not fit the student: {', '.join(odd[:5])}", f"delete {trained.parent} and distill again"
        )
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    if config.lora:
        model = model.merge_and_unload()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(getattr(torch, config.precision)).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
