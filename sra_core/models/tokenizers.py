"""A new byte-level BPE tokenizer, trained on the corpus of the student."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sra_core.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["train_tokenizer"]

_END = "<|endoftext|>"
_SMALLEST = 257  # every byte and the end of text


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with at most ``vocabulary_size`` entries, `<|endoftext|>` as its end-of-text and padding token.

    Every text can be encoded and decodes to itself; offsets keep white space. Short texts give fewer entries.

    Raises:
        TokenizerError: ``vocabulary_size`` has no room for every byte and the end of text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary_size < _SMALLEST:
        raise TokenizerError(
            f"a byte-level vocabulary of {vocabulary_size} entries has no room for every byte",
            f"set the vocabulary size to {_SMALLEST} or more",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # the default leaves spaces out
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[_END],
        # Every byte, seen in the texts or not: any text can be encoded.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        pad_token=_END,
        clean_up_tokenization_spaces=False,
    )
