"""The two tokenizers of a run: where they come from, where they are kept, what they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sra_core.alignment import answer_end
from sra_core.config import RunConfig
from sra_core.corpus import FIXED_DAY, Corpus, Example, asks_for_the_date, render
from sra_core.errors import AlignmentError
from sra_core.objective import teacher_needs
from sra_core.shards import STUDENT_TOKENIZER, TEACHER_TOKENIZER
from sra_core.watch import Watcher

__all__ = ["refuse_chat_without_template", "save_tokenizers", "tell_templates"]


def save_tokenizers(config: RunConfig, corpus: Corpus, folder: Path, watch: Watcher) -> tuple[Any, Any]:
    """Write both tokenizers into a folder; the student's is trained first where the config wants that.

    Returns:
        The two, as they lie there: loading a large one takes a second.

    Raises:
        ModelError: The teacher's tokenizer writes tokens that it has no embeddings for.
    """
    from sra_core.models import load_tokenizer, require_embeddings, tokenizer_identity

    ref = config.student_tokenizer_origin
    if ref is None:
        watch.message(f"training the student's tokenizer ({config.student.vocabulary_size} entries)")
    student = _train_student_tokenizer(config, corpus) if ref is None else load_tokenizer(ref)
    place = {"source", "revision", "trust_remote_code"}
    same = ref is not None and ref.model_dump(include=place) == config.teacher.model_dump(include=place)
    teacher = student if same else load_tokenizer(config.teacher)
    require_embeddings(config.teacher, teacher, config.teacher.template == "chat")
    alike = same or tokenizer_identity(teacher)["tokenizer"] == tokenizer_identity(student)["tokenizer"]
    if alike and not teacher_needs(config.objective).same_tokenizer:
        watch.message(
            "teacher and student have the same tokenizer: objectives that compare token by token (fkl, rkl, js, skl) "
            "can be chosen too"
        )
    teacher.save_pretrained(folder / TEACHER_TOKENIZER)
    student.save_pretrained(folder / STUDENT_TOKENIZER)
    return teacher, student


def tell_templates(config: RunConfig, tokenizers: Sequence[Any], watch: Watcher) -> None:
    """Say what the two chat templates decide that a reader may not expect: how answers end, which day it is."""
    for name, part, tokenizer in zip(("teacher", "student"), (config.teacher, config.student), tokenizers, strict=True):
        if part.template == "plain":
            continue
        end, text_end = tokenizer.convert_ids_to_tokens(
            [answer_end(tokenizer, "chat", part.template_arguments), tokenizer.eos_token_id]
        )
        if end != text_end:
            watch.message(f"{name}: answers end with {end}, as its chat template writes; texts with {text_end}")
        if asks_for_the_date(tokenizer, part.template_arguments):
            watch.message(
                f"{name}: its chat template asks for today's date and is told {FIXED_DAY:%Y-%m-%d}, every day; another "
                f"is {name}.template_arguments: {{strftime_now: 2025-01-31}}"
            )


def refuse_chat_without_template(config: RunConfig) -> None:
    """Refuse a chat template of a tokenizer that is trained on the corpus.

    Raises:
        AlignmentError: It has none.
    """
    if config.student.template == "chat" and config.student_tokenizer_origin is None:
        raise AlignmentError(
            "student.template is `chat`, but a tokenizer trained on the corpus has no chat template",
            "set student.template to `plain`, or name a student.tokenizer that has one",
        )


def _train_student_tokenizer(config: RunConfig, corpus: Corpus) -> Any:
    """A byte-level BPE tokenizer trained on the training split, prompts included."""
    from sra_core.models import train_tokenizer

    refuse_chat_without_template(config)
    return train_tokenizer(_training_texts(config, corpus), config.student.vocabulary_size)


def _training_texts(config: RunConfig, corpus: Corpus) -> Iterator[str]:
    for split, item in corpus:
        if split == "train" and isinstance(item, Example):
            # Tools have no place in a plain prompt: such an example is turned away later, and counted there.
            rendered = render(replace(item, tools=""), "plain", config.corpus.prompt)
            yield rendered.prompt + rendered.response
