"""From trained parameters to a Hugging Face folder that loads with no code of ours."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig

from sra_core.config import TrainingConfig
from sra_core.errors import StorageError, TrainingError
from sra_core.models.reading import read_weights
from sra_core.training.adapters import add_adapters

__all__ = ["export_model"]


def export_model(
    config: TrainingConfig,
    initial: Path,
    trained: Path,
    tokenizer: Any,
    folder: Path,
    *,
    trusted: bool = False,
    adapter: Path | None = None,
    merged: bool = True,
    card: str | None = None,
) -> None:
    """Put trained parameters into the initial model and save model, tokenizer and generation config.

    Folders appear whole or not at all.

    Args:
        config: Tells precision and adapters.
        initial: Hugging Face folder of the model before training.
        trained: Safetensors file of the trained parameters.
        tokenizer: The model's tokenizer; its chat template goes with it.
        folder: Where the model goes, adapters merged.
        trusted: Whether code that ``initial`` ships may run.
        adapter: Where the adapter alone goes (a peft folder); unset keeps none.
        merged: Write ``folder``; off writes the adapter alone.
        card: Text of the model card.

    Raises:
        TrainingError: The trained parameters are not those of this model.
        StorageError: The disk is full.
    """
    model: Any = read_weights(initial, "the model before training", dtype=torch.float32, trust_remote_code=trusted)
    if config.lora:
        model = add_adapters(config.lora, model)
    _load(model, trained)
    try:
        # Before the merge, which takes the adapter out of the model.
        if adapter is not None and config.lora:
            _save(adapter, model, tokenizer=None, card=None)
        if merged:
            # Merged in float32 and rounded once, when the whole is saved.
            plain = model.merge_and_unload() if config.lora else model
            plain.generation_config = _generation_config(initial, tokenizer)
            _save(folder, plain.to(getattr(torch, config.precision)), tokenizer, card)
    except OSError as error:
        raise StorageError(
            f"cannot write the model to {folder.parent}: {error}", "free space and run again: training is not repeated"
        ) from error


def _load(model: Any, trained: Path) -> None:
    tensors = load_file(trained)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != found:
        odd = sorted(name for name in {*shapes, *found} if shapes.get(name) != found.get(name))
        raise TrainingError(
            f"{trained} does not fit the model: {', '.join(odd[:5])}", f"delete {trained.parent} and train again"
        )
    # Frozen weights are not in the file; that nothing else is missing was checked above.
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)


def _generation_config(initial: Path, tokenizer: Any) -> GenerationConfig:
    """The initial model's, which names the end of answers, with the tokenizer's special tokens where it names none."""
    try:
        kept = GenerationConfig.from_pretrained(initial)
    except OSError:
        kept = GenerationConfig()
    # What is named stays: the end of a chat model's answers is not always the tokenizer's `eos_token`.
    for role in ("bos", "eos", "pad"):
        if getattr(kept, f"{role}_token_id") is None:
            setattr(kept, f"{role}_token_id", getattr(tokenizer, f"{role}_token_id"))
    return kept


def _save(folder: Path, model: Any, tokenizer: Any, card: str | None) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    if tokenizer is not None:
        tokenizer.save_pretrained(partial)
    if card is not None:
        (partial / "README.md").write_text(card)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
