from .attention import last_row_attention
from .batching import evaluating, pad, token_batches
from .centers import TeacherCapture, predicting
from .check import check_model, check_tokenizer, is_at_hand, require_embeddings
from .embeddings import source_tokens
from .ends import answer_ends, name_answer_end
from .forward import Layout, MappedStates, choose_layout, mapped_states
from .heads import TeacherHead, load_head, save_head
from .identity import model_identity, tokenizer_identity, tokenizer_identity_of
from .layers import layer_count_of, resolve_layer
from .licence import MADE_HERE, licence_of
from .likelihood import Likelihood, bits_per_byte, known_before, likelihood_table, response_likelihood
from .loading import load_model, load_tokenizer, pick_device
from .pair import load_kept_tokenizer, load_tokenizers, make_encoder, shared_tokens
from .references import resolve
from .spread import room_to_spread, spread_over
from .structure import input_embeddings, layer_count, lm_head
from .student import build_student, initial_student, spread_layers
from .tokenizers import train_tokenizer

__all__ = [
    "MADE_HERE",
    "Layout",
    "Likelihood",
    "MappedStates",
    "TeacherCapture",
    "TeacherHead",
    "answer_ends",
    "bits_per_byte",
    "build_student",
    "check_model",
    "check_tokenizer",
    "choose_layout",
    "evaluating",
    "initial_student",
    "input_embeddings",
    "is_at_hand",
    "known_before",
    "last_row_attention",
    "layer_count",
    "layer_count_of",
    "licence_of",
    "likelihood_table",
    "lm_head",
    "load_head",
    "load_kept_tokenizer",
    "load_model",
    "load_tokenizer",
    "load_tokenizers",
    "make_encoder",
    "mapped_states",
    "model_identity",
    "name_answer_end",
    "pad",
    "pick_device",
    "predicting",
    "require_embeddings",
    "resolve",
    "resolve_layer",
    "response_likelihood",
    "room_to_spread",
    "save_head",
    "shared_tokens",
    "source_tokens",
    "spread_layers",
    "spread_over",
    "token_batches",
    "tokenizer_identity",
    "tokenizer_identity_of",
    "train_tokenizer",
]
