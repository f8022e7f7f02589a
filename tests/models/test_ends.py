"""A chat model stops at what its template ends answers with: the student as it starts, the teacher as it is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from sra_core import adapt, stages
from sra_core.config import DistillConfig, ModelRef, RunConfig, StudentConfig, TeacherConfig
from sra_core.config.load import load_config
from sra_core.evaluate.contenders import Scoring
from sra_core.evaluate.generation import stop_tokens
from sra_core.models import answer_ends, bits_per_byte, build_student, load_model, load_tokenizer, train_tokenizer
from sra_core.shards import PreparedSet
from sra_core.training import export_model
from sra_core.watch import Watcher

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer's end of text is not what its template ends a turn with."""
    place = tmp_path_factory.mktemp("models") / "chatml"
    tokenizer = train_tokenizer(["Name a fruit. An apple, or a pear."] * 3, 280)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=0, bos_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def config_of(folder: Path, template: str = "chat") -> RunConfig:
    parts = {"source": str(folder), "template": template}
    return RunConfig(teacher=TeacherConfig(**parts), student=StudentConfig(**parts))


@pytest.mark.parametrize(
    ("template", "ends"), [("chat", ["<|endoftext|>", "<|im_end|>"]), ("plain", ["<|endoftext|>"])]
)
def test_a_student_starts_with_the_end_of_its_answers(
    folder: Path, template: str, ends: list[str], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(ModelRef(source=str(folder)))
    student = build_student(config_of(folder, template), tokenizer)
    assert tokenizer.convert_ids_to_tokens(answer_ends(student)) == ends
    student.save_pretrained(tmp_path / "initial")
    save_file({name: p.detach().clone() for name, p in student.named_parameters()}, tmp_path / "t")
    export_model(DistillConfig(precision="float32"), tmp_path / "initial", tmp_path / "t", tokenizer, tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens(answer_ends(exported)) == ends


def test_a_teacher_is_adapted_and_scored_with_it(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder)
    config.evaluate.device, config.cache.compute_dtype = "cpu", "float32"
    adapt._named_teacher(config).save_pretrained(tmp_path / "initial")
    end = load_tokenizer(config.teacher).convert_tokens_to_ids("<|im_end|>")
    assert end in GenerationConfig.from_pretrained(tmp_path / "initial").eos_token_id
    nothing: Any = None
    scoring = Scoring(config, nothing, [], tmp_path, Watcher())
    assert stop_tokens(*scoring._model(scoring._teacher())) == {0, end}


class Told(Watcher):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def test_prepared_examples_end_so_and_it_is_told(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "talk.jsonl"
    data.write_text("".join(f'{{"instruction": "Name fruit {k}.", "response": "An apple."}}\n' for k in range(9)))
    parts = {"source": str(folder), "template": "chat"}
    settings = {"store": str(tmp_path), "corpus": {"source": str(data)}, "teacher": parts}
    config = load_config("smoke", {**settings, "student": {**parts, "tokenizer": "source"}})
    told = Told()
    made = stages.prepare(config, told)
    tokenizer = load_tokenizer(config.teacher)
    for row in PreparedSet(made, "train"):
        assert tokenizer.decode(row.student_ids[row.student_response :]) == "An apple.<|im_end|>"
        assert tokenizer.decode(row.teacher_ids[row.teacher_response :]) == "An apple.<|im_end|>"
    line = "answers end with <|im_end|>, as its chat template writes; texts with <|endoftext|>"
    assert [each for each in told.lines if line in each] == [f"teacher: {line}", f"student: {line}"]


def test_what_the_teacher_knows_leaves_the_end_of_answers_out(folder: Path, tmp_path: Path) -> None:
    """The token that ends a turn stands for no bytes: counting it made the teacher look worse than it is."""
    data = tmp_path / "talk.jsonl"
    data.write_text("".join(f'{{"instruction": "Name fruit {k}.", "response": "Apple {k}."}}\n' for k in range(60)))
    parts = {"source": str(folder), "template": "chat"}
    settings = {"store": str(tmp_path), "corpus": {"source": str(data)}, "teacher": parts}
    layers = {"objective": {"layers": [[2, 2]]}, "tracking": {"enabled": False}}
    config = load_config("smoke", {**settings, **layers, "student": {**parts, "tokenizer": "source"}})
    made = stages.prepare(config)
    found = stages.cache(config).metrics["cache/teacher_bits_per_byte"]
    rows, model = list(PreparedSet(made, "validation")), load_model(config.teacher)
    end = load_tokenizer(config.teacher).convert_tokens_to_ids("<|im_end|>")
    assert len(rows) <= 16
    assert found == pytest.approx(bits_per_byte(model, rows, "teacher", eos_token_id=end), rel=1e-4)
    assert found != pytest.approx(bits_per_byte(model, rows, "teacher", eos_token_id=0), rel=1e-4)
