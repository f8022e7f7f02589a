"""Models: where they come from, how a student starts, and what the method reads out of a forward pass.

Shapes: B batch, T tokens, d width, V vocabulary. Layers count from 1.
"""

from sra_core.models.attention import last_row_attention
from sra_core.models.batching import evaluating, pad, token_batches
from sra_core.models.centers import TeacherCapture, predicting
from sra_core.models.forward import Layout, MappedStates, choose_layout, mapped_states
from sra_core.models.heads import TeacherHead, load_head, save_head
from sra_core.models.identity import model_identity, tokenizer_identity
from sra_core.models.likelihood import Likelihood, bits_per_byte, likelihood_table, response_likelihood
from sra_core.models.loading import load_model, load_tokenizer, pick_device
from sra_core.models.pair import load_tokenizers, make_encoder, shared_tokens
from sra_core.models.references import resolve
from sra_core.models.structure import layer_count, lm_head, resolve_layer
from sra_core.models.student import STUDENT, build_student, initial_student
from sra_core.models.tokenizers import train_tokenizer

__all__ = [
    "STUDENT",
    "Layout",
    "Likelihood",
    "MappedStates",
    "TeacherCapture",
    "TeacherHead",
    "bits_per_byte",
    "build_student",
    "choose_layout",
    "evaluating",
    "initial_student",
    "last_row_attention",
    "layer_count",
    "likelihood_table",
    "lm_head",
    "load_head",
    "load_model",
    "load_tokenizer",
    "load_tokenizers",
    "make_encoder",
    "mapped_states",
    "model_identity",
    "pad",
    "pick_device",
    "predicting",
    "resolve",
    "resolve_layer",
    "response_likelihood",
    "save_head",
    "shared_tokens",
    "token_batches",
    "tokenizer_identity",
    "train_tokenizer",
]
