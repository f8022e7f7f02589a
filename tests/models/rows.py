"""Tiny random models and rows that need no tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Row:
    """The fields of a prepared row that evaluation reads."""

    id: str
    teacher_ids: np.ndarray
    student_ids: np.ndarray
    teacher_response: int
    student_response: int
    prompt: str
    response: str
    source: str = "made"


def build_model(kind: str, vocabulary: int = 97, seed: int = 0):
    from transformers import (
        AutoModelForCausalLM,
        Gemma2Config,
        GPT2Config,
        GPTNeoXConfig,
        LlamaConfig,
        MistralConfig,
        OPTConfig,
    )

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": vocabulary}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    wide = {"intermediate_size": 64, "max_position_embeddings": 256, "initializer_range": 0.3}
    configs = {
        "llama": lambda: LlamaConfig(**shape, **special, **wide, num_key_value_heads=2),
        "mistral": lambda: MistralConfig(**shape, **special, **wide, num_key_value_heads=2, sliding_window=16),
        "neox": lambda: GPTNeoXConfig(**shape, **special, **wide),
        "gemma2": lambda: Gemma2Config(
            **shape, **special, **wide, num_key_value_heads=2, head_dim=8, sliding_window=16,
            final_logit_softcapping=5.0, query_pre_attn_scalar=8,
        ),
        "gpt2": lambda: GPT2Config(
            vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3, **special
        ),
        "opt": lambda: OPTConfig(
            **shape, **special, ffn_dim=64, max_position_embeddings=256, init_std=0.3, word_embed_proj_dim=32
        ),
    }  # fmt: skip
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(configs[kind]()).eval()


def build_rows(count: int, vocabulary: int = 97, seed: int = 0) -> list[Row]:
    random = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        prompts, responses = random.integers(2, 30, 2), random.integers(1, 25, 2)
        ids = [
            np.append(random.integers(2, vocabulary, p + r), 1).astype(np.int32)
            for p, r in zip(prompts, responses, strict=True)
        ]
        text = "é" * int(random.integers(1, 9)) + "x" * int(random.integers(0, 50))
        rows.append(Row(f"row-{index}", *ids, int(prompts[0]), int(prompts[1]), f"prompt {index}", text))
    return rows
