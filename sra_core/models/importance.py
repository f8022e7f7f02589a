"""How much each layer changes its input, measured on a sample: which layers a pruned student keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sra_core.models.structure import decoder_of, layers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["layer_importance"]

_LONGEST = 256  # tokens of a sample text that are looked at


@torch.no_grad()
def layer_importance(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[float]:
    """One number a layer: 1 minus the mean cosine between what goes in and what comes out, over all tokens.

    A layer near 0 passes its input on almost unchanged. Source: block influence, arXiv 2403.03853.
    """
    layers = layers_of(model)
    sums, tokens = [0.0] * len(layers), 0

    def measure(index: int) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            # Some architectures call their layers by position, some by name.
            before: Tensor = args[0] if args else kwargs["hidden_states"]
            after: Tensor = output[0] if isinstance(output, tuple) else output
            sums[index] += float((1 - torch.cosine_similarity(before.float(), after.float(), dim=-1)).sum())

        return hook

    handles = [layer.register_forward_hook(measure(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=_LONGEST)["input_ids"]
            if ids.shape[1]:
                decoder_of(model)(input_ids=ids.to(model.device), use_cache=False)
                tokens += ids.shape[1]
    finally:
        for handle in handles:
            handle.remove()
    return [total / max(tokens, 1) for total in sums]
