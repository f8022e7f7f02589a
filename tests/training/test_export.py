"""The result: a folder that transformers loads by itself, with a card that says where it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

from sra_core.config import DistillConfig, LoraConfig, ModelRef, RunConfig
from sra_core.errors import ConfigError, ModelError, TrainingError
from sra_core.models import load_model, resolve
from sra_core.shards import Manifest
from sra_core.training import Job, adapter_targets, add_adapters, export_model, licences_of, model_card
from sra_core.training.build import build_module
from tests.training.make import make_config

IDS = torch.tensor([[5, 9, 20, 31, 8]])


def trained_parameters(path: Path, model: Any) -> Any:
    """Move every trainable parameter a little and keep them; returns the model."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    save_file({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, path)
    return model.eval()


def start(tmp_path: Path, student: str = "dropout") -> tuple[Path, Any]:
    folder = resolve(make_config(student).student)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "initial")
    return tmp_path / "initial", AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("student", ["dropout", "plain"])
@pytest.mark.parametrize("rank", [None, 3])
def test_the_folder_computes_what_was_trained(tmp_path: Path, student: str, rank: int | None) -> None:
    initial, tokenizer = start(tmp_path, student)
    config = DistillConfig(precision="float32", lora=LoraConfig(rank=rank) if rank else None)
    model: Any = AutoModelForCausalLM.from_pretrained(initial)
    if config.lora:
        model = add_adapters(config.lora, model)
    model = trained_parameters(tmp_path / "trained.safetensors", model)
    expected = model(input_ids=IDS).logits
    adapter = tmp_path / "adapter" if rank else None
    folder = tmp_path / "student"
    export_model(config, initial, tmp_path / "trained.safetensors", tokenizer, folder, adapter=adapter, card="# A card")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.allclose(loaded(input_ids=IDS).logits, expected, atol=1e-5)
    before = AutoModelForCausalLM.from_pretrained(initial)(input_ids=IDS).logits
    assert not torch.allclose(before, expected, atol=1e-2)
    assert AutoTokenizer.from_pretrained(folder)("some text")["input_ids"] == tokenizer("some text")["input_ids"]
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert (folder / "README.md").read_text() == "# A card"
    if adapter:
        import peft

        again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(initial), adapter)
        assert torch.allclose(again(input_ids=IDS).logits, expected, atol=1e-5)


