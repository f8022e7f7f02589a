"""The paper's pairs end to end, as their recipes are written: its architectures, layers, tokenizers and weight files.

Models are random, as narrow as they can be and as deep as the recipe's layer pairs ask for. Of the recipe only paths,
batch sizes and the number of texts, steps and generated tokens are set.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from sra_core import stages
from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.doctor import examine
from tests.alignment.tokenizers import load

NARROW: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


def qwen(layers: int, vocabulary: int) -> PreTrainedConfig:
    return Qwen2Config(
        vocab_size=vocabulary + 293,  # Qwen's embeddings are longer than its tokenizer
        num_hidden_layers=layers,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        **NARROW,
    )


def mistral(layers: int, vocabulary: int) -> PreTrainedConfig:
    return MistralConfig(
        vocab_size=vocabulary, num_hidden_layers=layers, num_key_value_heads=1, sliding_window=4096, **NARROW
    )


def llama(layers: int, vocabulary: int) -> PreTrainedConfig:
    return LlamaConfig(vocab_size=vocabulary, num_hidden_layers=layers, num_key_value_heads=1, **NARROW)


def gpt2(layers: int, vocabulary: int) -> PreTrainedConfig:
    return GPT2Config(vocab_size=vocabulary, n_layer=layers, n_embd=16, n_head=2, n_positions=1024)


def opt(layers: int, vocabulary: int) -> PreTrainedConfig:
    return OPTConfig(
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        hidden_size=16,
        word_embed_proj_dim=16,
        num_attention_heads=2,
        ffn_dim=32,
        max_position_embeddings=2048,
    )


ROLES: dict[str, tuple[Any, str]] = {
    "qwen": (qwen, "qwen"),
    "mistral": (mistral, "mistral"),
    "llama": (llama, "byte-fallback"),
    "gpt2": (gpt2, "byte-level"),
    "opt": (opt, "byte-level"),
}
PAIRS = {
    "paper-qwen1.5-1.8b-gpt2-120m": (("qwen", 24), ("gpt2", 12)),
    "paper-qwen1.5-1.8b-gpt2-340m": (("qwen", 24), ("gpt2", 24)),
    "paper-qwen2.5-7b-gpt2-1.5b": (("qwen", 28), ("gpt2", 48)),
    "paper-qwen2.5-7b-opt-2.7b": (("qwen", 28), ("opt", 32)),
    "paper-mistral-7b-tinyllama-1.1b": (("mistral", 32), ("llama", 22)),
    "paper-gpt2-1.5b-gpt2-120m": (("gpt2", 48), ("gpt2", 12)),
}
PICKLED = ("opt", "llama")
"""Whose weights come pickled alone, as those of facebook/opt-2.7b and TinyLlama/TinyLlama_v1.1."""


def make(folder: Path, kind: str, layers: int) -> Path:
    """A model folder of an architecture, with the tokenizer and the kind of weight files that the hub's has."""
    build, name = ROLES[kind]
    tokenizer: PreTrainedTokenizerFast | None = load(name)
    if tokenizer is None:
        pytest.skip(f"no package ships the tokenizer {name} here")
    ids = {f"{role}_token_id": tokenizer.eos_token_id for role in ("bos", "eos", "pad")}
    config = build(layers, len(tokenizer))
    config.update(ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if kind in PICKLED:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return folder


def dolly(path: Path, count: int) -> Path:
    """Examples with the columns of Dolly."""
    rows = [
        {
            "instruction": f"How many apples are {number} apples and {number % 7} more?",
            "context": "Apples are counted one by one." if number % 3 else "",
            "response": f"The answer is {number + number % 7}: count {number} first, then the other {number % 7}.",
            "category": "open_qa",
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(params=PAIRS)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> RunConfig:
    (teacher, above), (student, below) = PAIRS[request.param]
    held_out = [
        {"instruction": f"Name the number {number}.", "input": "", "output": f"It is {number}."} for number in range(3)
    ]
    (tmp_path / "vicuna.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    few = {
        "store": str(tmp_path / "store"),
        "tracking": {"enabled": False},
        "teacher": {"source": str(make(tmp_path / "teacher", teacher, above))},
        "student": {"source": str(make(tmp_path / "student", student, below))},
        "corpus": {"source": str(dolly(tmp_path / "dolly.jsonl", 80))},
        "distill": {"batch_size": 4, "accumulation": 2, "max_steps": 3},
        "evaluate": {
            "datasets": [{"name": "vicuna", "source": str(tmp_path / "vicuna.jsonl"), "layout": "alpaca"}],
            "protocol": "custom",
            "max_new_tokens": 8,
            "temperature": 1.0,
        },
    }
    return load_config(request.param, few)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_pair_of_the_paper_from_its_recipe_to_its_scores(config: RunConfig) -> None:
    assert [finding.text for finding in examine(config) if finding.level == "bad"] == []
    done = stages.run(config)
    trained = done["distill"]
    lines = [json.loads(line) for line in (Path(trained.folder) / "history.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "train/loss" in line)
    assert last["step"] == trained.metrics["distill/steps"] == 3
    for term in ("loss", "ce", "cosine", "geometry", "logit"):
        assert math.isfinite(last[f"train/{term}"]), term
    pickled = any(path.suffix == ".bin" for path in Path(config.student.source).iterdir())
    assert ("pickled" in json.dumps(trained.identity)) is pickled
    student = AutoModelForCausalLM.from_pretrained(Path(trained.folder) / "student")
    assert all(torch.isfinite(tensor).all() for tensor in student.state_dict().values())
    assert any("vicuna" in name for name in done["evaluate"].metrics)
