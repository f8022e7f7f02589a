from __future__ import annotations

import pytest
from pydantic import ValidationError

from sra_core.config import EvaluateConfig
from sra_core.config.load import load_config
from sra_core.evaluate import AnswerSettings, Sampling


def test_the_papers_protocol():
    config = EvaluateConfig(protocol="paper")
    assert AnswerSettings.of(config) == AnswerSettings(1.0, 1.0, (10, 20, 30, 40, 50), 512, 256)
    assert config.generate is None
    assert EvaluateConfig(protocol="paper", generate=7).generate == 7


def test_the_default_is_fast_and_greedy():
    settings = AnswerSettings.of(EvaluateConfig(seeds=[3, 4]))
    assert settings.sampling == Sampling(0.0, 1.0)
    assert settings.used_seeds == (3,)
    assert AnswerSettings(temperature=1.0, seeds=(3, 4)).used_seeds == (3, 4)


def test_every_field_reaches_the_settings():
    config = EvaluateConfig(temperature=0.5, top_p=0.9, seeds=[1], max_new_tokens=7, max_prompt=9)
    assert AnswerSettings.of(config) == AnswerSettings(0.5, 0.9, (1,), 7, 9)


def test_a_saved_paper_config_loads_again():
    config = EvaluateConfig(protocol="paper")
    assert EvaluateConfig(**config.model_dump()) == config


def test_contradictions_name_the_field():
    with pytest.raises(ValidationError, match="temperature: protocol `paper` fixes it"):
        EvaluateConfig(protocol="paper", temperature=0.7)
    with pytest.raises(ValidationError, match="seeds"):
        EvaluateConfig(seeds=[1, 1])


def test_the_papers_recipe_names_its_five_data_sets():
    config = load_config("paper-qwen1.5-1.8b-gpt2-120m").evaluate
    assert config.protocol == "paper"
    assert [config.test_name, *(each.name for each in config.datasets)] == [
        "dolly",
        "vicuna",
        "self_inst",
        "s_ni",
        "dialogsum",
    ]