def test_the_chat_template_goes_along_and_precision_is_the_trainings(tmp_path: Path) -> None:
    initial, tokenizer = start(tmp_path)
    tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    trained_parameters(tmp_path / "t", AutoModelForCausalLM.from_pretrained(initial))
    export_model(DistillConfig(precision="bfloat16"), initial, tmp_path / "t", tokenizer, tmp_path / "student")
    tensors = load_file(tmp_path / "student" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    kept = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert kept.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"


def test_a_student_without_sdpa_is_trained_as_it_attends(tmp_path: Path) -> None:
    module = build_module(job_from(tmp_path, Path(resolve(ModelRef(source="random:gemma2")))))
    assert module.student.config._attn_implementation == "eager"


def test_code_of_the_model_goes_all_the_way_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody is asked on a terminal whether it may run."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    initial, tokenizer = start(tmp_path, "plain")
    kind = type(AutoModelForCausalLM.from_pretrained(initial)).__name__
    config = json.loads((initial / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (initial / "config.json").write_text(json.dumps(config | own))
    base = kind.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + "Config"
    code = f"from transformers import {base}, {kind}\n"
    code += f"class OwnConfig({base}):\n    model_type = 'own'\nclass OwnModel({kind}):\n    config_class = OwnConfig\n"
    (initial / "own.py").write_text(code)
    module = build_module(job_from(tmp_path, initial, trust_remote_code=True))
    assert type(module.student).__name__ == "OwnModel"
    trained_parameters(tmp_path / "t", module.student)
    folder = tmp_path / "student"
    export_model(DistillConfig(precision="float32"), initial, tmp_path / "t", tokenizer, folder, trusted=True)
    ref = ModelRef(source=str(folder), trust_remote_code=True)
    assert type(load_model(ref)).__name__ == "OwnModel"
    with pytest.raises(ModelError, match="set trust_remote_code"):
        load_model(ModelRef(source=str(folder)))
    with pytest.raises(ValueError, match="trust_remote_code"):
        build_module(job_from(tmp_path, initial))


def job_from(tmp_path: Path, initial: Path, **teacher: Any) -> Job:
    """The adaptation of the model in a folder."""
    config = make_config("plain").model_copy(deep=True)
    values = config.model_dump() | {"teacher": config.teacher.model_dump() | teacher}
    values["adapt"]["lora"] = None
    run = RunConfig.model_validate(values)
    return Job(config=run, prepared=tmp_path, teacher=None, initial=initial, folder=tmp_path, part="adapt")


def test_parameters_of_another_model_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    initial, tokenizer = start(tmp_path)
    save_file({"transformer.wte.weight": torch.zeros(3, 3)}, tmp_path / "t")
    with pytest.raises(TrainingError, match="does not fit the model"):
        export_model(DistillConfig(precision="float32"), initial, tmp_path / "t", tokenizer, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_targets_are_the_papers_by_architecture(tmp_path: Path) -> None:
    for student, expected in (("dropout", ["c_attn", "c_proj", "c_fc"]), ("plain", ["q_proj", "k_proj", "v_proj"])):
        model = AutoModelForCausalLM.from_pretrained(resolve(make_config(student).student))
        assert adapter_targets(LoraConfig(), model) == expected
    assert adapter_targets(LoraConfig(targets=["up_proj"]), model) == ["up_proj"]
    for wrong in ("c_attn", "lm_head"):
        with pytest.raises(ConfigError, match=wrong) as caught:
            adapter_targets(LoraConfig(targets=[wrong]), model)
        assert "gate_proj" in caught.value.remedy


def test_an_adapter_of_weights_that_are_the_head_too_is_refused() -> None:
    """Merged, it would change the head, which was trained without it."""
    for student, tied, name in (
        ("dropout", True, "wte"),
        ("plain", True, "embed_tokens"),
        ("plain", False, "embed_tokens"),
    ):
        model = AutoModelForCausalLM.from_pretrained(resolve(make_config(student).student))
        model.config.tie_word_embeddings = tied
        model.tie_weights()
        if not tied:
            assert adapter_targets(LoraConfig(targets=[name]), model) == [name]
            continue
        with pytest.raises(ConfigError, match=f"{name} of .* has the weights of its LM head too"):
            adapter_targets(LoraConfig(targets=[name]), model)


def test_adapters_start_from_the_seed_alone() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(seed + 1)
        model = AutoModelForCausalLM.from_pretrained(resolve(make_config().student))
        return {n: p for n, p in add_adapters(LoraConfig(), model, seed).named_parameters() if "lora_A" in n}

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def card(licences: dict[str, str] | None = None, **values: Any) -> str:
    config = RunConfig.model_validate({"name": "my run", "corpus": {"source": "data/x.jsonl"}, **values})
    shards = [
        {"name": f"{s}.arrow", "bytes": 1, "sha256": "0" * 64, "split": s, "rows": r}
        for s, r in (("train", 9), ("test", 4))
    ]
    made = Manifest.model_validate(
        {"stage": "prepare", "fingerprint": "f00", "identity": {}, "shards": shards, "created": "now"}
    )
    result = {"steps": 12, "tokens": 3456, "seconds": 7.5, "best_bits_per_byte": 1.2345, "best_step": 10, "skipped": 2}
    result["exported_step"] = 12
    history = [
        {"step": 0, "validation/bits_per_byte": 4.5},
        {"step": 1, "train/loss": 5.25},
        {"step": 12, "train/loss": 2.5, "validation/bits_per_byte": 1.3},
    ]
    return model_card(config, [made], result, history, licences or {})


def test_the_card_tells_data_teacher_settings_scores_and_lineage() -> None:
    text = card(teacher={"source": "org/teacher"}, adapt={"enabled": True}, distill={"learning_rate": 3e-4})
    header = yaml.safe_load(text.split("---")[1])
    assert header["library_name"] == "transformers"
    for part in (
        "# my run", "`data/x.jsonl`", "| train examples | 9 |", "`org/teacher`, adapted to the corpus first",
        "objective `sra`", "in 12 steps", "3,456", "0.0003", "1.2345 at step 10", "4.5000", "5.2500, 2.5000",
        "| `prepare` | `f00`", "| steps skipped (not finite) | 2 |", "| weights | of step 12 |",
        "AutoModelForCausalLM",
    ):  # fmt: skip
        assert part in text, part
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings["distill"]["learning_rate"] == 3e-4
    assert "adapt" in settings
    assert "adapt" not in yaml.safe_load(card().split("```yaml\n")[1].split("```")[0])


def test_the_card_names_the_terms_that_models_come_under() -> None:
    text = card(teacher={"source": "org/teacher", "terms": "Own Terms"}, student={"terms": "Other Terms"})
    assert "\nTerms of the teacher: Own Terms\n" in text
    assert "\nTerms of the student's source: Other Terms\n" in text
    assert "Terms of" not in card()
    named = {"teacher": "apache-2.0", "student's source": "none: random weights"}
    assert "\nLicence of the teacher: apache-2.0\n" in card(named)
    assert card(named).count("Licence of") == 1


def test_the_licences_that_count_are_those_of_the_models_that_a_student_is_made_from() -> None:
    random = {"source": "random:llama", "terms": "mit"}
    both = RunConfig.model_validate({"teacher": random, "student": random})
    assert list(licences_of(both)) == ["teacher", "student's source"]
    cut = RunConfig.model_validate({"teacher": random})
    assert list(licences_of(cut)) == ["teacher"]
    alone = RunConfig.model_validate({"teacher": random, "student": random, "objective": {"name": "sft"}})
    assert list(licences_of(alone)) == ["student's source"]
    start = RunConfig.model_validate({"teacher": random, "objective": {"name": "sft"}})
    assert list(licences_of(start)) == ["teacher"], "its layers are the student's start"


def test_the_card_of_plain_fine_tuning_names_no_teacher() -> None:
    text = card(objective={"name": "sft"}, teacher={"source": "org/teacher"}, student={"source": "org/student"})
    assert "fine-tuned on the corpus alone" in text
    assert "distilled from" not in text
