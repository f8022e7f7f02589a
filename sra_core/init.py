"""`sra init`: a commented recipe from a teacher, a student and data; what can be read from them is not asked."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from sra_core.alignment import AlignedExample, PairEncoder
from sra_core.config import ModelRef, RunConfig, nested
from sra_core.config.load import load_config
from sra_core.config.yaml_1_2 import write_yaml
from sra_core.corpus import Corpus, Example, Rejected
from sra_core.doctor import check_layers, check_models, doubtful_teacher
from sra_core.errors import ConfigError, DataError

__all__ = ["Guess", "guesses", "require_new", "write_recipe"]

_SAMPLE = 200  # examples that are read and tokenized
_SHARE = 0.95  # of them that are to fit
_LONGEST = 2048  # tokens; what longer texts cost is for a person to decide
_STEP = 32  # limits are multiples of it
_COLUMN = 40  # where comments begin


@dataclass(frozen=True, slots=True)
class Guess:
    """A field of the recipe, its value, and what the value was read from; empty for what was told."""

    field: str
    value: Any
    why: str = ""


def require_new(path: Path) -> None:
    """Refuse a place where no recipe can be written, or where something lies already.

    Raises:
        ConfigError: Names the file and what to do.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path} is no name of a recipe", f"call it {path}.yaml")
    if path.exists():
        raise ConfigError(f"{path} is there already", "give another name, or delete it first")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent}", "make it, or give another name")


def guesses(name: str, teacher: str, student: str, data: str) -> list[Guess]:
    """The fields of a recipe, in order, from a look at both models' configs and tokenizers and at the first examples.

    Args:
        name: Name of the runs.
        teacher: Hub id, folder or any other source of a model.
        student: Likewise; ``teacher`` cuts the student out of the teacher.
        data: File, folder, hub data set or ``python-docs``.

    Raises:
        ModelError: A model that cannot be used: what `sra doctor` would say.
        DataError: Data that cannot be read, or of which no example can be aligned.
    """
    told = [
        Guess("name", name),
        Guess("teacher.source", teacher),
        Guess("student.source", student),
        Guess("corpus.source", data),
    ]
    examples = _examples(_config(told))
    told[-1] = Guess("corpus.source", data, f"its first example: {_shown(examples[0])}")
    found = [*told, *_templates(_config(told))]
    check_models(_config(found))
    found += _structure(_config(found))
    check_layers(_config(found))
    found += _lengths(_config(found), examples)
    if doubtful_teacher(_config(found)):
        why = "trained on prompts of another format, the teacher learns this corpus first; off saves the time"
        found.append(Guess("adapt.enabled", True, why))
    return found


