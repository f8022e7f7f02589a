"""What `import sra_core` gives beside runs: two tokenizers and a text to its spans, their shared vocabulary, an audit.

Each takes tokenizers or their names. What they are made of takes offsets and examples: see `sra_core.alignment`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sra_core import alignment
from sra_core.alignment import AlignedExample, AlignmentAudit, AlignmentReport, PairEncoder, SharedVocabulary, TextSpans
from sra_core.config import ModelRef
from sra_core.corpus import Example
from sra_core.errors import AlignmentError, DataError, TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Tokenizer", "align", "audit", "shared_vocabulary"]

Tokenizer: TypeAlias = "str | Path | PreTrainedTokenizerFast"
"""A fast tokenizer, or where it comes from: a hub id, a folder, or any other source that a recipe may name."""

_BATCH = 256  # texts that are encoded together


def align(teacher: Tokenizer, student: Tokenizer, text: str) -> TextSpans:
    """The finest spans of a text that both tokenizers can express (paper section 3.1), as a run would align them.

    >>> from sra_core import align
    >>> spans = align("deepseek-ai/DeepSeek-V3", "Qwen/Qwen2.5-0.5B", "In 2026 the naïve approach fails.")
    >>> spans
    text       teacher    student
    In         In         In
    ·          ·          ·
    202        202        2|0|2
    6          6          6
    ·the       ·the       ·the
    ·naïve     ·naïve     ·naï|ve
    ·approach  ·approach  ·approach
    ·fails     ·fails     ·fails
    .          .          .
    >>> len(spans), spans.teacher.shape, spans.student.shape  # ranges of tokens: `pool_spans` takes them
    (9, (9, 2), (9, 2))
    >>> [span.text for span in spans if len(span.student) > 1]
    ['202', ' naïve']

    Args:
        teacher: A fast tokenizer, or its hub id or folder.
        student: Likewise.
        text: Any text; it stands alone, without a prompt. An end token that is typed at its end is left out.

    Returns:
        The spans: ranges of tokens on both sides, (K, 2) each, the bytes of each span, and its tokens for people.

    Raises:
        AlignmentError: The text is empty or white space, or the two sides have no cut in common.
        DataError: It is no ``str``, or holds half of a character.
        ModelError: A name leads to no tokenizer.
        TokenizerError: A tokenizer that is a slow one, has wrong offsets or no end of text.
    """
    pair = (_loaded(teacher), _loaded(student))
    example = _encoder(*pair)([_example(text, 1)])[0]
    if not isinstance(example, AlignedExample):
        raise AlignmentError(f"the text {text[:40]!r} has no spans: {example.detail}", "give a text with words in it")
    return TextSpans.of(example, *pair)


def shared_vocabulary(teacher: Tokenizer, student: Tokenizer, first_tokens: bool = False) -> SharedVocabulary:
    """Pairs of tokens, one of either side, that stand for the same bytes (paper section 3.3).

    >>> from sra_core import shared_vocabulary
    >>> shared = shared_vocabulary("deepseek-ai/DeepSeek-V3", "Qwen/Qwen2.5-0.5B")
    >>> f"{len(shared) / 1000:.0f} thousand pairs"
    '84 thousand pairs'
    >>> shared.teacher_ids.shape == shared.student_ids.shape  # row v of both stands for the same bytes
    True

    Args:
        teacher: A fast tokenizer, or its hub id or folder.
        student: Likewise.
        first_tokens: As for `sra_core.alignment.shared_vocabulary`.

    Raises:
        ModelError: A name leads to no tokenizer.
        TokenizerError: A slow tokenizer.
    """
    return alignment.shared_vocabulary(_loaded(teacher), _loaded(student), first_tokens=first_tokens)


def audit(teacher: Tokenizer, student: Tokenizer, texts: Iterable[str]) -> AlignmentReport:
    """How well two tokenizers align on texts: what `sra audit` tells about a corpus.

    >>> from sra_core import audit
    >>> report = audit("deepseek-ai/DeepSeek-V3", "Qwen/Qwen2.5-0.5B", ["One text, 2026.", "Noch ein Text: Ελληνικά."])
    >>> f"{report.overall.spans} spans, {report.overall.one_to_one:.0%} of them one token to one"
    '16 spans, 75% of them one token to one'
    >>> {script: f"{found.student.mean:.1f} student tokens per span" for script, found in report.by_script.items()}
    ... # doctest: +ELLIPSIS
    {'Latin': '1.0 student tokens per span', 'Greek': '3.0 student tokens per span', ...}

    Args:
        teacher: A fast tokenizer, or its hub id or folder.
        student: Likewise.
        texts: Any number of texts, read as they come; memory does not grow with them. `sra_core.alignment` renders the
            report for a terminal (`render_terminal`), as Markdown and as a page.

    Raises:
        DataError: A text that is no ``str``, or holds half of a character.
        ModelError: A name leads to no tokenizer.
        TokenizerError: A tokenizer that is a slow one, has wrong offsets or no end of text.
    """
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise DataError(f"texts is of type {type(texts).__name__}, not a list of texts", 'give it as in ["One text."]')
    pair = (_loaded(teacher), _loaded(student))
    encode = _encoder(*pair)
    found = AlignmentAudit(alignment.shared_vocabulary(*pair))
    examples = (_example(text, number) for number, text in enumerate(texts, 1))
    while batch := list(islice(examples, _BATCH)):
        for example in encode(batch):
            found.add(example)
    return found.report(*pair)


def _loaded(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    if isinstance(tokenizer, (str, Path)):
        from sra_core.models import load_tokenizer

        return load_tokenizer(ModelRef(source=str(tokenizer), trust_remote_code=False))
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise TokenizerError(
            f"a {type(tokenizer).__name__} is no fast tokenizer of transformers",
            "give a hub id, a folder or AutoTokenizer.from_pretrained(...); sra_core.alignment.align takes offsets",
        )
    return tokenizer


def _encoder(teacher: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast) -> PairEncoder:
    return PairEncoder(
        teacher,
        student,
        teacher_template="plain",
        student_template="plain",
        prompt="",
        max_length=sys.maxsize,
        max_prompt=sys.maxsize,
    )


def _example(text: str, number: int) -> Example:
    if not isinstance(text, str):
        raise DataError(
            f"text {number} is of type {type(text).__name__}, not str",
            "give text, as in 'One text.'; to audit, a list of these",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text {number} holds a lone surrogate, half of a character, at character {error.start + 1}", "remove it"
        ) from error
    return Example(id=f"text {number}", instruction="", response=text, source="texts")
