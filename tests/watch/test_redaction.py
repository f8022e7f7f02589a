"""Secrets are masked, ordinary settings are not."""

from __future__ import annotations

import io
import logging

import pytest

from sra_core.watch import mask_logs, redact, redact_text
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
    assert secrets == ("correct%20horse%20battery", "correct horse battery", "correct%20horse", "correct horse")
    assert redact_text("a correct horse battery b, correct horse", secrets) == f"a {MASK} b, {MASK}"


def test_passwords_inside_variables_are_masked_alone_too() -> None:
    environment = {
        "SERVICES_PREFECT_DATABASE": "postgresql+asyncpg://sra:ba/tt@ery-1@db/prefect",
        "PREFECT_API_AUTH_STRING": "ann:open-sesame",
        "AWS_SECRET_ACCESS_KEY": "/begins/with/a/slash",
    }
    secrets = environment_secrets(environment)
    told = "tried ba/tt@ery-1 and ba%2Ftt%40ery-1, then open-sesame, then /begins/with/a/slash"
    assert redact_text(told, secrets) == f"tried {MASK} and {MASK}, then {MASK}, then {MASK}"


def test_a_whole_password_in_an_address_is_masked() -> None:
    assert redact_text("s3://KEY:SEC/RET@x@bucket/path", ()) == f"s3://{MASK}@bucket/path"
    assert redact_text("http://127.0.0.1:5000/a@b", ()) == "http://127.0.0.1:5000/a@b"


def test_log_lines_and_tracebacks_are_masked(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "correct-horse")
    log = logging.getLogger("some.library")
    handler = logging.StreamHandler(stream := io.StringIO())
    log.addHandler(handler)
    try:
        mask_logs()
        try:
            raise ValueError("https://ann:other-horse@host is gone")
        except ValueError:
            log.exception("no access with %s", "correct-horse")
    finally:
        log.removeHandler(handler)
    assert "no access with ***" in stream.getvalue()
    assert "ValueError: https://***@host is gone" in stream.getvalue()
    assert "horse" not in stream.getvalue()