def write_recipe(path: Path, found: list[Guess]) -> RunConfig:
    """Write the recipe, with the reason behind each value that was guessed.

    Raises:
        ConfigError: There is such a file already, or it cannot be written.
    """
    lines = [
        "# Made by `sra init`. A field that is not here has its default: `sra fields` lists all with their meaning.",
        f"# Next: `sra doctor {path}` (can it run here), `sra plan {path}` (what will it take), `sra run {path}`.",
    ]
    section = ""
    for guess in sorted(found, key=lambda guess: list(RunConfig.model_fields).index(guess.field.partition(".")[0])):
        part, dot, key = guess.field.rpartition(".")
        if part != section:
            section = part
            lines.append(f"{part}:")
        line = f"{'  ' if dot else ''}{key}: {_yaml(guess.value)}"
        lines.append(f"{line:<{_COLUMN}}  # {guess.why}" if guess.why else line)
    try:
        # x: nothing is written over, not even a file that came in between.
        with path.open("x", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", "give another name") from error
    return load_config(str(path))


def _config(found: list[Guess]) -> RunConfig:
    return load_config(None, nested({guess.field: guess.value for guess in found}), "sra init")


def _examples(config: RunConfig) -> list[Example]:
    items = Corpus(config.corpus).first(_SAMPLE)
    examples = [item for item in items if isinstance(item, Example)]
    if not examples:
        told = next(item.detail for item in items if isinstance(item, Rejected))
        raise DataError(f"{config.corpus.source} holds no example: {told}", "correct the data, or name other")
    return examples


def _shown(example: Example) -> str:
    """An example on one line; ``repr`` leaves no character that YAML refuses."""
    parts = [repr(shorten(text, 40, placeholder="...")) for text in (example.instruction, example.response) if text]
    return " -> ".join(parts)


def _templates(config: RunConfig) -> list[Guess]:
    """How each model reads examples: by the chat template that its tokenizer brings, where it brings one."""
    from sra_core.models import load_tokenizer

    found = []
    for part, ref in (("teacher", config.teacher), ("student", config.student_origin)):
        if load_tokenizer(ref).chat_template:
            found.append(
                Guess(f"{part}.template", "chat", "its tokenizer brings a chat template; plain is corpus.prompt")
            )
        else:
            found.append(Guess(f"{part}.template", "plain", "its tokenizer brings no chat template: corpus.prompt"))
    return found


def _structure(config: RunConfig) -> list[Guess]:
    """Layers that are compared, and how fast and how long the student learns."""
    from sra_core.models import layer_count_of

    teacher, student = layer_count_of(config.teacher), layer_count_of(config.student_origin)
    found = []
    if config.student.source == "teacher":
        student = max(teacher // 2, 1)
        found.append(Guess("student.keep_layers", student, f"half of the teacher's {teacher} layers"))
    why = "the last layers of teacher and student, counted from 1"
    found.append(Guess("objective.layers", [[teacher, student]], why))
    if config.student.source == "teacher":
        found.append(Guess("distill.learning_rate", 5e-4, "a student that was cut has much to learn again"))
    else:
        found.append(Guess("distill.epochs", 3, "passes over the training examples"))
        found.append(
            Guess("distill.learning_rate", 5e-5, "a student that is whole; ten times that for one to be mended")
        )
    return found


def _lengths(config: RunConfig, examples: list[Example]) -> list[Guess]:
    """Limits that most of the examples fit into, on both sides, within what both models can read."""
    from sra_core.models import load_tokenizer

    encoder = PairEncoder(
        load_tokenizer(config.teacher),
        load_tokenizer(config.student_origin),
        teacher_template=config.teacher.template,
        student_template=config.student.template,
        prompt=config.corpus.prompt,
        max_length=sys.maxsize,
        max_prompt=sys.maxsize,
    )
    encoded = encoder(examples)
    aligned = [each for each in encoded if isinstance(each, AlignedExample)]
    if not aligned:
        told = next(each.detail for each in encoded if isinstance(each, Rejected))
        raise DataError(
            f"none of the first {len(examples)} examples of {config.corpus.source} can be aligned: {told}",
            "correct the data, or name other models",
        )
    prompt = _most([max(each.teacher_response, each.student_response) for each in aligned])
    response = _most([_response_tokens(each) for each in aligned])
    window = min(_window(config.teacher), _window(config.student_origin), _LONGEST)
    length = min(prompt + response, window)
    # Texts that are cut: half is the prompt's at most, so that something of the response is left.
    if length == window:
        prompt = min(prompt, window // 2)
    why = f"{{}} of nearly all of the first {len(examples)} examples; longer ones are cut"
    return [
        Guess("alignment.max_length", length, why.format("tokens")),
        Guess("alignment.max_prompt", prompt, why.format("prompts")),
    ]


def _response_tokens(example: AlignedExample) -> int:
    return max(len(example.teacher_ids) - example.teacher_response, len(example.student_ids) - example.student_response)


def _most(counts: list[int]) -> int:
    """A round limit that nearly all counts are within."""
    wanted = sorted(counts)[math.ceil(_SHARE * len(counts)) - 1]
    return max(math.ceil(wanted / _STEP), 1) * _STEP


def _window(ref: ModelRef) -> int:
    """The longest text that a model was made to read, in tokens, where its config says so."""
    from transformers import AutoConfig

    from sra_core.models import resolve

    config = AutoConfig.from_pretrained(resolve(ref, weights=False), trust_remote_code=ref.trust_remote_code)
    return getattr(config.get_text_config(), "max_position_embeddings", None) or _LONGEST


def _yaml(value: Any) -> str:
    # As the item of a list: behind a bare scalar PyYAML writes a line `...`.
    return write_yaml([value], default_flow_style=True, width=sys.maxsize).strip()[1:-1]
