"""Secrets planted where people put them, on real servers: none is found where others look."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import yaml

from .conftest import POSTGRES_PASSWORD
from .servers import ROOT, Stack, command, new_settings, running_stack, services

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

PLANTED = "planted"
"""Part of every secret of this file, and of no test's name: folders of tests are named after them."""


def test_secrets_stay_where_they_were_put(tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask_wtf", reason="extra `auth` is not installed")
    monkeypatch.setenv("HTTPS_PROXY", "http://ann:planted-proxy-1@127.0.0.1:1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "/planted/key-1234567890")
    monkeypatch.setenv("SRA_NAME", "run /planted/key-1234567890")  # a secret variable's value inside an allowed field
    settings = new_settings(
        tmp_path,
        prefect_database=f"postgresql+asyncpg://{postgres}/prefect",
        mlflow_database=f"postgresql+psycopg2://{postgres}/mlflow",
        mlflow_auth="ann:planted-tracking-1",
    )
    with running_stack(settings) as stack:
        stack.mlflow.auth = ("ann", "planted-tracking-1")
        good = stack.trigger("prepare", recipe="smoke")
        refused = {
            "store": "s3://KEY:planted/se@cret@bucket",
            "corpus.source": "https://ann:planted@host/texts.jsonl",
            "distill.deepspeed": {"wandb": {"api_key": "planted"}},
        }
        deployment = stack.deployment("prepare")["id"]
        for name, text in refused.items():
            section, _, field = name.partition(".")
            inside = {section: {field: text} if field else text}
            for sent in ({"overrides": {name: text}}, {"config": inside}, {"overrides": inside}):
                answer = stack.prefect.post(f"/deployments/{deployment}/create_flow_run", json={"parameters": sent})
                assert answer.status_code == 409, "refused before there is a run that would keep it"
                assert name.split(".")[0] in answer.text
                assert "set it as a variable of the worker" in answer.text
                assert PLANTED not in answer.text
        away = stack.trigger("prepare", recipe="smoke", overrides={"corpus.source": "ann/none"})
        stack.wait(good, "COMPLETED", seconds=300)
        stack.wait(away, "FAILED", seconds=300)
        everything = _seen_in_prefect(stack)
        assert PLANTED not in everything
        assert PLANTED not in json.dumps([stack.runs(), stack.post("/automations/filter")])
        listed = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
        assert [line for line in listed if PLANTED in line and "pytest" not in line] == []
    for place in (*settings.home.glob("*.log"), *settings.state.rglob("*.json"), *settings.state.rglob("*.md")):
        assert PLANTED not in place.read_text(errors="replace"), place


def _seen_in_prefect(stack: Stack) -> str:
    """All flow runs with their parameters, states, logs, artifacts and tasks."""
    seen = []
    for run in stack.post("/flow_runs/filter"):
        seen += [run, stack.prefect.get("/flow_run_states/", params={"flow_run_id": run["id"]}).json()]
        seen += [stack.log(run["id"]), stack.artifacts(run["id"]), stack.task_runs(run["id"])]
    return json.dumps(seen)


def test_what_services_keep_is_closed_to_other_users(stack: Stack) -> None:
    kept = [stack.settings.state / "mlflow.db", *stack.settings.home.glob("*.log"), *stack.settings.home.glob("*.db")]
    assert len(kept) >= 5
    assert {stat.filemode(place.stat().st_mode) for place in kept} == {"-rw-------"}
    assert stat.filemode(stack.settings.home.stat().st_mode) == "drwx------"


def test_a_store_with_a_password_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = command("deploy/services.py", "up", SRA_STORE="s3://KEY:planted@bucket", SERVICES_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr
    assert PLANTED not in done.stdout + done.stderr
    assert not list(tmp_path.glob("*.pid"))


def test_servers_of_compose_log_in_with_any_password(postgres: str) -> None:
    """A password with @ and / must reach PostgreSQL as it is."""
    place = urlsplit(f"//{postgres}")
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    values = {name: str(value) for name, value in compose["prefect"]["environment"].items() if "DATABASE" in name}
    values |= {"PREFECT_SERVER_DATABASE_HOST": str(place.hostname), "PREFECT_SERVER_DATABASE_PORT": str(place.port)}
    values["PREFECT_SERVER_DATABASE_PASSWORD"] = values["PGPASSWORD"] = POSTGRES_PASSWORD
    environment = {**os.environ, **values}
    (address,) = [word.partition("=")[2] for word in compose["mlflow"]["command"] if "backend-store-uri" in word]
    address = address.replace("postgres:5432", f"{place.hostname}:{place.port}")
    code = f"from sqlalchemy import create_engine; create_engine({address!r}).connect()"
    for words in (["-m", "prefect", "server", "database", "upgrade", "--yes"], ["-c", code]):
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_another_password_for_mlflow_takes_the_place_of_the_first(tmp_path: Path) -> None:
    pytest.importorskip("flask_wtf", reason="extra `auth` is not installed")
    first, second = (new_settings(tmp_path, mlflow_auth=f"ann:{word}-sesame-1234") for word in ("open", "shut"))
    for settings, known in ((first, {"open": 200, "shut": 401}), (second, {"open": 401, "shut": 200})):
        _, mlflow, _ = services.services(settings)
        services._make_private(settings)
        services._write_passwords(settings)
        try:
            services.start(mlflow, settings)
            services.wait(mlflow, settings)
            client = Stack(settings).mlflow
            for word, status in known.items():
                login = ("ann", f"{word}-sesame-1234")
                answer = client.post("/experiments/search", json={"max_results": 1}, auth=login)
                assert answer.status_code == status, word
        finally:
            services.down(settings)
