"""What a tokenizer says about itself: its backend, its end of text, and the bytes that its entries stand for.

How an entry is reduced to bytes is read from the tokenizer: a byte-level alphabet, U+2581 for a space, <0xNN> for one
byte, ## for a piece inside a word; an added token stands for its own text, a special token for no bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from sra_core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "BYTE_PIECE",
    "USE_ANOTHER",
    "BareTokenizer",
    "FastTokenizer",
    "Spelling",
    "backend_of",
    "component_state",
    "component_types",
    "end_of_text",
    "piece_reader",
    "read_byte_level",
    "refuse_random",
    "token_bytes",
    "tokenizer_name",
]

USE_ANOTHER = "Use a fast tokenizer (one with a tokenizer.json), or another model."
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class BareTokenizer:
    """What encoding reads of a fast tokenizer, without its library: half a second to load where that takes several.

    It stands in for the tokenizer wherever no chat template is asked for.
    """

    backend_tokenizer: Tokenizer
    name_or_path: str
    eos_token_id: int | None
    sep_token_id: int | None
    bos_token_id: int | None
    unk_token_id: int | None
    all_special_ids: Sequence[int]
    is_fast: bool = True

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> BareTokenizer:
        """The bare form of a fast tokenizer; the two share one backend."""
        eos, sep, bos, unk = (getattr(tokenizer, f"{role}_token_id", None) for role in ("eos", "sep", "bos", "unk"))
        return cls(backend_of(tokenizer), tokenizer_name(tokenizer), eos, sep, bos, unk, tokenizer.all_special_ids)

    def plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {**values, "backend_tokenizer": self.backend_tokenizer.to_str()}

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> BareTokenizer:
        """The inverse of `plain`."""
        from tokenizers import Tokenizer

        return cls(**{**values, "backend_tokenizer": Tokenizer.from_str(values["backend_tokenizer"])})

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """How entries of the vocabulary are written."""
        return [self.backend_tokenizer.id_to_token(token) for token in ids]


FastTokenizer: TypeAlias = "PreTrainedTokenizerFast | BareTokenizer"


def tokenizer_name(tokenizer: FastTokenizer) -> str:
    """How messages call a tokenizer: where it was loaded from, or else its class."""
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def backend_of(tokenizer: FastTokenizer) -> Tokenizer:
    """The Rust tokenizer behind a fast tokenizer, with truncation and padding off.

    Raises:
        TokenizerError: a slow tokenizer, which has no offsets.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not getattr(tokenizer, "is_fast", False) or backend is None:
        raise TokenizerError(f"The tokenizer {tokenizer_name(tokenizer)} has no character offsets.", USE_ANOTHER)
    # A tokenizer.json may hold both, and transformers sets them by call: texts would be cut or filled up unseen.
    backend.no_truncation()
    backend.no_padding()
    return backend


def end_of_text(tokenizer: FastTokenizer) -> int:
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


def refuse_random(tokenizer: FastTokenizer) -> None:
    """Refuse a tokenizer that draws its tokens: two calls differ, so no result could be made again.

    Raises:
        TokenizerError: naming the tokenizer and what it draws.
    """
    model = backend_of(tokenizer).model
    for setting, title in (("dropout", "BPE dropout"), ("alpha", "Unigram sampling, alpha")):
        if value := getattr(model, setting, None):
            raise TokenizerError(
                f"The tokenizer {tokenizer_name(tokenizer)} splits a text differently at every call "
                f"({title} {value:g}).",
                f'Set "{setting}" of the model in its tokenizer.json to null.',
            )


class Spelling(dict[int, bytes]):
    """The bytes that each token stands for where a text has it, read when it is first asked for.

    An added token, special ones among them, stands for its content. An id that is not in use stands for nothing.
    """

    def __init__(self, backend: Tokenizer) -> None:
        super().__init__()
        self._name = backend.id_to_token
        self._read = piece_reader(backend)
        self.added = {k: token.content for k, token in backend.get_added_tokens_decoder().items()}

    def __missing__(self, token: int) -> bytes:
        text = self.added.get(token)
        if text is not None:
            self[token] = text.encode("utf-8", "replace")
        else:
            self[token] = self._read(self._name(token) or "")
        return self[token]


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
    table: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)  # ids may have holes
    for token, k in vocabulary.items():
        if k not in special:
            table[k] = (token.encode("utf-8", "replace") if k in added else read(token)) or None
    return table


def piece_reader(backend: Tokenizer) -> Callable[[str], bytes]:
    """How the bytes of an entry of the vocabulary (not of an added token) are read from how it is written."""
    components = [component_state(part) for part in (backend.normalizer, backend.pre_tokenizer, backend.decoder)]
    types = {kind for component in components for kind in component_types(component)}
    if "ByteLevel" in types:
        return read_byte_level
    model = backend.model
    spaced = "Metaspace" in types or _SPACE in json.dumps(components, ensure_ascii=False)
    prefix = getattr(model, "continuing_subword_prefix", None) or ""
    suffix = getattr(model, "end_of_word_suffix", None) or ""
    fallback = getattr(model, "byte_fallback", None)
    if fallback is None:  # Unigram has no such attribute in Python; quotes inside its entries are escaped
        fallback = b'"byte_fallback":true' in model.__getstate__()

    def read(piece: str) -> bytes:
        byte = BYTE_PIECE.fullmatch(piece) if fallback else None
        if byte:
            return bytes([int(byte[1], 16)])
        text = piece.removeprefix(prefix)
        if suffix and text.endswith(suffix):
            text = text.removesuffix(suffix) + " "
        return (text.replace(_SPACE, " ") if spaced else text).encode("utf-8", "replace")

    return read


def component_state(component: Any) -> Any:
    """A component of a tokenizer as plain data; None for one that is missing or written in Python."""
    if component is None or type(component).__module__ == "builtins":
        return None
    try:
        return json.loads(component.__getstate__())  # the state of a Rust component is JSON
    except (TypeError, ValueError):
        return None


def component_types(component: Any) -> Iterator[str]:
    """The types of a component and of all the components in it."""
    if isinstance(component, dict):
        if "type" in component:
            yield str(component["type"])
        for value in component.values():
            yield from component_types(value)
    elif isinstance(component, list):
        for value in component:
            yield from component_types(value)


@lru_cache(maxsize=1)
def _byte_level_alphabet() -> dict[str, int]:
    """Which byte a character of a byte-level vocabulary stands for: printable ones themselves, the others from 256."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in own)
    return {**{chr(byte): byte for byte in own}, **{chr(0x100 + k): byte for k, byte in enumerate(others)}}


def read_byte_level(piece: str) -> bytes:
    alphabet = _byte_level_alphabet()
    try:
        return bytes([alphabet[character] for character in piece])
    except KeyError:  # an entry written as plain text
        return piece.encode("utf-8", "replace")
