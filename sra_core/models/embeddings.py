"""Embeddings and LM head rows of a new tokenizer, started from the source's vectors for the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from sra_core.alignment.vocabulary import token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["replace_embeddings", "source_tokens"]

_ROLES = ("eos", "bos", "pad", "unk", "sep", "cls", "mask")


@torch.no_grad()
def replace_embeddings(
    model: PreTrainedModel,
    source: PreTrainedTokenizerFast,
    target: PreTrainedTokenizerFast,
    start: Literal["transfer", "random"],
    rows: int,
) -> None:
    """Give the model ``rows`` embeddings, one for each entry of ``target``, and as many LM head rows if untied.

    ``transfer``: an entry's vector (and head row, and head bias) is the mean of those of the source tokens that spell
    the same bytes. ``random``: normal with the model's initializer range, from torch's global generator.
    """
    inputs, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied = head.weight.data_ptr() == inputs.data_ptr()
    bias = getattr(head, "bias", None)
    # Cloned, and looked up anew below: resizing puts other modules in their place.
    old = [inputs.clone()] + ([] if tied else [head.weight.clone()]) + ([] if bias is None else [bias[:, None].clone()])
    # The default draws new rows from the covariance of the old ones; all rows are written over here.
    model.resize_token_embeddings(rows, mean_resizing=False)
    groups = source_tokens(source, target, rows) if start == "transfer" else None
    deviation = getattr(model.config.get_text_config(), "initializer_range", 0.02)
    new = [_means(table, groups) if groups else torch.randn(rows, table.shape[1]) * deviation for table in old]
    model.get_input_embeddings().weight.copy_(new.pop(0))
    if not tied:
        model.get_output_embeddings().weight.copy_(new.pop(0))
    if bias is not None:
        values = new.pop(0).squeeze(1)
        model.get_output_embeddings().bias.copy_(values if groups else torch.zeros_like(values))
    model.tie_weights()


def source_tokens(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, rows: int) -> list[list[int]]:
    """For each id of ``target``, the ids of ``source`` whose bytes together are its bytes; none where nothing fits.

    The source's own token with these bytes if there is one, else the source's tokenization of the text, else (a
    piece of a character, or a tokenizer that changes the text) the longest tokens from the left. Special tokens pair by
    role, further special ones by name.
    """
    of_source, of_target = token_bytes(source), token_bytes(target)
    spelled = _by_bytes(source, of_source)
    of_target += [None] * (rows - len(of_target))
    special = _special_pairs(source, target)
    return [
        [special[token]] if token in special else _spell(of_target[token] or b"", source, of_source, spelled)
        for token in range(rows)
    ]


def _by_bytes(tokenizer: PreTrainedTokenizerFast, spelling: list[bytes | None]) -> dict[bytes, int]:
    """The token of each byte string; `<0xNN>` only where no other token stands for that byte."""
    names = tokenizer.convert_ids_to_tokens(list(range(len(spelling))))
    # In reverse, since the last one of equal bytes stays in the dict.
    ordered = sorted(range(len(spelling)), key=lambda token: (str(names[token]).startswith("<0x"), token), reverse=True)
    return {value: token for token in ordered if (value := spelling[token])}


def _spell(
    value: bytes, source: PreTrainedTokenizerFast, of_source: list[bytes | None], spelled: dict[bytes, int]
) -> list[int]:
    if value in spelled:
        return [spelled[value]]
    text = value.decode("utf-8", "replace")
    for given in (text, text.removeprefix(" ")):  # some tokenizers put the space in front themselves
        ids = source.encode(given, add_special_tokens=False)
        if b"".join(of_source[token] or b"" for token in ids) == value:
            return ids
    return _longest_from_left(value, spelled)


def _longest_from_left(value: bytes, spelled: dict[bytes, int]) -> list[int]:
    ids, start = [], 0
    while start < len(value):
        end = next((end for end in range(len(value), start, -1) if value[start:end] in spelled), None)
        if end is not None:
            ids.append(spelled[value[start:end]])
        start = end or start + 1
    return ids


def _special_pairs(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> dict[int, int]:
    vocabulary = source.get_vocab()
    pairs = {i: vocabulary[str(token)] for i, token in target.added_tokens_decoder.items() if str(token) in vocabulary}
    for role in reversed(_ROLES):  # a token with several roles keeps the first one
        mine = getattr(target, f"{role}_token_id", None)
        theirs = getattr(source, f"{role}_token_id", None)
        if mine is not None:
            pairs[mine] = source.eos_token_id if theirs is None else theirs
    return pairs


def _means(table: Tensor, groups: list[list[int]]) -> Tensor:
    """(V, d) rows and V' groups of them to (V', d) means; an empty group takes the mean of all rows."""
    sizes = torch.tensor([len(group) for group in groups])
    flat = torch.tensor([token for group in groups for token in group], dtype=torch.long)
    means = functional.embedding_bag(flat, table, sizes.cumsum(0) - sizes, mode="mean")
    means[sizes == 0] = table.mean(0)  # embedding_bag gives zeros there
    return means
