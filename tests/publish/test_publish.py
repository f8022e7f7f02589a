"""Publishing against a stand-in of the hub: the real client uploads the real student; licences and privacy are kept."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from sra_core.config import RunConfig
from sra_core.errors import ManifestMismatch, PublishError, ShardError
from sra_core.models import MADE_HERE
from sra_core.publish import require_licences, student_of
from sra_core.shards import Manifest
from tests.conftest import SmokeRun

from .hub import TOKEN, Hub, Repository, serving


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def asked(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """The environment of a user who is logged in by HF_TOKEN."""
    own = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    return {**os.environ, **own, "HF_HUB_DISABLE_XET": "1", "COLUMNS": "200"}


def publish(run: SmokeRun, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sra_core.cli", "publish", run.results["evaluate"].folder, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_the_student_arrives_whole_private_and_alone(
    smoke_run: SmokeRun, hub: Hub, asked: dict[str, str], tmp_path: Path
) -> None:
    done = publish(smoke_run, asked, "--to", "someone/smoke")
    assert done.returncode == 0, done.stderr
    assert f"The student is at {hub.address}/someone/smoke (private)" in done.stdout
    found = hub.repositories["someone/smoke"]
    assert found.private
    student = Path(smoke_run.results["distill"].folder) / "student"
    assert found.files == {path.name: path.read_bytes() for path in student.iterdir()}
    assert "model.safetensors" in found.files
    assert found.files["README.md"].startswith(b"---\nlibrary_name: transformers")
    for name, data in found.files.items():
        (tmp_path / name).write_bytes(data)
    AutoModelForCausalLM.from_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path)

    found.files |= {"model-00001-of-00002.safetensors": b"of an earlier student", ".gitattributes": b"kept"}
    again = publish(smoke_run, asked, "--to", "someone/smoke")
    assert again.returncode == 0, again.stderr
    assert set(found.files) == {*(path.name for path in student.iterdir()), ".gitattributes"}
    assert len(found.commits) == 2
    assert all("sra" in agent for agent in hub.agents)


def test_nobody_sees_more_or_less_than_asked_for(smoke_run: SmokeRun, hub: Hub, asked: dict[str, str]) -> None:
    hub.repositories["someone/open"] = Repository(private=False)
    hub.repositories["someone/closed"] = Repository(private=True)
    refused = publish(smoke_run, asked, "--to", "someone/open")
    assert refused.returncode == 1
    assert "someone/open is there already, and public\n  -> give --public if everybody may see it" in refused.stderr
    refused = publish(smoke_run, asked, "--to", "someone/closed", "--public")
    assert "someone/closed is there already, and private\n  -> leave --public out" in refused.stderr
    assert not hub.repositories["someone/open"].files
    assert not hub.repositories["someone/closed"].files
    done = publish(smoke_run, asked, "--to", "someone/new", "--public")
    assert done.returncode == 0, done.stderr
    assert "(public)" in done.stdout
    assert not hub.repositories["someone/new"].private


def test_what_the_hub_refuses_is_said(smoke_run: SmokeRun, hub: Hub, asked: dict[str, str]) -> None:
    other = publish(smoke_run, asked, "--to", "others/smoke")
    assert other.returncode == 1
    assert "the hub refuses others/smoke (403): You don't have the rights" in other.stderr
    assert "an organization of yours" in other.stderr
    wrong = publish(smoke_run, {**asked, "HF_TOKEN": "hf_" + "b" * 34}, "--to", "someone/wrong")
    assert "the hub refuses someone/wrong (401): Invalid credentials" in wrong.stderr
    assert "hf_" not in wrong.stderr
    nobody = publish(smoke_run, {**asked, "HF_TOKEN": ""}, "--to", "someone/wrong")
    assert "nobody is logged in to the hub\n  -> set HF_TOKEN, or log in with `hf auth login`" in nobody.stderr
    gone = publish(smoke_run, {**asked, "HF_ENDPOINT": "http://127.0.0.1:9"}, "--to", "someone/wrong")
    assert "the hub cannot be reached" in gone.stderr
    bare = publish(smoke_run, asked, "--to", "smoke")
    assert "'smoke' is no name of a repository\n  -> write it as OWNER/NAME" in bare.stderr
    assert all("Traceback" not in done.stderr for done in (other, wrong, nobody, gone, bare))
    assert "someone/wrong" not in hub.repositories


def student_with(notes: dict[str, str]) -> Manifest:
    notes = {f"licence of the {which}": text for which, text in notes.items()}
    return Manifest(stage="distill", fingerprint="f", identity={}, created="2026-01-01T00:00:00+00:00", notes=notes)


@pytest.mark.parametrize(
    "licence",
    [
        "apache-2.0",
        "mit",
        "bsd-3-clause",
        "cc-by-nc-sa-4.0",
        "gpl-3.0",
        "openrail++",
        "bigscience-openrail-m",
        MADE_HERE,
    ],
)
def test_licences_that_allow_it(licence: str) -> None:
    told = require_licences(student_with({"teacher": licence, "student's source": "mit"}), confirmed=False)
    assert told == [f"teacher: {licence}", "student's source: mit"]


@pytest.mark.parametrize("licence", ["cc-by-nd-4.0", "mit, cc-by-nc-nd-4.0", "my terms:\nno derivatives", "noderivs"])
@pytest.mark.parametrize("which", ["teacher", "student's source"])
def test_licences_that_forbid_it_whatever_is_said(licence: str, which: str) -> None:
    notes = {"teacher": "mit", "student's source": "mit", which: licence}
    with pytest.raises(PublishError, match=re.escape(f"the licence of the {which}, {licence}, forbids")):
        require_licences(student_with(notes), confirmed=True)


@pytest.mark.parametrize("licence", ["llama2", "llama3", "meta llama 3 community license"])
def test_some_may_be_cut_but_teach_no_other_model(licence: str) -> None:
    with pytest.raises(PublishError, match="forbids"):
        require_licences(student_with({"teacher": licence, "student's source": "mit"}), confirmed=True)
    with pytest.raises(PublishError, match="is not known here"):
        require_licences(student_with({"teacher": licence}), confirmed=False)
    assert require_licences(student_with({"teacher": licence}), confirmed=True) == [f"teacher: {licence}"]


@pytest.mark.parametrize("licence", ["", "gemma", "llama3.1", "llama 3.2 community", "other", "mit, gemma", "not-mit"])
def test_licences_that_are_not_known_need_a_word(licence: str) -> None:
    student = student_with({"teacher": licence, "student's source": "mit"})
    with pytest.raises(PublishError, match=rf"teacher is {licence or 'not known'}: .*\n  -> read its terms"):
        require_licences(student, confirmed=False)
    assert require_licences(student, confirmed=True)[1] == "student's source: mit"


def test_a_student_of_before_licences_were_noted_needs_a_word() -> None:
    with pytest.raises(PublishError, match="teacher is not known and the licence of the student's source is not known"):
        require_licences(student_with({}), confirmed=False)


@pytest.fixture
def copy(smoke_run: SmokeRun, tmp_path: Path) -> Path:
    """The store of the finished run, to be changed."""
    shutil.copytree(smoke_run.store, tmp_path / "store")
    return tmp_path / "store"


def test_only_the_student_that_was_evaluated_is_published(smoke_run: SmokeRun, copy: Path) -> None:
    config = RunConfig(store=str(copy))
    evaluation = copy / "evaluations" / smoke_run.results["evaluate"].fingerprint
    student = student_of(config, evaluation)
    assert student.fingerprint == smoke_run.results["distill"].fingerprint
    assert student.notes["licence of the teacher"] == MADE_HERE
    folder = Path(student.folder)

    with pytest.raises(PublishError, match="is a result of distill, not of evaluate"):
        student_of(config, folder)
    weights = folder / "student" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ShardError, match="is damaged"):
        student_of(config, evaluation)
    weights.write_bytes(whole)
    manifest = evaluation / "manifest.json"
    manifest.write_text(manifest.read_text().replace(student.content, "0" * 16))
    with pytest.raises(ManifestMismatch, match="was made again since it was evaluated"):
        student_of(config, evaluation)
