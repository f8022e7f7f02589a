"""A config that holds a password, a key or a token is refused; what only looks like one is not."""

from __future__ import annotations

from typing import Any

import pytest

from sra_core.config import CorpusConfig, RunConfig
from sra_core.config.load import load_config
from sra_core.errors import ConfigError

SECRETS: list[tuple[dict[str, Any], str, str]] = [
    ({"store": "s3://KEY:SE/CR@ET@bucket/path"}, "store", "AWS_SECRET_ACCESS_KEY"),
    ({"corpus": {"source": "https://ann:pw@host/texts.jsonl"}}, "corpus.source", "variable"),
    ({"corpus": {"source": "https://ghtoken@host/texts.jsonl"}}, "corpus.source", "variable"),
    ({"corpus": {"source": "https://host/texts.jsonl?sig=abc"}}, "corpus.source", "variable"),
    ({"tracking": {"uri": "http://ann:pw@host:5000"}}, "tracking.uri", "MLFLOW_TRACKING_PASSWORD"),
    ({"tracking": {"uri": "postgresql+psycopg2://ann:pw@host/x"}}, "tracking.uri", "PGPASSWORD"),
    ({"distill": {"deepspeed": {"wandb": {"api_key": "abc"}}}}, "distill.deepspeed.wandb.api_key", "WANDB_API_KEY"),
    (
        {"distill": {"deepspeed": {"comet": {"tokens": {"token": ["abc"]}}}}},
        "distill.deepspeed.comet.tokens.token",
        "COMET_API_KEY",
    ),
    ({"teacher": {"source": "hf_AbCdEfGhIjKlMnOpQrSt"}}, "teacher.source", "HF_TOKEN"),
    ({"dask": "tcp://ann:pw@node1:8786"}, "dask", "variable"),
]
ORDINARY: list[dict[str, Any]] = [
    {"store": "s3://bucket/a@b"},
    {"store": "abfs://container@account.dfs.core.windows.net/sra"},
    {"tracking": {"uri": "http://127.0.0.1:5000/a@b"}},
    {"dask": "tcp://node1:8786"},
    {"teacher": {"source": "random:llama?layers=3&width=32&vocabulary=400&seed=1"}},
    {"corpus": {"system": "Write to ann@example.org: see http://host:80/x"}},
    {"distill": {"deepspeed": {"wandb": {"enabled": True, "team": "sra"}}}},
]


@pytest.mark.parametrize(("values", "field", "instead"), SECRETS)
def test_a_secret_is_refused_by_field_without_being_repeated(values: dict[str, Any], field: str, instead: str) -> None:
    for build in (lambda: load_config("smoke", values), lambda: RunConfig.model_validate(values)):
        with pytest.raises(ConfigError) as caught:
            build()
        message = str(caught.value)
        assert message.startswith(f"{field} holds a password, key or token")
        assert instead in message
        for secret in ("SE/CR", "ET@", "pw@", "ghtoken", "sig=", "abc", "hf_A"):
            assert secret not in message


def test_a_secret_in_a_part_or_a_variable_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.source"):
        RunConfig(corpus=CorpusConfig(source="https://ann:pw@host/texts.jsonl"))
    monkeypatch.setenv("SRA_STORE", "s3://KEY:SECRET@bucket")
    with pytest.raises(ConfigError, match=r"^store holds"):
        load_config("smoke")


@pytest.mark.parametrize("values", ORDINARY)
def test_ordinary_values_are_not_refused(values: dict[str, Any]) -> None:
    RunConfig.model_validate(values)
