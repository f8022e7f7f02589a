"""vLLM behind the interface of our own generation, with a module in its place: what goes in and what comes out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from sra_core.compare import read_answers
from sra_core.errors import ConfigError, EvaluationError
from sra_core.evaluate import AnswerSet, AnswerSettings, Sampling, pick_backend
from tests.models.rows import build_model, build_rows

from .test_generation import Words


class FakeLLM:
    """Answers with tokens 5 and 6, then the reason and tokens that a test sets."""

    ends: ClassVar[list[tuple[list[int], str]]] = []

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.asked: list[tuple[Any, Any]] = []

    def generate(self, prompts: list[Any], sampling_params: list[Any], use_tqdm: bool) -> list[Any]:
        assert use_tqdm is False
        self.asked += zip(prompts, sampling_params, strict=True)
        ends = [self.ends[number % len(self.ends)] for number in range(len(prompts))]
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=[5, 6, *rest], finish_reason=reason)])
            for rest, reason in ends
        ]


@dataclass
class FakeParams:
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop_token_ids: list[int]
    detokenize: bool


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = FakeLLM, FakeParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(FakeLLM, "ends", [([1], "stop"), ([7], "length")])
    return module


@pytest.fixture
def engine(vllm: ModuleType, tmp_path: Any) -> Any:
    from sra_core.evaluate.vllm_backend import open_engine

    model = build_model("llama")
    model.generation_config.eos_token_id = [1, 9]
    model.save_pretrained(tmp_path / "model")
    return open_engine(tmp_path / "model", "bfloat16", trusted=False)


def test_what_goes_in(engine: Any) -> None:
    from sra_core.evaluate.vllm_backend import generate

    rows = build_rows(3)
    options = {"seed": 4, "sampling": Sampling(0.7, 0.9), "max_new_tokens": 50, "max_prompt": 8}
    generate(engine, Words(), rows, "teacher", **options)
    assert engine.llm.options["dtype"] == "bfloat16"
    assert engine.llm.options["model"].endswith("model")
    for row, (prompt, params) in zip(rows, engine.llm.asked, strict=True):
        assert prompt == {"prompt_token_ids": row.teacher_ids[: row.teacher_response].tolist()[-8:]}
        assert (params.temperature, params.top_p, params.max_tokens) == (0.7, 0.9, 50)
        assert params.stop_token_ids == [1, 9]
    seeds = [params.seed for _, params in engine.llm.asked]
    assert len(set(seeds)) == 3, "each example draws its own numbers"
    assert all(0 <= seed < 2**63 for seed in seeds)
    generate(engine, Words(), rows[1:2], "teacher", **options)
    assert engine.llm.asked[-1][1].seed == seeds[1], "whatever it was batched with"
    generate(engine, Words(), rows[1:2], "teacher", **{**options, "seed": 5})
    assert engine.llm.asked[-1][1].seed != seeds[1]


def test_what_comes_out(engine: Any) -> None:
    from sra_core.evaluate.vllm_backend import generate

    stopped, cut = generate(engine, Words(), build_rows(2), max_prompt=1)
    assert (stopped.tokens, stopped.finish_reason) == ((5, 6), "stop"), "the stop token is no part of the answer"
    assert (cut.tokens, cut.finish_reason) == ((5, 6, 7), "length")
    assert stopped.text == Words().decode([5, 6], clean_up_tokenization_spaces=False)
    assert (stopped.prompt_tokens, stopped.prompt_cut) == (1, int(build_rows(2)[0].student_response) - 1)


def test_an_answer_that_vllm_gave_up_is_an_error(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sra_core.evaluate.vllm_backend import generate

    monkeypatch.setattr(FakeLLM, "ends", [([], "abort")])
    with pytest.raises(EvaluationError, match="'abort'"):
        generate(engine, Words(), build_rows(1))


def test_answers_of_two_backends_are_not_mixed(engine: Any, tmp_path: Any) -> None:
    rows, settings = build_rows(4), AnswerSettings(max_new_tokens=3)
    ours = AnswerSet(tmp_path / "answers", "student", "student", settings)
    own = read_answers(ours.make(lambda: (build_model("llama"), Words()), rows))
    theirs = AnswerSet(tmp_path / "answers", "student", "student", settings, backend="vllm")
    made = read_answers(theirs.make(lambda: (engine, Words()), rows))
    assert made["tokens"].to_pylist()[0] == [5, 6]
    assert own["tokens"].to_pylist() != made["tokens"].to_pylist()


def test_auto_takes_vllm_where_it_is_installed_and_there_is_a_gpu(vllm: ModuleType) -> None:
    assert pick_backend("auto", "cuda:1") == "vllm"
    assert pick_backend("auto", "cpu") == "transformers"
    assert pick_backend("transformers", "cuda") == "transformers"
    assert pick_backend("vllm", "cuda") == "vllm"
    with pytest.raises(ConfigError, match="needs CUDA"):
        pick_backend("vllm", "cpu")


def test_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr("sra_core.evaluate.settings.find_spec", lambda name: None)
    assert pick_backend("auto", "cuda") == "transformers"
    with pytest.raises(ConfigError, match="not installed") as error:
        pick_backend("vllm", "cuda")
    assert "pip install 'sra[vllm]'" in error.value.remedy
