"""Loading a model: what is accepted, what is refused and why."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    dynamic_module_utils,
)

from sra_core.config import ModelRef
from sra_core.errors import ConfigError, ModelError
from sra_core.models import (
    last_row_attention,
    layer_count_of,
    load_model,
    load_tokenizer,
    model_identity,
    pick_device,
    resolve,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder of its own, to spoil."""
    return Path(shutil.copytree(resolve(ModelRef(source="random:llama")), tmp_path / "model"))


def reference(folder: Path) -> ModelRef:
    return ModelRef(source=str(folder))


def test_mode_type_attention_and_device(folder: Path) -> None:
    model = load_model(reference(folder))
    assert not model.training
    assert model.dtype == torch.float32
    assert model.config._attn_implementation == "sdpa"
    assert model.device == torch.device("cpu")
    assert load_model(reference(folder), "bfloat16").dtype == torch.bfloat16
    assert load_model(reference(folder), "float16", "auto").dtype == torch.float16


def test_an_architecture_without_sdpa_falls_back() -> None:
    assert load_model(ModelRef(source="random:gemma2")).config._attn_implementation == "eager"


def test_only_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model.bin\), which can run code"):
        load_model(reference(folder))


def test_no_weights_and_no_config(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        load_model(reference(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model(reference(folder))


def test_sharded_weights(folder: Path) -> None:
    model = load_model(reference(folder))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    again = load_model(reference(folder))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    identity = model_identity(reference(folder))
    shards[0].unlink()
    with pytest.raises(ModelError, match=f"lacks weight files: {shards[0].name}"):
        model_identity(reference(folder))
    assert len(identity["weights"]) == 64


def test_a_single_file_counts_before_an_index_as_it_does_when_it_is_read(folder: Path) -> None:
    single = model_identity(reference(folder))
    load_model(reference(folder)).save_pretrained(folder, max_shard_size="60KB")
    assert (folder / "model.safetensors.index.json").is_file()
    assert model_identity(reference(folder))["weights"] == single["weights"]
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert model_identity(reference(folder))["weights"] != single["weights"]
    for shard in folder.glob("model-*.safetensors"):
        shard.unlink()
    assert torch.equal(load_model(reference(folder)).model.norm.weight, tensors["model.norm.weight"] + 1)


def test_torn_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors is cut short or no safetensors file"):
        load_model(reference(folder))


Tensors = dict[str, torch.Tensor]
LOST = "model.layers.0.mlp.down_proj.weight"
SPOILED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "one is missing": (lambda kept: {k: v for k, v in kept.items() if k != LOST}, rf"lack 1 tensors .*: {LOST}\n"),
    "no LM head": (
        lambda kept: {k: v for k, v in kept.items() if k != "lm_head.weight"},
        r"lack 1 .*: lm_head.weight\n",
    ),
    "a wrapper's prefix": (
        lambda kept: {f"_orig_mod.{k}": v for k, v in kept.items()},
        r"lack 21 tensors .*: lm_head.weight, .*; 21 tensors .* are not part of Llama.*: _orig_mod.lm_head",
    ),
    "packed by a quantizer": (
        lambda kept: {k.replace("down_proj.weight", "down_proj.qweight"): v for k, v in kept.items()},
        r"lack 2 tensors .*; 2 tensors .* are not part .*down_proj.qweight",
    ),
    "another shape": (
        lambda kept: kept | {LOST: torch.ones(3)},
        rf"not shaped as .*: {LOST} is \(3,\), not \(32, 64\)",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_weights_that_would_be_random_are_refused(folder: Path, case: str) -> None:
    spoil, message = SPOILED[case]
    save_file(spoil(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=message):
        load_model(reference(folder))


def test_spare_weights_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = load_file(folder / "model.safetensors")
    save_file(kept | {"vision.weight": torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})
    load_model(reference(folder))
    assert "not part of LlamaForCausalLM: vision.weight; they are left out" in caplog.text


def test_a_tied_head_is_not_missing() -> None:
    ref = ModelRef(source="random:gpt2")
    assert "lm_head.weight" not in load_file(Path(resolve(ref)) / "model.safetensors")
    load_model(ref)


def test_a_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is cut short or no JSON"):
        load_model(reference(folder))


def test_an_encoder(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=40)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"holds an encoder \(bert\)"):
        load_model(reference(tmp_path))


def test_an_encoder_decoder(tmp_path: Path) -> None:
    config = T5Config(vocab_size=40, d_model=8, d_ff=8, num_layers=1, num_heads=2, d_kv=4)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    for read in (load_model, layer_count_of):
        with pytest.raises(ModelError, match=r"holds an encoder-decoder \(t5\)"):
            read(reference(tmp_path))


def test_the_decoder_of_a_bart_is_not_loaded_alone(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    config = BartConfig(vocab_size=40, decoder_attention_heads=2, max_position_embeddings=20, **sizes)
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    for read in (load_model, layer_count_of):
        with pytest.raises(ModelError, match=r"holds an encoder-decoder \(bart\)"):
            read(reference(tmp_path))


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_the_model_runs_only_when_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(OWN_CODE)
    with pytest.raises(ModelError, match="if you trust it, set trust_remote_code"):
        load_model(reference(folder))
    trusted = ModelRef(source=str(folder), trust_remote_code=True)
    model = load_model(trusted)
    assert type(model).__name__ == "OwnForCausalLM"
    with torch.no_grad(), last_row_attention(model, [1]) as rows:
        model(input_ids=torch.tensor([[1, 2, 3]]))
    assert rows[1].shape == (1, 3)
    assert load_tokenizer(trusted).eos_token_id == 0
    identity = model_identity(trusted)
    (folder / "own.py").write_text(OWN_CODE + "# changed\n")
    assert model_identity(trusted)["code"] != identity["code"]


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_devices_without_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(name) == "cpu"


def test_devices_with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == "cuda"
    assert [pick_device(name) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    with pytest.raises(ConfigError, match=r"no device 'cuda:2' on this machine \(2 CUDA devices\)"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "gpu", "cuda:x", "tpu"])
def test_devices_that_are_not_here(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="use `auto`, `cpu` or `cuda:N`"):
        pick_device(name)


def test_threads_load_one_model_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, inside, most = AutoModelForCausalLM.from_pretrained, [0], [0]

    def slow(*arguments: Any, **options: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)  # long enough for the other threads to come in
        try:
            return real(*arguments, **options)
        finally:
            inside[0] -= 1

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", slow)
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: load_model(ModelRef(source=str(folder))), range(8)))
    assert most == [1]
    first = models[0].state_dict()
    for model in models[1:]:
        assert all(torch.equal(weight, first[name]) for name, weight in model.state_dict().items())
