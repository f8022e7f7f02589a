"""Two models, tokenizers and a corpus whose bytes depend on no version of Python, torch or transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

WIDTH, LAYERS, POSITIONS = 16, 3, 160

_WORDS = ("function", "class", "return", "string", "number", "list of", "file", "value", "with", "the", "and", "is")


def write_corpus(path: Path) -> Path:
    """Thirty-six questions and answers, some with white space, accents and emoji."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(36):
            words = [_WORDS[(number * step) % len(_WORDS)] for step in range(1, 4 + number % 9)]
            answer = f"It is {' '.join(words)}.\n    naïve = {number}  # 🦊" if number % 5 == 0 else " ".join(words)
            line = {"id": f"e{number}", "instruction": f"What does item {number} do?", "response": answer}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


def write_llama(folder: Path) -> Path:
    """A Llama of three layers with a tokenizer of words and bytes."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (0, WIDTH),
        "lm_head.weight": (0, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{name}.self_attn.{part}.weight"] = (WIDTH, WIDTH)
        shapes[f"{name}.mlp.gate_proj.weight"] = shapes[f"{name}.mlp.up_proj.weight"] = (2 * WIDTH, WIDTH)
        shapes[f"{name}.mlp.down_proj.weight"] = (WIDTH, 2 * WIDTH)
        shapes[f"{name}.input_layernorm.weight"] = shapes[f"{name}.post_attention_layernorm.weight"] = (WIDTH,)
    return _write(folder, config, shapes, ["Ġthe", "Ġis", "Ġa", "ing", "Ġstring", "Ġlist", "return", "Ġ#"], seed=1)


def write_gpt2(folder: Path) -> Path:
    """A GPT-2 of three layers with other words in its tokenizer."""
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": 2,
        "n_positions": POSITIONS,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (0, WIDTH),
        "transformer.wpe.weight": (POSITIONS, WIDTH),
        "transformer.ln_f.weight": (WIDTH,),
        "transformer.ln_f.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        name = f"transformer.h.{layer}"
        for part, rows, columns in (
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH),
            ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ):
            shapes[f"{name}.{part}.weight"] = (rows, columns)
            shapes[f"{name}.{part}.bias"] = (columns,)
        for part in ("ln_1", "ln_2"):
            shapes[f"{name}.{part}.weight"] = shapes[f"{name}.{part}.bias"] = (WIDTH,)
    return _write(folder, config, shapes, ["Ġt", "he", "Ġan", "Ġnumber", "Ġval", "ue", "Ġf", "ile"], seed=2)


def _write(
    folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], words: list[str], seed: int
) -> Path:
    folder.mkdir(parents=True)
    vocabulary = _write_tokenizer(folder, words)
    random = np.random.RandomState(seed)  # its stream is frozen, other generators' may change
    tensors = {}
    for name, shape in sorted(shapes.items()):
        values = random.randn(*(vocabulary if size == 0 else size for size in shape)).astype(np.float32) / 8
        tensors[name] = torch.from_numpy(values + (1 if "norm" in name or ".ln_" in name else 0)).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ids = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": vocabulary, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps({**config, **ids}))
    return folder


def _write_tokenizer(folder: Path, words: list[str]) -> int:
    """Byte-level BPE: one special token, the 256 bytes, and these words with all merges that lead to them."""
    vocabulary = {"<|end|>": 0}
    for letter in sorted(ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                merges.append((word[: end - 1], word[end - 1]))
                vocabulary[word[:end]] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    role = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "bos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(role))
    return len(vocabulary)
