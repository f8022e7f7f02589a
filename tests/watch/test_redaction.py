"""Secrets are masked, ordinary settings are not."""

from __future__ import annotations

import pytest

from sra_core.watch import redact, redact_text
from sra_core.watch.redaction import MASK, environment_secrets


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://ann:hunter2@host:5000/x", f"http://{MASK}@host:5000/x"),
        ("s3://bucket/a?X-Amz-Signature=abc&part=1", f"s3://bucket/a?X-Amz-Signature={MASK}&part=1"),
        ("https://host/f?token=abc", f"https://host/f?token={MASK}"),
        ("uses hf_AbCdEfGhIjKlMnOpQrSt now", f"uses {MASK} now"),
        ("key AKIAABCDEFGHIJKLMNOP", f"key {MASK}"),
        ("mail ann@example.org", "mail ann@example.org"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("### Instruction:\n{instruction}?key points", "### Instruction:\n{instruction}?key points"),
    ],
)
def test_text(text: str, clean: str) -> None:
    assert redact_text(text, ()) == clean


def test_fields_are_masked_by_name_and_others_kept() -> None:
    values = {
        "wandb": {"api_key": "abc", "enabled": True},
        "password": "x",
        "hub_token": "y",
        "max_new_tokens": 128,
        "tokenizer": "train",
        "tokens_per_batch": 4096,
        "temperature": 2.0,
        "targets": ["q_proj", "http://u:p@h/"],
        "token": None,
    }
    assert redact(values, secrets=()) == {
        **values,
        "wandb": {"api_key": MASK, "enabled": True},
        "password": MASK,
        "hub_token": MASK,
        "targets": ["q_proj", f"http://{MASK}@h/"],
    }


def test_values_of_secret_variables_are_masked_anywhere() -> None:
    environment = {
        "MLFLOW_TRACKING_PASSWORD": "correct horse",
        "HF_TOKEN": "correct horse battery",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_TOKEN_PATH": "/home/ann/token",
        "MAX_TOKENS": "123456789",
        "SHORT_SECRET": "abc",
        "HOME": "/home/ann",
    }
    secrets = environment_secrets(environment)
    assert secrets == ("correct horse battery", "correct horse")
    assert redact_text("a correct horse battery b, correct horse", secrets) == f"a {MASK} b, {MASK}"
