"""lm-eval tasks: a tiny one with data of its own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import ValidationError

from sra_core import stages
from sra_core.compare import ModelScores
from sra_core.config import EvaluateConfig, ModelRef
from sra_core.config.load import load_config
from sra_core.errors import ConfigError
from sra_core.evaluate import tasks
from sra_core.evaluate.tasks import TASK_SCHEMA, score_tasks
from sra_core.models import load_model, load_tokenizer

TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
GROUP = """
group: tiny_group
task: [tiny_choice, tiny_other]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"question": f"Is {number} even?", "answer": number % 2} for number in range(4)]
    data = tmp_path / "tiny.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(TASK.format(data=data))
    other = TASK.replace("tiny_choice", "tiny_other").format(data=data)
    (tmp_path / "tasks" / "other.yaml").write_text(f"{other}fewshot_split: test\n")
    (tmp_path / "tasks" / "group.yaml").write_text(GROUP)
    return tmp_path / "tasks"


@pytest.fixture(scope="module")
def model() -> Any:
    ref = ModelRef(source="random:gpt2?layers=2&width=24&heads=2&vocabulary=300&seed=2")
    return load_model(ref), load_tokenizer(ref)


def test_a_task_is_scored_by_example_as_every_other_metric(model: Any, folder: Path) -> None:
    pytest.importorskip("lm_eval")
    config = EvaluateConfig(lm_eval=["tiny_choice"], lm_eval_folder=str(folder))
    table = score_tasks(*model, config)
    assert table.schema == TASK_SCHEMA
    assert sorted(table["id"].to_pylist()) == ["0", "1", "2", "3"]
    assert set(table["higher"].to_pylist()) == {True}
    (metric,) = [each for each in ModelScores(tasks=table).metrics() if each.name.startswith("lm_eval")]
    assert (metric.name, metric.higher) == ("lm_eval/tiny_choice/acc", True)
    keys, values, weights = ModelScores(tasks=table).values(metric.name)
    assert keys[0] == ("tiny_choice", "0")
    assert values.mean() == pc.mean(table["value"]).as_py()
    assert weights.tolist() == [1.0] * 4


def test_scores_that_are_numpy_booleans_are_numbers() -> None:
    samples = [{"doc_id": number, "filter": "none", "acc": np.bool_(number % 2)} for number in range(4)]
    made = {
        "samples": {"mine": samples},
        "higher_is_better": {"mine": {"acc": True}},
        "results": {"mine": {"acc,none": 0.5}},
    }
    rows = list(tasks._rows(made, ["mine"]))
    assert pa.Table.from_pylist(rows, TASK_SCHEMA)["value"].to_pylist() == [0.0, 1.0, 0.0, 1.0]


def test_the_limit_and_unknown_tasks(model: Any, folder: Path) -> None:
    pytest.importorskip("lm_eval")
    config = EvaluateConfig(lm_eval=["tiny_choice"], lm_eval_folder=str(folder), lm_eval_limit=2)
    assert len(score_tasks(*model, config)) == 2
    with pytest.raises(ConfigError, match="no task tiny_chioce"):
        score_tasks(*model, config.model_copy(update={"lm_eval": ["tiny_chioce"]}))
    with pytest.raises(ConfigError, match="no folder"):
        score_tasks(*model, config.model_copy(update={"lm_eval_folder": str(folder / "none")}))


def test_a_group_is_one_task_of_all_its_examples(model: Any, folder: Path) -> None:
    pytest.importorskip("lm_eval")
    config = EvaluateConfig(lm_eval=["tiny_group"], lm_eval_folder=str(folder))
    table = score_tasks(*model, config)
    assert set(table["task"].to_pylist()) == {"tiny_group"}
    assert table["id"].to_pylist() == [
        f"{task}/{number}" for task in ("tiny_choice", "tiny_other") for number in range(4)
    ]
    apart = score_tasks(*model, config.model_copy(update={"lm_eval": ["tiny_choice", "tiny_other"]}))
    assert apart["value"].to_pylist() == table["value"].to_pylist()


def test_solved_examples_and_chat_templates_reach_the_prompt(
    model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = pytest.importorskip("lm_eval.models.huggingface")
    prompts: list[str] = []
    original = harness.HFLM.loglikelihood

    def watched(self: Any, requests: Any, *args: Any, **kw: Any) -> Any:
        prompts.extend(request.args[0] for request in requests)
        return original(self, requests, *args, **kw)

    monkeypatch.setattr(harness.HFLM, "loglikelihood", watched)
    loaded, tokenizer = model[0], copy.deepcopy(model[1])
    config = EvaluateConfig(lm_eval=["tiny_other@2", "tiny_choice"], lm_eval_folder=str(folder), lm_eval_chat=True)
    assert {row["task"] for row in score_tasks(loaded, tokenizer, config).to_pylist()} == {"tiny_choice", "tiny_other"}
    assert {prompt.count("even?") for prompt in prompts} == {1, 3}
    prompts.clear()
    tokenizer.chat_template = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
    score_tasks(loaded, tokenizer, config)
    assert all(prompt.startswith("<user>") for prompt in prompts)
    prompts.clear()
    score_tasks(loaded, tokenizer, config.model_copy(update={"lm_eval_chat": False}))
    assert not any("<user>" in prompt for prompt in prompts)


@pytest.mark.parametrize(
    ("tasks", "message"), [(["mmlu@five"], "has no number"), (["mmlu@5", "mmlu"], "named twice"), (["a@"], "no number")]
)
def test_tasks_that_cannot_be_meant_are_refused_when_built(tasks: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluateConfig(lm_eval=tasks)
    assert EvaluateConfig(lm_eval=["mmlu@5", "piqa"]).shots == {"mmlu": 5, "piqa": None}


def test_without_lm_eval_the_error_says_how_to_install_it(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sra_core.evaluate.settings.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed") as error:
        score_tasks(*model, EvaluateConfig(lm_eval=["arc_easy"]))
    assert "pip install 'sra[lm-eval]'" in error.value.remedy


def test_only_means_over_examples_are_kept() -> None:
    def sample(number: int, **scores: Any) -> dict[str, Any]:
        return {"doc_id": number, "filter": "strict", **scores}

    made = {
        "samples": {"t": [sample(0, acc=1.0, perplexity=(3.0, 2)), sample(1, acc=0.0, perplexity=(4.0, 2))]},
        "higher_is_better": {"t": {"acc": True, "perplexity": False}},
        "results": {"t": {"acc,strict": 0.5, "perplexity,strict": 7.0}},
    }
    assert [(row["metric"], row["id"], row["value"]) for row in tasks._rows(made, ["t"])] == [
        ("acc (strict)", "0", 1.0),
        ("acc (strict)", "1", 0.0),
    ]


def test_a_run_is_refused_before_anything_runs_where_lm_eval_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sra_core.evaluate.settings.find_spec", lambda name: None)
    config = load_config("smoke", {"store": str(tmp_path / "store"), "evaluate": {"lm_eval": ["arc_easy"]}})
    with pytest.raises(ConfigError, match="names tasks, and lm-eval is not installed"):
        stages.run(config)
    assert not (tmp_path / "store").exists()
