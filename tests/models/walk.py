"""Every architecture of transformers' causal-LM mapping, tiny: the config shrunk by the names of its fields."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from sra_core.errors import ModelError
from sra_core.models import choose_layout, layer_count, lm_head, mapped_states
from sra_core.models.structure import check_decoder

LAYERS, WIDTH, HEADS, GROUPS, VOCABULARY = 4, 32, 4, 2, 120

SIZES: dict[str, int] = {
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), LAYERS
    ),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim"), WIDTH),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "encoder_attention_heads"), HEADS
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), GROUPS),
    **dict.fromkeys(("head_dim", "rotary_dim", "kv_channels", "attention_head_size", "swa_head_dim"), WIDTH // HEADS),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size"), 2 * WIDTH
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "num_experts_per_token", "moe_topk"), 2),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "adapter_rank"), 8),
    **dict.fromkeys(("mamba_n_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("mamba_d_state", "state_size", "mamba_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "max_position_embeddings": 512,
    "n_positions": 512,
}


LEFT_OUT = {
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "drafts from the cache of another model"),
    **dict.fromkeys(
        ("musicgen", "musicgen_melody"), "its decoder has a config of its own, which names no causal model"
    ),
    "dots3_note": "its towers for pictures and sound can't be shrunk so; dots3_note_text is its decoder",
    "gemma3n": "its vision tower needs the package timm; gemma3n_text is its decoder",
}


def names() -> list[str]:
    """Model types of the mapping that can be walked, in order."""
    known = (name for name, kind in CONFIG_MAPPING.items() if kind in MODEL_FOR_CAUSAL_LM_MAPPING)
    return sorted(set(known) - set(LEFT_OUT))


def shrunk(values: dict[str, Any]) -> dict[str, Any]:
    """A config's values, small: known sizes, lists of one entry a layer cut, ids inside the vocabulary."""
    count = next((values[name] for name in SIZES if SIZES[name] == LAYERS and isinstance(values.get(name), int)), None)
    small: dict[str, Any] = {}
    for name, value in values.items():
        if name == "per_layer_config":
            value = {}  # sizes of single layers
        elif isinstance(value, dict) and name.endswith("_config"):
            value = shrunk(value) | OVERRIDES.get(value.get("model_type", ""), {})
        elif name in SIZES and isinstance(value, int):
            value = min(value, SIZES[name])
        elif name in ASKED and value is None:
            value = SIZES[name]
        elif "vocab_size" in name and isinstance(value, int):
            value = min(value, VOCABULARY)
        elif name.endswith(("token_id", "token_index")):
            value = value and (value % VOCABULARY if isinstance(value, int) else 1)
        elif isinstance(value, list) and count and len(value) == count and count > LAYERS:
            value = value[:LAYERS]
        elif isinstance(value, int) and not isinstance(value, bool) and value > 256 and "rank" in name:
            value = 8
        small[name] = value
    return small


ASKED = ("head_dim", "n_routed_experts", "num_experts_per_tok", "num_key_value_heads")  # unset in some configs

