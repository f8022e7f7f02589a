"""Code that comes with a tokenizer: run where the config trusts it, wherever the tokenizer is loaded, else never."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import dynamic_module_utils

import sra_core
from sra_core import stages
from sra_core.cache import capture_teacher
from sra_core.config import ModelRef, RunConfig
from sra_core.errors import ModelError
from sra_core.models import load_tokenizer, load_tokenizers, resolve, tokenizer_identity_of
from sra_core.watch import Watcher
from tests.cache.make import cache_folder, make_config, make_prepared

CODE = """
from transformers import PreTrainedTokenizerFast

print("the tokenizer's own code runs")

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
RUNS = "the tokenizer's own code runs"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose tokenizer is a class that the folder ships."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    shutil.copytree(resolve(ModelRef(source="random:gpt2?layers=2&width=16&vocabulary=400&seed=3")), folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own_tokens.OwnTokenizer"]}}
    path.write_text(json.dumps(settings))
    (folder / "own_tokens.py").write_text(CODE)
    return folder


@pytest.mark.parametrize(
    "written", [{"AutoTokenizer": ["own_tokens.OwnTokenizer", None]}, ["own_tokens.OwnTokenizer", None]]
)
def test_a_class_that_transformers_knows_needs_no_code(own: Path, written: Any) -> None:
    path = own / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"auto_map": written}
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"a class that it ships itself \(OwnTokenizer\)"):
        load_tokenizer(ModelRef(source=str(own)))
    path.write_text(json.dumps(settings | {"tokenizer_class": "GPT2TokenizerFast"}))
    assert type(load_tokenizer(ModelRef(source=str(own)))).__module__.startswith("transformers.")


def config_with(folder: Path, store: Path, trusted: bool) -> RunConfig:
    ref = {"source": str(folder), "trust_remote_code": trusted}
    changes = {"teacher": ref, "student": ref, "objective": {"layers": [[-1, -1]]}}
    steps = {"max_steps": 2, "validate_every": 2, "checkpoint_every": 2}
    return make_config(store, **changes, distill=steps)


def test_what_is_kept_of_it_runs_where_the_config_trusts_it(own: Path, tmp_path: Path) -> None:
    config = config_with(own, tmp_path / "store", trusted=True)
    prepared = make_prepared(config)
    assert [type(each).__name__ for each in load_tokenizers(config, Path(prepared.folder))] == ["OwnTokenizer"] * 2
    assert capture_teacher(config, prepared, cache_folder(config, prepared), Watcher()).counts["examples"] == 7


def test_without_trust_it_neither_runs_nor_asks(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked the terminal"))
    trusting = config_with(own, tmp_path / "store", trusted=True)
    folder = Path(make_prepared(trusting).folder)
    assert RUNS in capfd.readouterr().out
    shutil.rmtree(tmp_path / "modules", ignore_errors=True)
    wary = config_with(own, tmp_path / "store", trusted=False)
    refusals = (
        lambda: load_tokenizers(wary, folder),
        lambda: load_tokenizer(wary.teacher),
        lambda: tokenizer_identity_of(wary.teacher),  # remembered for who trusts it, not for who doesn't
    )
    tokenizer_identity_of(trusting.teacher)
    capfd.readouterr()
    for refuse in refusals:
        with pytest.raises(ModelError, match="if you trust it, set trust_remote_code"):
            refuse()
    assert RUNS not in capfd.readouterr().out


def test_other_code_is_another_tokenizer(own: Path) -> None:
    ref = ModelRef(source=str(own), trust_remote_code=True)
    before = tokenizer_identity_of(ref)
    (own / "own_tokens.py").write_text(CODE + "# changed\n")
    after = tokenizer_identity_of(ref)
    assert before["code"] != after["code"]
    assert {**before, "code": ""} == {**after, "code": ""}
    assert "code" not in tokenizer_identity_of(ModelRef(source="random:gpt2?layers=2"))


@pytest.mark.slow
def test_it_goes_through_every_stage(own: Path, tmp_path: Path) -> None:
    config = config_with(own, tmp_path / "store", trusted=True)
    config.adapt = config.adapt.model_copy(update={"enabled": True, "max_steps": 2})
    results = stages.run(config)
    assert results["evaluate"].metrics
    kept = Path(results["distill"].folder) / "student"
    assert type(load_tokenizer(ModelRef(source=str(kept), trust_remote_code=True))).__name__ == "OwnTokenizer"


def calls() -> Iterator[tuple[str, str, list[str | None]]]:
    for path in sorted(Path(sra_core.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield f"{path.name}:{node.lineno}", ast.unparse(node.func), [word.arg for word in node.keywords]


def test_no_loading_leaves_it_open_whether_code_may_run() -> None:
    """transformers asks the terminal where it is not told, and a reference without the flag forgets what was said."""
    loading = ("AutoConfig.from_pretrained", "AutoTokenizer.from_pretrained", "AutoModelForCausalLM.from_pretrained")
    found = [(place, words) for place, name, words in calls() if name in (*loading, "ModelRef", "kind.from_pretrained")]
    assert len(found) >= 10
    assert [place for place, words in found if "trust_remote_code" not in words] == []
