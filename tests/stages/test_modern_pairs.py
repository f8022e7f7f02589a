"""Recipes `modern-*` end to end, as they are written, on tiny models of the same architectures with chat templates."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from sra_core import stages
from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.doctor import examine
from tests.alignment.tokenizers import load
from tests.evaluate.test_tasks import TASK
from tests.stages.test_paper_pairs import dolly

CHATML = """{% for turn in messages %}<|im_start|>{{ turn.role }}
{{ turn.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
QWEN3 = """{% for turn in messages %}<|im_start|>{{ turn.role }}
{% if loop.last and turn.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ turn.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"""
LLAMA = """{{ bos_token }}Today Date: {{ strftime_now('%d %b %Y') }}
{% for turn in messages %}[{{ turn.role }}]{{ turn.content }}{{ eos_token }}{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""
GEMMA = """{% for turn in messages %}{% if turn.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{%- set role = 'model' if turn.role == 'assistant' else turn.role %}
{{- '<start_of_turn>' + role + '\\n' + turn.content + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}<start_of_turn>model\n{% endif %}"""
NARROW: dict[str, Any] = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 32,
}
SIDES: dict[str, tuple[type[PreTrainedConfig], str, str, dict[str, Any]]] = {
    "qwen3": (Qwen3Config, "qwen", QWEN3, {}),
    "qwen2": (Qwen2Config, "qwen", CHATML, {}),
    "llama": (LlamaConfig, "byte-level", LLAMA, {"tie_word_embeddings": True}),
    "gemma2": (Gemma2Config, "byte-fallback", GEMMA, {"sliding_window": 64}),
}
PAIRS = {
    "modern-qwen3-4b-llama3.2-1b": (("qwen3", 36), ("llama", 16)),
    "modern-qwen2.5-7b-llama3.2-3b": (("qwen2", 28), ("llama", 28)),
    "modern-qwen2.5-7b-gemma2-2b": (("qwen2", 28), ("gemma2", 26)),
}


def make(folder: Path, kind: str, layers: int) -> Path:
    """A model folder of an architecture, with a tokenizer that has a chat template."""
    build, name, template, own = SIDES[kind]
    tokenizer = load(name)
    if tokenizer is None:
        pytest.skip(f"no package ships the tokenizer {name} here")
    tokenizer.chat_template = template
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    config = build(vocab_size=len(tokenizer), num_hidden_layers=layers, **NARROW, **own)
    config.update({f"{role}_token_id": tokenizer.eos_token_id for role in ("bos", "eos", "pad")})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=PAIRS)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> RunConfig:
    (teacher, above), (student, below) = PAIRS[request.param]
    few: dict[str, Any] = {
        "store": str(tmp_path / "store"),
        "tracking": {"enabled": False},
        "teacher": {"source": str(make(tmp_path / "teacher", teacher, above))},
        "student": {"source": str(make(tmp_path / "student", student, below))},
        "corpus": {"source": str(dolly(tmp_path / "dolly.jsonl", 80))},
        "adapt": {"batch_size": 4, "accumulation": 2, "max_steps": 2},
        "distill": {"batch_size": 4, "accumulation": 2, "max_steps": 3},
        "evaluate": {"max_new_tokens": 8, "lm_eval": []},
    }
    if find_spec("lm_eval"):  # then a task of local data, which tells of solved examples and the chat template
        rows = [{"question": f"Is {number} even?", "answer": number % 2} for number in range(4)]
        data, tasks = tmp_path / "tiny.jsonl", tmp_path / "tasks"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tasks.mkdir()
        (tasks / "tiny.yaml").write_text(f"{TASK.format(data=data)}fewshot_split: test\n")
        few["evaluate"] |= {"lm_eval": ["tiny_choice@2"], "lm_eval_folder": str(tasks)}
    return load_config(request.param, few)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_pair_of_today_from_its_recipe_to_its_scores(config: RunConfig) -> None:
    assert [finding.text for finding in examine(config) if finding.level == "bad"] == []
    done = stages.run(config)
    assert list(done) == ["prepare", "adapt", "cache", "distill", "evaluate"]
    trained = done["distill"]
    lines = [json.loads(line) for line in (Path(trained.folder) / "history.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "train/loss" in line)
    assert last["step"] == 3
    for term in ("loss", "ce", "cosine", "geometry", "logit"):
        assert math.isfinite(last[f"train/{term}"]), term
    student = AutoModelForCausalLM.from_pretrained(Path(trained.folder) / "student")
    assert all(torch.isfinite(tensor).all() for tensor in student.state_dict().values())
    if config.evaluate.lm_eval:
        assert {"teacher", "initial", "student"} == {
            name.split("/")[1] for name in done["evaluate"].metrics if name.endswith("lm_eval/tiny_choice/acc")
        }
