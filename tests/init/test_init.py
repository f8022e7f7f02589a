"""A recipe from three answers: the doctor passes it, its guesses are those of the models, nothing is overwritten."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sra_core.config import ModelRef
from sra_core.config.load import load_config
from sra_core.doctor import examine
from sra_core.errors import ConfigError, DataError, ModelError
from sra_core.init import guesses, require_new, write_recipe
from sra_core.models import resolve

TEACHER = "random:llama?layers=3&width=32&heads=2&vocabulary=400&seed=1"
STUDENT = "random:gpt2?layers=2&width=24&heads=2&vocabulary=300&seed=2"
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SRA = [sys.executable, "-m", "sra_core.cli"]


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "data.jsonl"
    rows = [
        {"question": f"What is {k}?\x07 # no comment", "answer": f"The number {k}: " + "word " * k} for k in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def with_template(source: str, folder: Path) -> str:
    """A copy of a random model whose tokenizer brings a chat template."""
    shutil.copytree(resolve(ModelRef(source=source)), folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    return str(folder)


def test_the_doctor_passes_what_is_written(tmp_path: Path, data: str) -> None:
    path, teacher = tmp_path / "mine.yaml", str(tmp_path / "teacher")
    shutil.copytree(resolve(ModelRef(source=TEACHER)), teacher)  # one that nobody knows to have random weights
    written = write_recipe(path, guesses("mine", teacher, STUDENT, data))
    config = load_config(str(path), {"store": str(tmp_path / "store")})
    assert [finding.text for finding in examine(config) if finding.level == "bad"] == []
    assert (written.teacher.source, written.student.source, written.corpus.source) == (teacher, STUDENT, data)
    assert (written.teacher.template, written.student.template) == ("plain", "plain")
    assert written.objective.layers == [(3, 2)]
    assert written.adapt.enabled, "a teacher that reads prompts of another format is adapted first"
    assert written.name == "mine"
    text = path.read_text()
    assert "max_length: " in text
    assert "# its first example: 'What is 0?\\x07 # no comment' -> 'The number 0:'" in text


def test_limits_fit_nearly_all_examples(data: str) -> None:
    """95 of 100 examples are within; each side counts."""
    from sra_core.alignment import AlignedExample, encoder_of
    from sra_core.corpus import Corpus, Example
    from sra_core.models import load_tokenizer

    found = guesses("mine", TEACHER, STUDENT, data)
    config = load_config(None, {"corpus": {"source": data}, "alignment": {"max_length": 10_000, "max_prompt": 9_000}})
    encode = encoder_of(config, *(load_tokenizer(ModelRef(source=source)) for source in (TEACHER, STUDENT)))
    examples = encode([item for item in Corpus(config.corpus).first(200) if isinstance(item, Example)])
    assert len(examples) == 40
    length = next(guess.value for guess in found if guess.field == "alignment.max_length")
    prompt = next(guess.value for guess in found if guess.field == "alignment.max_prompt")
    prompts, wholes = [], []
    for example in examples:
        assert isinstance(example, AlignedExample)
        prompts.append(max(example.teacher_response, example.student_response))
        wholes.append(max(len(example.teacher_ids), len(example.student_ids)))
    assert sum(each <= prompt for each in prompts) >= 38
    assert sum(each <= length for each in wholes) >= 38
    assert length - max(wholes) < 64
    assert length % 32 == prompt % 32 == 0


def test_the_longest_text_is_what_both_models_can_read(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"text": "a long text, and a longer one " * 200}) + "\n")
    found = {guess.field: guess.value for guess in guesses("x", TEACHER, f"{STUDENT}&positions=96", str(path))}
    assert found["alignment.max_length"] == 96
    assert found["alignment.max_prompt"] <= 48


def test_chat_templates_are_used_where_tokenizers_bring_them(tmp_path: Path, data: str) -> None:
    teacher = with_template(TEACHER, tmp_path / "teacher")
    found = {guess.field: guess.value for guess in guesses("x", teacher, STUDENT, data)}
    assert (found["teacher.template"], found["student.template"]) == ("chat", "plain")
    assert "adapt.enabled" not in found
    cut = {guess.field: guess.value for guess in guesses("x", teacher, "teacher", data)}
    assert (cut["student.template"], cut["student.keep_layers"], cut["objective.layers"]) == ("chat", 1, [[3, 1]])


def test_what_cannot_be_used_is_said_and_nothing_is_written(tmp_path: Path, data: str) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        guesses("x", "./nowhere", STUDENT, data)
    with pytest.raises(DataError, match="no such file"):
        guesses("x", TEACHER, STUDENT, "nowhere.jsonl")
    blank = tmp_path / "blank.jsonl"
    blank.write_text('{"question": "a", "answer": " "}\n')
    with pytest.raises(DataError, match=r"none of the first 1 examples .* the response is empty"):
        guesses("x", TEACHER, STUDENT, str(blank))
    taken = tmp_path / "taken.yaml"
    taken.write_text("name: mine\n")
    with pytest.raises(ConfigError, match="is there already"):
        require_new(taken)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_recipe(taken, [])
    assert taken.read_text() == "name: mine\n"
    with pytest.raises(ConfigError, match="is no name of a recipe"):
        require_new(tmp_path / "smoke")
    with pytest.raises(ConfigError, match="there is no folder"):
        require_new(tmp_path / "none" / "mine.yaml")


def test_a_terminal_is_asked_what_is_not_given(tmp_path: Path, data: str) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, f"{STUDENT}\n{data}\n".encode())
    command = [*SRA, "init", "mine.yaml", "--teacher", TEACHER]
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    os.close(ours), os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert "Student (likewise, or `teacher` for half of its layers)" in done.stdout
    assert "sra doctor mine.yaml`, `" in done.stdout
    assert load_config(str(tmp_path / "mine.yaml")).student.source == STUDENT


def test_without_a_terminal_the_options_that_lack_are_named(tmp_path: Path) -> None:
    command = [*SRA, "init", "mine.yaml", "--teacher", TEACHER]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "not given: student, data" in done.stderr
    assert "add --student ... --data ..." in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_data_without_an_example_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "pictures.jsonl"
    path.write_text('{"question": "a", "answer": "b", "image": "x.png"}\n')
    with pytest.raises(DataError, match="holds no example: column `image` holds"):
        guesses("x", TEACHER, STUDENT, str(path))
