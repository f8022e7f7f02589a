"""What the doctor says of a machine and a config, and what it refuses before anything runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sra_core.config.load import load_config
from sra_core.doctor import check_layers, check_tools, doubtful_teacher, examine
from sra_core.errors import ConfigError, SraError
from sra_core.plan import plan_run


def test_a_config_that_can_run_has_nothing_bad(tmp_path: Path) -> None:
    findings = examine(load_config("smoke", {"store": str(tmp_path)}))
    assert [finding.text for finding in findings if finding.level == "bad"] == []
    said = "\n".join(finding.text for finding in findings)
    for word in ("Python", "torch", "store", "teacher", "student", "MLflow"):
        assert word in said
    assert "adapt.enabled" not in said  # nobody expects random weights to know the corpus


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_store_that_is_a_file_is_bad(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    findings = examine(load_config("smoke", {"store": str(tmp_path / place)}))
    assert [f.text for f in findings if f.level == "bad"] == [
        f"store {tmp_path / place}: {tmp_path / 'file'} is a file; set `store` to a folder of yours"
    ]


def test_what_a_run_would_fail_at_is_named(tmp_path: Path) -> None:
    config = load_config(
        "smoke",
        {"store": str(tmp_path), "teacher": {"source": "./nowhere"}, "evaluate": {"backend": "vllm"}},
    )
    findings = examine(config)
    bad = "\n".join(finding.text for finding in findings if finding.level == "bad")
    assert "nowhere" in bad
    assert "vllm" in bad
    assert [finding.text for finding in findings if finding.level == "note"] == [doubtful_teacher(config)]


@pytest.mark.parametrize(("layers", "which"), [([[28, 1]], 28), ([[3, 9]], 9)])
def test_a_layer_that_a_model_lacks_is_refused_from_the_configs_alone(layers: list[list[int]], which: int) -> None:
    with pytest.raises(ConfigError, match=f"no layer {which} in a model of"):
        check_layers(load_config("smoke", {"objective": {"layers": layers}}))


def test_a_pair_of_layers_that_stands_twice_is_refused_from_the_configs_alone() -> None:
    with pytest.raises(ConfigError, match=r"\[-1, -1\] is layer 3 of the teacher and layer 2 of the student"):
        check_layers(load_config("smoke", {"objective": {"layers": [[3, 2], [-1, -1]]}}))


def rows(*responses: str) -> str:
    return "".join(json.dumps({"instruction": "Say it.", "response": response}) + "\n" for response in responses)


REFUSED: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "no file": ({}, None, "no such file or folder"),
    "no JSON": ({}, '{"instruction": "a"', "data.jsonl, line 1"),
    "no row": ({}, "", "holds no rows"),
    "no layout": ({}, '{"colour": "red", "size": 3}\n', "colour"),
    "no response": ({}, rows("", " "), "holds no training example .*empty_response': 2"),
    "no room": (
        {"alignment": {"max_length": 8, "max_prompt": 4, "truncate": "drop"}},
        rows("a long answer " * 9),
        "none of the first 1 training examples",
    ),
    "no such column": ({"corpus": {"columns": {"response": "answer"}}}, rows("yes"), "answer"),
    "no chat template": ({"student": {"template": "chat", "tokenizer": "train"}}, rows("yes"), "no chat template"),
    "too few layers": ({"student": {"keep_layers": 99}}, rows("yes"), "cannot keep 99 of"),
    "no layer to keep": ({"cache": {"layers": [99]}}, rows("yes"), "layer 99 in a model of .*cache.layers"),
    "no such device": (
        {"distill": {"device": "cuda:97"}},
        rows("yes"),
        r"distill\.device: there is no .*97",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_plan_refuses_the_doctor_refuses_too(name: str, tmp_path: Path) -> None:
    changes, text, said = REFUSED[name]
    data = tmp_path / "data.jsonl"
    if text is not None:
        data.write_text(text)
    corpus = {"source": str(data), "validation_share": 0, "test_share": 0} | changes.get("corpus", {})
    config = load_config("smoke", {**changes, "store": str(tmp_path / "store"), "corpus": corpus})
    with pytest.raises(SraError):
        plan_run(config, samples=4)
    bad = [finding.text for finding in examine(config) if finding.level == "bad"]
    assert len(bad) == 1
    assert re.search(said, bad[0])
    assert " -> " in bad[0]


def test_a_tool_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sra_core.evaluate.settings.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="lm-eval is not installed"):
        check_tools(load_config("smoke", {"evaluate": {"lm_eval": ["arc_easy"]}}))


@pytest.mark.parametrize(
    ("changes", "doubted"),
    [
        ({}, True),
        ({"teacher": {"source": "random:llama"}}, False),
        ({"teacher": {"source": "somebody/teacher", "template": "chat"}}, False),
        ({"adapt": {"enabled": True}}, False),
        ({"student": {"source": "teacher"}}, False),
        ({"objective": {"name": "sft"}}, False),
    ],
)
def test_a_teacher_of_another_family_is_doubted_until_it_is_adapted(
    tmp_path: Path, changes: dict[str, Any], doubted: bool
) -> None:
    settings = {"store": str(tmp_path), "teacher": {"source": "somebody/teacher"}, **changes}
    doubt = doubtful_teacher(load_config("smoke", settings))
    assert (doubt is not None) == doubted
    assert doubt is None or "may know less of this corpus than the student" in doubt
    assert doubt is None or "`sra cache` measures both, and adapt.enabled=true" in doubt


@pytest.mark.parametrize("objective", ["sra", "mined", "sft"])
def test_a_teacher_whose_terms_weigh_nothing_is_told(objective: str) -> None:
    doubt = doubtful_teacher(load_config("quality", {"objective": {"name": objective, "alpha": 1.0}}))
    assert (doubt is None) == (objective == "sft")
    assert doubt is None or "objective.name=sft, which trains the same without a cache" in doubt
