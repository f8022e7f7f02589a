"""Where a model's answers end, as its generation settings say: what it is trained to write is what it stops at."""

from __future__ import annotations

from typing import Any

from sra_core.alignment import answer_end
from sra_core.config import StudentConfig, TeacherConfig

__all__ = ["answer_ends", "name_answer_end"]


def answer_ends(model: Any) -> tuple[int, ...]:
    """The ids that the generation settings of a model, or of what serves it, name as ends."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return (found,) if isinstance(found, int) else tuple(found or ())


def name_answer_end(model: Any, tokenizer: Any, part: TeacherConfig | StudentConfig) -> None:
    """Add the token that ends the model's answers to what its generation settings stop at.

    Args:
        model: What has a ``generation_config``; that is changed.
        tokenizer: The model's tokenizer.
        part: Says how the model is asked.
    """
    end, known = answer_end(tokenizer, part.template, part.template_arguments), answer_ends(model)
    if end not in known:
        model.generation_config.eos_token_id = [*known, end] if known else end
