"""Model folders as people have them: each that cannot be read is refused for its own cause, from headers alone."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sra_core import stages
from sra_core.config import ModelRef, RunConfig
from sra_core.config.load import load_config
from sra_core.doctor import check_models, examine
from sra_core.errors import ModelError, TokenizerError
from sra_core.models import check_model, check_tokenizer, load_model, load_tokenizer, model_identity, resolve
from sra_core.models.gguf import header_digest
from sra_core.plan import plan_run

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 123456\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder of its own, to spoil."""
    return Path(shutil.copytree(resolve(ModelRef(source="random:llama")), tmp_path / "model"))


def reference(folder: Path, **fields: Any) -> ModelRef:
    return ModelRef(source=str(folder), **fields)


def edit(folder: Path, name: str = "config.json", **values: Any) -> None:
    found = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(found | values))


def only_adapter(folder: Path) -> None:
    for path in folder.iterdir():
        if "tokenizer" not in path.name:
            path.unlink()
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA"})
    )
    save_file({"x": torch.zeros(1)}, folder / "adapter_model.safetensors")


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def torn(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def not_numbers(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][3] = torch.nan
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def sharded_without_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def sharded_with_a_lost_shard(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    min(folder.glob("model-*.safetensors")).unlink()


def index_that_promises_more(folder: Path) -> None:
    names = dict.fromkeys([*load_file(folder / "model.safetensors"), "model.more"], "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def index_without_metadata(folder: Path) -> None:
    shard = (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(load_file(shard), shard.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def old_gptq(folder: Path) -> None:
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 128}))


def nested(folder: Path) -> None:
    inner = folder / "checkpoint-40"
    inner.mkdir()
    for path in list(folder.iterdir()):
        if path.is_file():
            path.rename(inner / path.name)


def only_gguf(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model.Q4.gguf").write_bytes(b"GGUF")


def without_any(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def maker_format(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")


FOLDERS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "adapter": (
        only_adapter,
        r"holds an adapter of org/base \(PEFT\), not a model",
        "merge it and give the new folder",
    ),
    "gguf": (only_gguf, "holds GGUF files and no config.json", "give the file itself: source: .*model.Q4.gguf"),
    "nested": (nested, "its subfolder checkpoint-40 does", "give .*/checkpoint-40"),
    "pickled": (pickled, r"holds only pickled weights \(pytorch_model.bin\)", "set allow_pickle: true"),
    "torn": (torn, r"model.safetensors is cut short .* bytes\)", "download or copy the model again"),
    "nan": (not_numbers, "model.safetensors holds NaN or infinite weights in model.norm.weight", "another checkpoint"),
    "no index": (sharded_without_index, "holds model-00001-of-00002.safetensors and no index of its 2 files", "again"),
    "lost shard": (sharded_with_a_lost_shard, "lacks weight files: model-00001-of-", "again"),
    "index": (index_that_promises_more, "lacks model.more, which model.safetensors.index.json says it holds", "again"),
    "index alone": (index_without_metadata, "index.json has no metadata", 'add "metadata": {}'),
    "pointer": (
        lambda folder: (folder / "model.safetensors").write_text(POINTER),
        "model.safetensors is a Git LFS pointer",
        "git lfs pull",
    ),
    "config pointer": (
        lambda folder: (folder / "config.json").write_text(POINTER),
        "config.json is a Git LFS pointer",
        "git lfs pull",
    ),
    "config torn": (lambda folder: (folder / "config.json").write_text('{"model_type": "ll'), "no JSON", "again"),
    "bnb": (
        lambda folder: edit(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"quantized weights \(bitsandbytes, 4 bits\)",
        "the model that it was made from",
    ),
    "gptq": (
        lambda folder: edit(folder, quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantized weights \(GPTQ, 4 bits\)",
        "the model that it was made from",
    ),
    "old gptq": (old_gptq, r"quantized weights \(GPTQ, 4 bits\)", "the model that it was made from"),
    "awq": (
        lambda folder: edit(folder, quantization_config={"quant_method": "awq", "bits": 4}),
        r"quantized weights \(AWQ, 4 bits\)",
        "the model that it was made from",
    ),
    "compressed": (
        lambda folder: edit(folder, quantization_config={"quant_method": "compressed-tensors"}),
        r"quantized weights \(compressed-tensors\)",
        "the model that it was made from",
    ),
    "hqq": (
        lambda folder: edit(folder, quantization_config={"quant_method": "hqq"}),
        r"quantized weights \(HQQ\)",
        "the model that it was made from",
    ),
    "no weights": (without_any, "holds no weights", "download the model again"),
    "maker": (
        maker_format,
        "no weights that transformers reads; there are consolidated.safetensors",
        "save_pretrained",
    ),
    "unknown": (lambda folder: edit(folder, model_type="newest"), "transformers knows no 'newest'", "newer version"),
    "encoder-decoder": (
        lambda folder: edit(folder, model_type="bart", is_encoder_decoder=True),
        r"holds an encoder-decoder \(bart\)",
        "give a decoder-only model",
    ),
    "encoder-decoder that leaves it to its class": (
        lambda folder: edit(folder, model_type="mbart"),
        r"holds an encoder-decoder \(mbart\)",
        "give a decoder-only model",
    ),
    "encoder": (
        lambda folder: edit(folder, model_type="roberta", architectures=None),
        r"holds an encoder \(roberta\), whose tokens look at later ones",
        "give a decoder-only model",
    ),
    "encoder of another family": (
        lambda folder: edit(folder, model_type="cpmant", architectures=["CpmAntForCausalLM"]),
        r"holds an encoder \(cpmant\)",
        "give a decoder-only model",
    ),
    "fields of another kind": (
        lambda folder: edit(folder, num_hidden_layers="two"),
        "transformers refuses the config.json of .*num_hidden_layers",
        "correct it",
    ),
    "classifier": (
        lambda folder: edit(folder, architectures=["LlamaForSequenceClassification"]),
        r"no causal language model \(LlamaForSequenceClassification\)",
        "give a decoder-only model",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_is_refused_for_its_own_cause(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, problem, remedy = FOLDERS[kind]
    spoil(folder)
    with monkeypatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loaded weights"))
        with pytest.raises(ModelError, match=f"{problem}.*\n  -> .*{remedy}"):
            check_model(reference(folder))
    with pytest.raises(ModelError, match=problem):
        load_model(reference(folder))


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_doctor_tells_it_once_and_looks_at_all_the_rest(kind: str, folder: Path, tmp_path: Path) -> None:
    spoil, problem, remedy = FOLDERS[kind]
    spoil(folder)
    changes = {"store": str(tmp_path / "store"), "teacher": {"source": str(folder)}}
    findings = examine(load_config("smoke", changes))
    bad = [finding.text for finding in findings if finding.level == "bad"]
    assert [text for text in bad if not text.startswith("teacher's tokenizer: ")] == bad[:1]
    assert re.search(f"^teacher: .*{problem}.* -> .*{remedy}", bad[0])
    assert any(finding.text.startswith("corpus ") for finding in findings)


LOST = "model.layers.1.mlp.up_proj.weight"
STATES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "one is missing": (lambda kept: {k: v for k, v in kept.items() if k != LOST}, f"lack 1 tensors .*: {LOST}"),
    "a wrapper's prefix": (
        lambda kept: {f"module.{k}": v for k, v in kept.items()},
        r"lack 21 tensors .*; 21 tensors .* are not part of Llama.*: module.lm_head",
    ),
    "the base model alone": (
        lambda kept: {k.removeprefix("model."): v for k, v in kept.items() if k != "lm_head.weight"},
        "lack 1 tensors of LlamaForCausalLM, which would be random numbers: lm_head.weight",
    ),
    "another shape": (lambda kept: kept | {LOST: torch.ones(3)}, rf"not shaped as .*: {LOST} is \(3,\)"),
}


@pytest.mark.parametrize("form", ["safetensors", "pickled", "with an adapter"])
@pytest.mark.parametrize("kind", STATES)
def test_tensors_that_the_files_lack_are_told_from_headers(kind: str, form: str, folder: Path) -> None:
    spoil, problem = STATES[kind]
    if form == "with an adapter":
        with_adapter(folder, 0.1)
    save_file(spoil(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    if form == "pickled":
        pickled(folder)
    with pytest.raises(ModelError, match=problem):
        check_model(reference(folder, allow_pickle=True))


@pytest.mark.parametrize("model", ["gpt2", "gemma3_text", "mixtral"])
def test_what_the_files_leave_to_the_model_is_not_missing(model: str) -> None:
    """Tied heads, and experts that are stored one by one."""
    check_model(ModelRef(source=f"random:{model}"))


def test_random_models_are_looked_at_too() -> None:
    with pytest.raises(ModelError, match=r"holds an encoder \(bert\)"):
        check_model(ModelRef(source="random:bert"))


def test_a_whole_folder_passes_and_is_not_looked_at_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_model(reference(folder))
    with monkeypatch.context() as patch:
        patch.setattr("sra_core.models.folders._check_numbers", lambda *_: pytest.fail("read again"))
        check_model(reference(folder))
    not_numbers(folder)
    with pytest.raises(ModelError, match="NaN"):
        check_model(reference(folder))


# Pickled weights


def test_pickled_weights_are_read_once_where_they_are_allowed(folder: Path, empty_cache: Path) -> None:
    expected = load_model(reference(folder))
    plain = model_identity(reference(folder))
    pickled(folder)
    ref = reference(folder, allow_pickle=True)
    check_model(ref)
    model = load_model(ref)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    identity = model_identity(ref)
    assert set(identity["pickled"]) == {"pytorch_model.bin"}
    assert identity["config"] == plain["config"]
    assert resolve(ref) == resolve(ref) != str(folder)
    assert resolve(ref, weights=False) == str(folder)
    made = [path for path in (empty_cache / "models").iterdir() if path.name.startswith("pickled-")]
    assert len(made) == 1


def test_pickled_shards(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    files = {}
    for number, part in enumerate([names[:5], names[5:]], 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        files |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    model = load_model(reference(folder, allow_pickle=True))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_tied_weights_that_share_their_memory(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    model = load_model(reference(folder, allow_pickle=True))
    assert torch.equal(model.lm_head.weight, state["model.embed_tokens.weight"])


class Trap:
    sprung = ""

    def __reduce__(self) -> Any:
        return os.mkdir, (self.sprung,)


def test_a_pickle_that_runs_code_is_refused_unread(folder: Path, tmp_path: Path) -> None:
    Trap.sprung = str(tmp_path / "sprung")
    (folder / "model.safetensors").unlink()
    torch.save({"trap": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin holds more than tensors"):
        load_model(reference(folder, allow_pickle=True))
    assert not Path(Trap.sprung).exists()


def test_a_torn_pickle(folder: Path) -> None:
    pickled(folder)
    whole = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=r"pytorch_model.bin is cut short"):
        check_model(reference(folder, allow_pickle=True))


# Adapters beside the weights


def with_adapter(folder: Path, scale: float) -> None:
    from peft import LoraConfig, get_peft_model

    for path in folder.glob("adapter_*"):
        path.unlink()
    model = AutoModelForCausalLM.from_pretrained(folder)
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora" in name:
                parameter.fill_(scale)
    adapted.save_pretrained(folder)


def test_an_adapter_beside_the_weights_is_merged_and_part_of_the_identity(folder: Path) -> None:
    ids = torch.tensor([[5, 80, 200]])
    bare, base = model_identity(reference(folder)), load_model(reference(folder))
    with_adapter(folder, 0.1)
    first, model = model_identity(reference(folder)), load_model(reference(folder))
    applied = AutoModelForCausalLM.from_pretrained(folder)  # as transformers does it
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, applied(ids).logits, atol=1e-5)
        assert not torch.allclose(model(ids).logits, base(ids).logits, atol=1e-3)
    assert not any("lora" in name for name, _ in model.named_parameters())
    with_adapter(folder, 0.2)
    second = model_identity(reference(folder))
    assert len({identity["weights"] for identity in (bare, first, second)}) == 3
    assert bare["config"] == first["config"] == second["config"]


def test_an_adapter_whose_tensors_have_other_names(folder: Path) -> None:
    with_adapter(folder, 0.1)
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace("model.layers", "language_model.layers"): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"cannot be merged .* Found missing adapter keys .*layers\.0\.self_attn"):
        load_model(reference(folder))


def test_an_adapter_without_its_weights(folder: Path) -> None:
    with_adapter(folder, 0.1)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds adapter_config.json and no adapter_model.safetensors"):
        check_model(reference(folder))


# Tokenizers


def test_a_sentencepiece_model_alone(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    with pytest.raises(TokenizerError, match=r"has its tokenizer as tokenizer.model alone.*\n  -> convert it once"):
        load_tokenizer(reference(folder))


def test_no_tokenizer_at_all(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"holds no tokenizer \(tokenizer.json\)"):
        load_tokenizer(reference(folder))


def test_a_torn_tokenizer(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text[: len(text) // 2])
    with pytest.raises(ModelError, match=r"tokenizer.json is cut short or no JSON"):
        load_tokenizer(reference(folder))


def test_no_end_of_text(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in config.items() if "token" not in k[-9:]})
    )
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(
        TokenizerError, match=r"no end-of-text token (?s:.*)its generation_config.json says '<\|endoftext\|>'"
    ):
        load_tokenizer(reference(folder))


def test_chat_templates_that_are_asked_for(folder: Path) -> None:
    check_tokenizer(reference(folder), chat=False)
    with pytest.raises(ModelError, match=r"has no chat template\n  -> set the model's template to plain"):
        check_tokenizer(reference(folder), chat=True)
    named = [{"name": "rag", "template": "{{ messages }}"}, {"name": "tool_use", "template": "{{ messages }}"}]
    edit(folder, "tokenizer_config.json", chat_template=named)
    with pytest.raises(ModelError, match="has chat templates named rag, tool_use, none named default"):
        check_tokenizer(reference(folder), chat=True)
    edit(folder, "tokenizer_config.json", chat_template=[*named, {"name": "default", "template": "{{ messages }}"}])
    check_tokenizer(reference(folder), chat=True)


# GGUF files


def test_gguf_files_that_cannot_be_read(gguf_file: Path, tmp_path: Path) -> None:
    whole = gguf_file.read_bytes()
    header_digest(gguf_file)

    def refused(name: str, content: bytes, problem: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=problem):
            check_model(ModelRef(source=str(tmp_path / name)))

    refused("tiny-00001-of-00003.gguf", whole, "is one of the 3 files of a split GGUF model.*\n  -> join them")
    refused("torn.gguf", whole[:-1], rf"torn.gguf is cut short: it has {len(whole) - 1:,} bytes, and its weights need")
    refused("head.gguf", whole[:300], "head.gguf is cut short: it has 300 bytes, and its header is not whole")
    refused("pointer.gguf", POINTER.encode(), "pointer.gguf is a Git LFS pointer")
    refused("page.gguf", b"<!doctype html>", "page.gguf is not a GGUF file: it starts with b'<!doctype html>'")
    other = whole.replace(b"llama", b"rwkvx")
    refused("other.gguf", other, "transformers reads no GGUF file of the architecture 'rwkvx'")


def test_looking_at_a_gguf_file_converts_nothing(
    gguf_file: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sra_core.models import layer_count_of

    ref = ModelRef(source=str(gguf_file))
    with monkeypatch.context() as patch:
        patch.setattr("sra_core.models.convert._convert", lambda *_: pytest.fail("converted"))
        check_model(ref)
        check_tokenizer(ref, chat=False)
        assert layer_count_of(ref) == 2
        with pytest.raises(ModelError, match="has SHA-256"):
            check_model(ModelRef(source=str(gguf_file), sha256="0" * 64))
    assert not list(empty_cache.rglob("*.safetensors"))


# The hub


def test_a_repository_without_what_is_needed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("sra_core.models.hub.snapshot", lambda ref, weights: folder)

    class Listing:
        def __init__(self, *names: str) -> None:
            self.siblings = [type("File", (), {"rfilename": name})() for name in names]

    def listed(*names: str) -> None:
        monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: Listing("config.json", *names))

    listed("pytorch_model.bin")
    with pytest.raises(ModelError, match=r"^org/name holds only pickled weights \(pytorch_model.bin\)"):
        check_model(ModelRef(source="org/name"))
    check_model(ModelRef(source="org/name", allow_pickle=True))
    listed("name.Q4_K_M.gguf")
    with pytest.raises(ModelError, match=r"^org/name holds its weights as GGUF alone \(name.Q4_K_M.gguf\)"):
        check_model(ModelRef(source="org/name"))
    listed("README.md")
    with pytest.raises(ModelError, match=r"^org/name holds no weights"):
        check_model(ModelRef(source="org/name"))
    listed("model.safetensors")
    check_model(ModelRef(source="org/name"))


def test_weights_that_only_the_hub_has(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("sra_core.models.hub.snapshot", lambda ref, weights: folder)
    with pytest.raises(ModelError, match="the weights of org/name are not in the hub's cache on this machine"):
        check_model(ModelRef(source="org/name"))


# Tokens beyond the embeddings


def add_tokens(folder: Path, words: Sequence[str] = (), **special: str) -> Any:
    tokenizer = load_tokenizer(reference(folder))
    tokenizer.add_tokens(list(words))
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        ({"words": ["distillation", "tokenizer"]}, "2 tokens beyond them: 'distillation', 'tokenizer'"),
        ({"eos_token": "<end>"}, "1 tokens beyond them: '<end>'"),
        ({"additional_special_tokens": ["<turn>", "<unused>"]}, "1 tokens beyond them: '<turn>'"),
    ],
)
def test_a_teacher_without_embeddings_for_its_tokens(folder: Path, tmp_path: Path, tokens: Any, named: str) -> None:
    from sra_core import stages

    tokenizer = add_tokens(folder, **tokens)
    tokenizer.chat_template = "{% for m in messages %}<turn>{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    teacher = {"source": str(folder), "template": "chat" if "<turn>" in named else "plain"}
    config = smoke(tmp_path, teacher=teacher)
    problem = re.escape(f"{folder} has 300 embeddings, and its tokenizer {named}")
    for act in (check_models, stages.prepare):
        with pytest.raises(ModelError, match=problem):
            act(config)
    if "<turn>" in named:  # which nothing else than the template writes
        check_models(smoke(tmp_path, teacher=teacher | {"template": "plain"}))


def test_a_special_token_beyond_the_embeddings_that_nothing_writes(folder: Path, tmp_path: Path) -> None:
    """The one for images of Gemma 3, the one for padding of many a Llama."""
    add_tokens(folder, pad_token="<pad>")
    check_models(smoke(tmp_path, teacher={"source": str(folder)}))


# Before anything runs


def smoke(tmp_path: Path, **parts: Any) -> RunConfig:
    return load_config("smoke", {"store": str(tmp_path / "store"), "tracking": {"enabled": False}, **parts})


def test_a_run_is_refused_before_it_prepares(folder: Path, tmp_path: Path) -> None:
    not_numbers(folder)
    config = smoke(tmp_path, student={"source": str(folder)})
    with pytest.raises(ModelError, match="NaN"):
        stages.run(config)
    assert not (tmp_path / "store" / "prepared").exists()
    bad = [finding.text for finding in examine(config) if finding.level == "bad"]
    assert len(bad) == 1
    assert bad[0].startswith("student: ")
    assert "NaN" in bad[0]
    check_models(smoke(tmp_path))


@pytest.mark.parametrize("side", ["teacher", "student"])
@pytest.mark.parametrize(("model_type", "kind"), [("roberta", "encoder"), ("bart", "encoder-decoder")])
def test_models_that_are_no_decoders_are_refused_everywhere(
    model_type: str, kind: str, side: str, folder: Path, tmp_path: Path
) -> None:
    edit(folder, model_type=model_type, architectures=None)
    config = smoke(tmp_path, **{side: {"source": str(folder)}})
    bad = [finding.text for finding in examine(config) if finding.level == "bad"]
    assert len(bad) == 1
    assert f"holds an {kind} (" in bad[0]
    for refused in (stages.run, plan_run):
        with pytest.raises(ModelError, match=rf"holds an {kind} \("):
            refused(config)
    assert not (tmp_path / "store" / "prepared").exists()