_MLA = {"num_key_value_heads": HEADS, "head_dim": 8}  # one key a head, whose rotary part alone `head_dim` names
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_CONVOLUTIONS = {"layer_types": ["conv", "full_attention"] * 2}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
_SHARED = {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2}
_BYTES = {"num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "intermediate_size": 2 * WIDTH, "vocab_size": 260}
_SHARED_BLOCKS = {
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "num_key_value_heads": HEADS,
    "attention_hidden_size": 2 * WIDTH,
    "attention_head_dim": 2 * WIDTH // HEADS,
}
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "minicpm3"), _MLA),
    **dict.fromkeys(("sarvam_mla", "youtu", "glm4_moe_lite"), _MLA),
    "bailing_hybrid": _MLA
    | {
        "num_expert_group": 1,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "mlp_layer_types": ["dense"] * 4,
    }
    | {"linear_head_dim": 8, "linear_num_heads": HEADS, "qk_head_dim": 16},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dots1": {"n_shared_experts": 1},
    "lfm2": _CONVOLUTIONS,
    "lfm2_moe": _CONVOLUTIONS,
    "longcat_flash": _MLA | {"qk_head_dim": 16, "expert_ffn_hidden_size": 16, "zero_expert_num": 2},
    "gemma4_text": {"hidden_size_per_layer_input": 8},
    "xlnet": {"d_head": WIDTH // HEADS},
    "xmod": {"default_language": "en_XX"},
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "granitemoehybrid": _MAMBA | {"layer_types": ["mamba", "attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "gemma3n_text": _SHARED
    | {"hidden_size_per_layer_input": 8, "laurel_rank": 4, "intermediate_size": [64] * 4}
    | {"activation_sparsity_pattern": [0.0] * 4, "vocab_size_per_layer_input": VOCABULARY},
    **dict.fromkeys(("axk2", "deepseek_v32", "glm_moe_dsa"), _MLA | {"index_topk": 8, "index_n_heads": 2}),
    "blt": {
        "encoder_hash_byte_group_vocab": 500,
        "patcher_config": {**_BYTES, "hidden_size": WIDTH},
        "encoder_config": {**_BYTES, "hidden_size": WIDTH, "hidden_size_global": 2 * WIDTH},
        "decoder_config": {**_BYTES, "hidden_size": WIDTH, "hidden_size_global": 2 * WIDTH},
        "global_config": {**_BYTES, "hidden_size": 2 * WIDTH},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": GROUPS, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 2 * WIDTH, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dory": {
        "n_input_layers": 1,
        "n_recurrent_layers": 2,
        "n_output_layers": 1,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "dots3_note_text": _MLA
    | {"head_dim": 16, "index_topk": 8, "index_n_heads": 2, "shared_experts_intermediate_size": 16},
    "qwen4_exp_text": {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
    | {"linear_num_value_heads": HEADS, "ngram_vocab_size_base": 100, "make_ngram_vocab_size_divisible_by": 8}
    | {"hc_lowrank": 8, "split_ngram_parts": 1, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8}
    | {"indexer_budget": 8, "indexer_compress_ratio": 2},
    "reformer": {"is_decoder": True, "attn_layers": ["local", "lsh"] * 2, "axial_pos_embds": False, "num_buckets": 4}
    | {"feed_forward_size": 64, "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "hash_seed": 0},
    "xlstm": {"embedding_dim": WIDTH, "num_blocks": LAYERS, "num_heads": HEADS, "chunk_size": 16},
    "zamba": _SHARED_BLOCKS | {"mamba_dt_rank": 2},
    "zamba2": _SHARED_BLOCKS
    | {
        "n_mamba_heads": HEADS,
        "hybrid_layer_ids": [1, 3],
        "mamba_headdim": 16,
        "kv_channels": 8,
        "num_query_groups": HEADS,
    },
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "kimi_linear": _MLA
    | {"layer_types": ["linear_attention", "full_attention"] * 2, "mlp_layer_types": ["dense"] * 4}
    | {"linear_head_dim": 8, "linear_num_heads": HEADS},
    "xlm": {"emb_dim": WIDTH},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
}


def tiny_config(name: str) -> PreTrainedConfig:
    kind = CONFIG_MAPPING[name]
    return kind(**shrunk(kind().to_dict()) | OVERRIDES.get(name, {}))


def tiny_model(name: str, std: float = 0.2) -> PreTrainedModel:
    """A random model in float32, with matrices large enough for attention to be far from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(name), dtype=torch.float32)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "norm" not in parameter_name:
                    parameter.normal_(0, std)
    return model.eval()


LENGTHS = (9, 1, 14, 5, 40)


def outcome(name: str) -> str:
    """What becomes of an architecture: how it is run exactly and which layers have attention rows, or why it isn't.

    Raises:
        AssertionError: states or layers that differ from those of transformers, one text at a time.
    """
    model = tiny_model(name)
    try:
        check_decoder(model, name)
        layout = choose_layout(model, longest=LENGTHS[-1])
    except ModelError as error:
        return f"refused: {error.problem}"
    count = layer_count(model)
    layers = [layer for layer in range(1, count + 1) if layer not in layout.unreadable]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 100, (sum(LENGTHS),), generator=generator)
    starts = torch.tensor([0, *LENGTHS]).cumsum(0)
    with torch.no_grad():
        found = mapped_states(model, ids, starts, layers, attention=False)
        for text, (begin, end) in zip(ids.split(LENGTHS), pairwise(starts.tolist()), strict=True):
            whole = model(input_ids=text[None], use_cache=False, output_hidden_states=True)
            logits = lm_head(model).logits(found.final[begin:end])
            assert near(logits, whole.logits[0]), f"{name}: logits"
            for layer in [each for each in layers if each < count]:
                # Mamba's hidden states begin after the first layer, all others' before it
                known = whole.hidden_states
                if len(known) == count + 1:  # else layers are run in loops, and each time counts
                    known = known[layer - 1 : layer + 1]
                own = found.hidden[layer][begin:end]
                assert any(near(own, each[0]) for each in known), f"{name}: layer {layer}"
        rows = [layer for layer in layers if _has_row(model, ids, starts, layer)]
    way = "flat" if layout.flat else "one text at a time" if layout.alone else "padded"
    return f"{way}; states {_some(layers, count)}; rows {_some(rows, count)}"


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-4 * expected.norm())


def _has_row(model: PreTrainedModel, ids: torch.Tensor, starts: torch.Tensor, layer: int) -> bool:
    try:
        weights = mapped_states(model, ids, starts, [layer]).weights[layer]
    except ModelError:
        return False
    assert torch.allclose(torch.stack([part.sum() for part in weights.split(LENGTHS)]), torch.ones(len(LENGTHS)))
    return True


def _some(layers: list[int], count: int) -> str:
    return "all" if len(layers) == count else ",".join(map(str, layers)) or "none"
