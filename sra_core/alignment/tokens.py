"""What a tokenizer says about itself: its backend, its end of text, and the bytes that its entries stand for.

How an entry is reduced to bytes is read from the tokenizer: a byte-level alphabet, U+2581 for a space, <0xNN> for one
byte, ## for a piece inside a word; an added token stands for its own text, a special token for no bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sra_core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

__all__ = ["BYTE_PIECE", "USE_ANOTHER", "backend_of", "end_of_text", "piece_reader", "token_bytes", "tokenizer_name"]

USE_ANOTHER = "Use a fast tokenizer (one with a tokenizer.json), or another model."
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


def tokenizer_name(tokenizer: PreTrainedTokenizerFast) -> str:
    """How messages call a tokenizer: where it was loaded from, or else its class."""
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def backend_of(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The Rust tokenizer behind a fast tokenizer, with truncation and padding off.

    Raises:
        TokenizerError: a slow tokenizer, which has no offsets.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not getattr(tokenizer, "is_fast", False) or backend is None:
        raise TokenizerError(f"The tokenizer {tokenizer_name(tokenizer)} has no character offsets.", USE_ANOTHER)
    backend.no_truncation()
    backend.no_padding()
    return backend


def end_of_text(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that ends a text: the eos token, or the separator of a tokenizer that has none.

    Raises:
        TokenizerError: it has neither.
    """
    for token in (tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None)):
        if token is not None:
            return int(token)
    raise TokenizerError(
        f"The tokenizer {tokenizer_name(tokenizer)} has no end-of-text token.",
        "Set eos_token in its tokenizer_config.json.",
    )


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> list[bytes | None]:
    """The bytes that every token stands for, by id; None for special tokens, unused ids and what stands for no text.

    Raises:
        TokenizerError: a slow tokenizer.
    """
    backend = backend_of(tokenizer)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    read = piece_reader(backend)
    added = backend.get_added_tokens_decoder()
    special = {*tokenizer.all_special_ids, *(k for k, token in added.items() if token.special)}
    table: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, k in vocabulary.items():
        if k not in special:
            table[k] = (token.encode("utf-8", "replace") if k in added else read(token)) or None
    return table


def piece_reader(backend: Tokenizer) -> Callable[[str], bytes]:
    """How the bytes of an entry of the vocabulary (not of an added token) are read from how it is written."""
    components = [_state(part) for part in (backend.normalizer, backend.pre_tokenizer, backend.decoder)]
    types = {kind for component in components for kind in _types(component)}
    if "ByteLevel" in types:
        return _read_byte_level
    model = backend.model
    spaced = "Metaspace" in types or _SPACE in json.dumps(components, ensure_ascii=False)
    prefix = getattr(model, "continuing_subword_prefix", None) or ""
    suffix = getattr(model, "end_of_word_suffix", None) or ""
    fallback = bool(getattr(model, "byte_fallback", False))

    def read(piece: str) -> bytes:
        byte = BYTE_PIECE.fullmatch(piece) if fallback else None
        if byte:
            return bytes([int(byte[1], 16)])
        text = piece.removeprefix(prefix)
        if suffix and text.endswith(suffix):
            text = text.removesuffix(suffix) + " "
        return (text.replace(_SPACE, " ") if spaced else text).encode("utf-8", "replace")

    return read


def _state(component: Any) -> Any:
    """A component of a tokenizer as plain data; None for one that is missing or written in Python."""
    if component is None or type(component).__module__ == "builtins":
        return None
    try:
        return json.loads(component.__getstate__())
    except (TypeError, ValueError):
        return None


def _types(component: Any) -> Iterator[str]:
    """The types of a component and of all the components in it."""
    if isinstance(component, dict):
        if "type" in component:
            yield str(component["type"])
        for value in component.values():
            yield from _types(value)
    elif isinstance(component, list):
        for value in component:
            yield from _types(value)


@lru_cache(maxsize=1)
def _byte_level_alphabet() -> dict[str, int]:
    """Which byte a character of a byte-level vocabulary stands for: printable ones themselves, the others from 256."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in own)
    return {**{chr(byte): byte for byte in own}, **{chr(0x100 + k): byte for k, byte in enumerate(others)}}


def _read_byte_level(piece: str) -> bytes:
    alphabet = _byte_level_alphabet()
    try:
        return bytes([alphabet[character] for character in piece])
    except KeyError:  # an entry written as plain text
        return piece.encode("utf-8", "replace")
