"""The `sra` command as a person types it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sra_core.config.load import load_config
from tests.conftest import SmokeRun

SRA = [sys.executable, "-m", "sra_core.cli"]


def sra(*arguments: str, store: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, COLUMNS="200")
    if store:
        environment |= {"SRA_STORE": str(store), "SRA_TRACKING__ENABLED": "false"}
    return subprocess.run([*SRA, *arguments], capture_output=True, text=True, env=environment, timeout=120)


def test_help_lists_every_command() -> None:
    shown = sra("--help").stdout
    for command in (
        "run",
        "prepare",
        "cache",
        "distill",
        "evaluate",
        "generate",
        "audit",
        "doctor",
        "verify",
        "fields",
        "recipes",
        "init",
        "publish",
    ):
        assert command in shown


def test_completion_knows_commands_recipes_and_files(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    for words, expected in (("sra do", "doctor"), ("sra run quick", "quickstart"), ("sra run ./m", "./mine.yaml")):
        asked = dict(os.environ, _SRA_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
        found = subprocess.run(SRA, capture_output=True, text=True, env=asked, cwd=tmp_path, timeout=120, check=False)
        assert found.stdout.split() == [expected]


def test_completion_can_be_installed(tmp_path: Path) -> None:
    # Through a shell, as the command looks for the one that it was started from; `true` keeps bash from stepping aside.
    command = ["bash", "-c", f"{' '.join(SRA)} --install-completion; true"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=dict(os.environ, HOME=str(tmp_path)), timeout=120, check=False
    )
    assert "completion installed" in done.stdout, done.stderr
    assert "complete -o default -F _sra_completion sra" in (tmp_path / ".bash_completions" / "sra.sh").read_text()


def test_run_on_a_finished_store_ends_with_scores_and_what_to_do_next(smoke_run: SmokeRun) -> None:
    done = sra("run", "smoke", store=smoke_run.store)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already done") == 4
    assert "bits per byte" in done.stdout
    assert f"{smoke_run.results['distill'].folder}/student" in done.stdout.replace("\n", "")
    assert f"publish {smoke_run.results['evaluate'].folder} --to OWNER/NAME" in done.stdout


def test_an_error_is_printed_with_its_remedy_and_no_traceback(tmp_path: Path) -> None:
    failed = sra("cache", "smoke", store=tmp_path)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert "sra prepare` with this config first" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quickstrat"], "did you mean 'quickstart'"),
        (["run", "smoke", "--set", "distill.epoch=2"], "distill.epoch: unknown field; did you mean 'epochs'"),
        (["run", "smoke", "--set", "distill.epochs"], "--set"),
        (["prepare", "smoke", "--set", "teacher.source=./no-such-model"], "no-such-model"),
        (["prepare", "smoke", "--set", "corpus.source=no-such-file.jsonl"], "no-such-file.jsonl"),
        (["run", ""], "no recipe ''"),
        (["run", "."], ". is a folder, not a recipe"),
        (["run", "smoke", "--set", "distill.max_steps=true"], "distill.max_steps: must be an integer, not True"),
        (["run", "smoke", "--set", "distill.learning_rate=true"], "distill.learning_rate: must be a number, not True"),
        (["run", "smoke", "--set", "evaluate.seeds=[1, true]"], "evaluate.seeds: must be an integer"),
        (["run", "smoke", "--set", "seed=99999999999999999999"], "seed: must be less than or equal to"),
        (["bench", "quality", "smoke", "--report", "."], "--report . is a folder"),
        (["compare", "a", "b", "--page", "."], "--page . is a folder"),
        (["audit", "smoke", "--example", "a"], "add --figure"),
    ],
)
def test_bad_input_is_named(arguments: list[str], message: str, tmp_path: Path) -> None:
    failed = sra(*arguments, store=tmp_path)
    assert failed.returncode == 1
    assert message in failed.stderr.replace("\n", " ")
    assert "->" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"extends: [smoke, quickstart]\n", "extends must be the name or file of one recipe"),
        (b"name: caf\xe9\n", "mine.yaml is not UTF-8"),
        (b"name: a\nname: b\n", "mine.yaml cannot be read as YAML: 'name' stands here and in line 1"),
        (b"teacher: &a {b: *a}\n", "Circular"),
    ],
)
def test_a_bad_recipe_is_named(written: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(written)
    failed = sra("config", str(tmp_path / "mine.yaml"))
    assert failed.returncode == 1
    assert message in failed.stderr.replace("\n", " ")
    assert "Traceback" not in failed.stderr


def test_brackets_in_paths_and_prompts_are_no_markup(tmp_path: Path) -> None:
    """Rich takes `[x]` for a style and `[/INST]` for the end of one."""
    store, data = tmp_path / "a store [x]", tmp_path / "d [b].jsonl"
    lines = [{"instruction": f"q{n}", "response": f"answer {n} to it"} for n in range(40)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    chosen = ["--set", f"corpus.source={data}", "--set", "corpus.prompt='Q: {instruction} {context} [/INST]'"]
    done = sra("run", "smoke", *chosen, store=store)
    assert done.returncode == 0, done.stderr
    assert f"{store}/students/" in done.stdout
    assert f"sra run smoke {shlex.join(chosen)} --set distill.learning_rate=1e-3" in done.stdout
    (evaluation,) = (store / "evaluations").glob("*/")
    assert f"compare {shlex.quote(str(evaluation))} OTHER" in done.stdout
    named = tmp_path / "lr=1e-3"
    evaluation.rename(named)
    compared = sra("compare", f"x=1={named}", str(named), "--page", str(tmp_path / "new" / "page.html"), store=store)
    assert compared.returncode == 0, compared.stderr
    assert "x=1" in compared.stdout
    assert (tmp_path / "new" / "page.html").is_file()


def test_a_malformed_line_is_named_by_file_and_number(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text('{"instruction": "a", "response": "b"}\n{"instruction": "a", "resp\n')
    failed = sra("prepare", "smoke", "--set", f"corpus.source={data}", store=tmp_path / "store")
    assert failed.returncode == 1
    assert "train.jsonl" in failed.stderr
    assert "line 2" in failed.stderr


def test_config_prints_a_recipe_that_loads_again(tmp_path: Path) -> None:
    printed = sra("config", "smoke", "--set", "distill.max_steps=3").stdout
    assert yaml.safe_load(printed)["distill"]["max_steps"] == 3
    (tmp_path / "saved.yaml").write_text(printed)
    assert sra("config", str(tmp_path / "saved.yaml")).stdout == printed


def test_text_that_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: smoke\nteacher: {template: chat, template_arguments: {a: '08', b: '1e3'}}\n"
    )
    printed = sra("config", str(tmp_path / "mine.yaml")).stdout
    (tmp_path / "saved.yaml").write_text(printed)
    assert load_config(str(tmp_path / "saved.yaml")).teacher.template_arguments == {"a": "08", "b": "1e3"}
    assert sra("config", str(tmp_path / "saved.yaml")).stdout == printed


def test_verify_finds_a_file_cut_short(smoke_run: SmokeRun, tmp_path: Path) -> None:
    shutil.copytree(smoke_run.store / "prepared", tmp_path / "store" / "prepared")
    shard = sorted((tmp_path / "store").rglob("train-*.arrow"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])
    failed = sra("verify", "smoke", store=tmp_path / "store")
    assert failed.returncode == 1
    assert shard.name in failed.stdout.replace("\n", "")
    assert "generate" not in failed.stdout  # none was made, and a run needs none


def test_verify_finds_a_flipped_byte(smoke_run: SmokeRun, tmp_path: Path) -> None:
    assert sra("verify", "smoke", store=smoke_run.store).returncode == 0
    shutil.copytree(smoke_run.store, tmp_path / "store")
    shard = next((tmp_path / "store" / "teacher").rglob("*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    failed = sra("verify", "smoke", store=tmp_path / "store")
    assert failed.returncode == 1
    assert shard.name in failed.stdout.replace("\n", "")
    assert "run the stage again" in failed.stdout.replace("\n", " ")


def test_doctor_names_what_is_bad() -> None:
    failed = sra("doctor", "smoke", "--set", "teacher.source=./nowhere")
    assert failed.returncode == 1
    assert "nowhere" in failed.stdout


def test_fields_of_one_section_and_of_none_such() -> None:
    shown = sra("fields", "distill").stdout
    assert "distill.max_steps" in shown
    assert "objective." not in shown.partition("distill.max_steps")[0]
    failed = sra("fields", "distil")
    assert failed.returncode == 1
    assert "did you mean 'distill'" in failed.stderr
