"""The two tokenizers of a run: where they come from, where they are kept, what they share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sra_core.alignment import PairEncoder, SharedVocabulary, shared_vocabulary
from sra_core.config import ModelRef, RunConfig
from sra_core.corpus import Corpus, Example, render
from sra_core.errors import AlignmentError
from sra_core.watching import Watcher

__all__ = [
    "STUDENT_TOKENIZER",
    "TEACHER_TOKENIZER",
    "encoder_of",
    "load_tokenizers",
    "make_encoder",
    "save_tokenizers",
    "shared_tokens",
    "student_tokenizer_ref",
]

TEACHER_TOKENIZER = "teacher_tokenizer"
STUDENT_TOKENIZER = "student_tokenizer"


def student_tokenizer_ref(config: RunConfig) -> ModelRef | None:
    """Where the student's tokenizer comes from; None when it is trained on the corpus."""
    if config.student.tokenizer == "train":
        return None
    if config.student.tokenizer != "source":
        return ModelRef(source=config.student.tokenizer, trust_remote_code=config.student.trust_remote_code)
    return config.teacher if config.student.source == "teacher" else config.student


def save_tokenizers(config: RunConfig, corpus: Corpus, folder: Path, watch: Watcher) -> None:
    """Write both tokenizers into a folder; the student's is trained first where the config wants that."""
    from sra_core.models import load_tokenizer

    ref = student_tokenizer_ref(config)
    if ref is None:
        watch.message(f"training the student's tokenizer ({config.student.vocabulary_size} entries)")
    student = _train_student_tokenizer(config, corpus) if ref is None else load_tokenizer(ref)
    load_tokenizer(config.teacher).save_pretrained(folder / TEACHER_TOKENIZER)
    student.save_pretrained(folder / STUDENT_TOKENIZER)


def _train_student_tokenizer(config: RunConfig, corpus: Corpus) -> Any:
    """A byte-level BPE tokenizer trained on the training split, prompts included."""
    from sra_core.models import train_tokenizer

    if config.student.template == "chat":
        raise AlignmentError(
            "student.template is `chat`, but a tokenizer trained on the corpus has no chat template",
            "set student.template to `plain`, or name a student.tokenizer that has one",
        )
    return train_tokenizer(_training_texts(config, corpus), config.student.vocabulary_size)


def _training_texts(config: RunConfig, corpus: Corpus) -> Iterator[str]:
    for split, item in corpus:
        if split == "train" and isinstance(item, Example):
            rendered = render(item, "plain", config.corpus.prompt)
            yield rendered.prompt + rendered.response


def load_tokenizers(folder: Path) -> tuple[Any, Any]:
    """Teacher's and student's tokenizers as a prepared folder keeps them."""
    from sra_core.models import load_tokenizer

    teacher, student = (ModelRef(source=str(folder / name)) for name in (TEACHER_TOKENIZER, STUDENT_TOKENIZER))
    return load_tokenizer(teacher), load_tokenizer(student)


def shared_tokens(config: RunConfig, folder: Path) -> SharedVocabulary:
    """The shared vocabulary of a prepared folder's tokenizers, as the config wants it."""
    return shared_vocabulary(*load_tokenizers(folder), first_tokens=config.alignment.first_tokens)


def make_encoder(config: RunConfig, folder: Path) -> PairEncoder:
    """The encoder of a prepared folder, from the tokenizers saved in it."""
    return encoder_of(config, *load_tokenizers(folder))


def encoder_of(config: RunConfig, teacher: Any, student: Any) -> PairEncoder:
    """The encoder of a config with two tokenizers."""
    return PairEncoder(
        teacher,
        student,
        teacher_template=config.teacher.template,
        student_template=config.student.template,
        prompt=config.corpus.prompt,
        max_length=config.alignment.max_length,
        max_prompt=config.alignment.max_prompt,
    )
