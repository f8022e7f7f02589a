"""The two tokenizers of a run, as its prepared folder keeps them, and what they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from sra_core.alignment import PairEncoder, SharedVocabulary, encoder_of, shared_vocabulary
from sra_core.config import ModelRef, RunConfig
from sra_core.models.loading import load_tokenizer
from sra_core.shards import STUDENT_TOKENIZER, TEACHER_TOKENIZER

__all__ = ["load_kept_tokenizer", "load_tokenizers", "make_encoder", "shared_tokens"]


def load_kept_tokenizer(config: RunConfig, folder: Path, side: Literal["teacher", "student"]) -> Any:
    """One side's tokenizer as a prepared folder keeps it; code that it came with runs where the config trusts that."""
    place = folder / (TEACHER_TOKENIZER if side == "teacher" else STUDENT_TOKENIZER)
    return load_tokenizer(ModelRef(source=str(place), trust_remote_code=config.trusts_tokenizer(side)))


def load_tokenizers(config: RunConfig, folder: Path) -> tuple[Any, Any]:
    """Teacher's and student's tokenizers as a prepared folder keeps them."""
    return load_kept_tokenizer(config, folder, "teacher"), load_kept_tokenizer(config, folder, "student")


def shared_tokens(config: RunConfig, folder: Path) -> SharedVocabulary:
    """The shared vocabulary of a prepared folder's tokenizers, as the config wants it."""
    return shared_vocabulary(*load_tokenizers(config, folder), first_tokens=config.alignment.first_tokens)


def make_encoder(config: RunConfig, folder: Path, near: int | None = None) -> PairEncoder:
    """The encoder of a prepared folder, from the tokenizers saved in it; ``near`` as for `PairEncoder`."""
    return encoder_of(config, *load_tokenizers(config, folder), near=near)
