"""Models: where they come from, how a student starts, and what the method reads out of a forward pass.

Shapes: B batch, T tokens, d width, V vocabulary. Layers count from 1.
"""

from sra_core.models.attention import last_row_attention
from sra_core.models.identity import model_identity, tokenizer_identity
from sra_core.models.loading import load_model, load_tokenizer, pick_device
from sra_core.models.references import resolve
from sra_core.models.states import MappedStates, mapped_states
from sra_core.models.structure import layer_count, lm_head, resolve_layer
from sra_core.models.student import build_student
from sra_core.models.tokenizers import train_tokenizer

__all__ = [
    "MappedStates",
    "build_student",
    "last_row_attention",
    "layer_count",
    "lm_head",
    "load_model",
    "load_tokenizer",
    "mapped_states",
    "model_identity",
    "pick_device",
    "resolve",
    "resolve_layer",
    "tokenizer_identity",
    "train_tokenizer",
]
