"""What `import sra_core` gives: its docstrings run as they stand, names load late, two tokenizers go in by any name."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

import sra_core
from sra_core import alignment
from sra_core.errors import AlignmentError, ConfigError, DataError, ModelError, TokenizerError
from tests.alignment.tokenizers import load
from tests.conftest import SmokeRun

HUB = {"deepseek-ai/DeepSeek-V3": "deepseek", "Qwen/Qwen2.5-0.5B": "qwen"}
TEXT = "In 2026 the naïve approach fails: 東京."


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub's cache with the two tokenizers that the docstrings name, as an earlier download leaves them."""
    hub = tmp_path_factory.mktemp("downloaded")
    for name, kind in HUB.items():
        tokenizer = load(kind)
        if tokenizer is None:
            pytest.skip(f"the package that ships {kind} is not installed")
        folder = hub / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        tokenizer.save_pretrained(folder / "snapshots" / ("0" * 40))
    return hub


@pytest.fixture
def hub(downloaded: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(downloaded))
    return downloaded


@pytest.mark.parametrize("name", [name for name in sra_core.__all__ if name != "__version__"])
def test_docstrings_do_what_they_show(
    name: str, hub: Path, smoke_run: SmokeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRA_STORE", str(smoke_run.store))
    monkeypatch.setenv("SRA_TRACKING__ENABLED", "false")
    function = getattr(sra_core, name)
    (shown,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert len(shown.examples) >= 3
    assert any(each.source == f"from sra_core import {name}\n" for each in shown.examples) or name == "run"
    told: list[str] = []
    doctest.DocTestRunner(verbose=False).run(shown, out=told.append)
    assert told == []


def test_to_import_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "tokenizers", "numpy", "pydantic", "mlflow", "pyarrow")
    code = f"import sys, sra_core; dir(sra_core); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_run_stays_a_function_whatever_is_imported() -> None:
    for module in ("sra_core.runs", "sra_core.bench.run", "sra_core.config.run", "sra_core.stages"):
        importlib.import_module(module)
    assert sra_core.run is importlib.import_module("sra_core.stages").run


def test_names_folders_and_tokenizers_give_the_same(hub: Path) -> None:
    teacher, student = HUB
    folder = next((hub / f"models--{student.replace('/', '--')}" / "snapshots").iterdir())
    by_name = sra_core.align(teacher, student, TEXT)
    by_folder = sra_core.align(load("deepseek"), folder, TEXT)
    assert by_name == by_folder
    assert repr(by_name) == repr(by_folder)
    assert np.array_equal(sra_core.shared_vocabulary(teacher, folder).teacher_ids, shared().teacher_ids)


def shared() -> alignment.SharedVocabulary:
    return alignment.shared_vocabulary(load("deepseek"), load("qwen"))


def test_spans_are_those_of_the_offsets_and_can_be_read(hub: Path) -> None:
    teacher, student = HUB
    spans = sra_core.align(teacher, student, TEXT)
    plain = [load(kind)(TEXT, add_special_tokens=False, return_offsets_mapping=True) for kind in HUB.values()]
    ids = [each["input_ids"] for each in plain]
    assert spans.teacher_ids.tolist() == [*ids[0], load("deepseek").eos_token_id]
    assert spans.student_ids.tolist() == [*ids[1], load("qwen").eos_token_id]
    words = TEXT.index(":")  # before it every character is a cut on both sides, so that characters serve as bytes do
    offsets = [[pair for pair in each["offset_mapping"] if pair[1] <= words] for each in plain]
    by_characters = alignment.align(*offsets)
    assert spans.head(len(by_characters)).teacher.tolist() == by_characters.teacher.tolist()
    assert spans.head(len(by_characters)).student.tolist() == by_characters.student.tolist()
    assert "".join(span.text for span in spans) == spans.text == TEXT
    assert [len(span.student) for span in spans] == (spans.student[:, 1] - spans.student[:, 0]).tolist()
    assert str(spans).splitlines()[3] == "202        202        2|0|2"
    assert " ·東京      ·|東京     ·\\xe6\\x9d|\\xb1|京"[1:] in str(spans)


def test_an_audit_counts_what_align_finds(hub: Path) -> None:
    teacher, student = load("deepseek"), load("qwen")
    texts = [f"{TEXT} {number}" for number in range(300)]  # more than are encoded together
    report = sra_core.audit(teacher, student, (text for text in [*texts, "  "]))
    assert report.examples == 300
    assert report.dropped == {"empty_response": 1}
    assert report.overall.spans == sum(len(sra_core.align(teacher, student, text)) for text in texts)
    assert report.worst[0].id.startswith("text ")


def test_what_cannot_be_aligned_is_said(hub: Path) -> None:
    teacher, student = load("deepseek"), load("qwen")
    with pytest.raises(AlignmentError, match="the text '  ' has no spans: the response is empty"):
        sra_core.align(teacher, student, "  ")
    with pytest.raises(TokenizerError, match=r"a list is no fast tokenizer.*\n  -> .*sra_core.alignment.align takes"):
        sra_core.align([(0, 1)], [(0, 1)], "a")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no folder"):
        sra_core.shared_vocabulary("./nowhere", student)
    with pytest.raises(DataError, match="text 2 is of type int, not str"):
        sra_core.audit(teacher, student, ["one", 2])  # type: ignore[list-item]
    with pytest.raises(DataError, match="texts is of type str, not a list"):
        sra_core.audit(teacher, student, "one text")
    with pytest.raises(DataError, match="texts is of type NoneType"):
        sra_core.audit(teacher, student, None)  # type: ignore[arg-type]
    for call in (lambda it: sra_core.align(teacher, student, it), lambda it: sra_core.audit(teacher, student, [it])):
        with pytest.raises(DataError, match="text 1 holds a lone surrogate, half of a character, at character 3"):
            call("a \ud800 b")
    with pytest.raises(ConfigError, match="'smoke' is no config\n  -> build one: load_config"):
        sra_core.run("smoke")  # type: ignore[arg-type]
