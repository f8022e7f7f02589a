"""The trained byte-level BPE, and which tokenizers are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sra_core.config import ModelRef
from sra_core.errors import ModelError, TokenizerError
from sra_core.models import load_tokenizer, tokenizer_identity, train_tokenizer

TEXTS = ["the span of a text is the text of a span", "def span(text): return text[0:3]", "Überall naïve façades 🙂"] * 3
TRAINED = train_tokenizer(TEXTS, 290)


def test_size_and_special_tokens() -> None:
    assert len(TRAINED) == 290
    assert TRAINED.eos_token == TRAINED.pad_token == "<|endoftext|>"
    assert TRAINED.eos_token_id == TRAINED.pad_token_id == 0
    assert len(train_tokenizer(["ab"], 400)) == 258  # bytes, the end of text, and `ab`: there is nothing more to merge


def test_the_first_merge_is_the_most_frequent_pair() -> None:
    tokenizer = train_tokenizer(["ab ab ab cd"], 258)
    assert tokenizer.convert_ids_to_tokens(257) == "ab"


@given(st.text(max_size=60))
def test_any_text_decodes_to_itself_and_offsets_cover_it(text: str) -> None:
    encoded = TRAINED(text, return_offsets_mapping=True)
    assert TRAINED.decode(encoded["input_ids"]) == text
    assert {i for start, end in encoded["offset_mapping"] for i in range(start, end)} == set(range(len(text)))


def test_training_is_deterministic_and_survives_saving(tmp_path: Path) -> None:
    again = train_tokenizer(iter(TEXTS), 290)
    again.save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelRef(source=str(tmp_path)))
    assert tokenizer_identity(again) == tokenizer_identity(TRAINED) == tokenizer_identity(loaded)
    assert AutoTokenizer.from_pretrained(tmp_path)("a span")["input_ids"] == TRAINED("a span")["input_ids"]


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(TokenizerError, match="256 entries has no room for every byte"):
        train_tokenizer(TEXTS, 256)


def test_identity_sees_vocabulary_special_tokens_and_template_only(tmp_path: Path) -> None:
    base = tokenizer_identity(TRAINED)
    TRAINED(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_identity(TRAINED) == base
    TRAINED.save_pretrained(tmp_path)
    other = load_tokenizer(ModelRef(source=str(tmp_path)))
    other.chat_template = "{{ messages }}"
    assert tokenizer_identity(other) == base | {"chat_template": tokenizer_identity(other)["chat_template"]} != base
    other = load_tokenizer(ModelRef(source=str(tmp_path)))
    other.bos_token = "<|endoftext|>"
    assert tokenizer_identity(other)["special"] == base["special"] | {"bos_token": "<|endoftext|>"}
    assert tokenizer_identity(train_tokenizer(TEXTS, 289))["tokenizer"] != base["tokenizer"]


def test_padding_falls_back_to_the_end_of_text(tmp_path: Path) -> None:
    TRAINED.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(ModelRef(source=str(tmp_path))).pad_token_id == 0


def test_a_tokenizer_without_end_of_text_is_refused(tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=TRAINED.backend_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="no end-of-text token"):
        load_tokenizer(ModelRef(source=str(tmp_path)))


def test_a_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ctrl"}))
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "<unk>": 1}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CTRLTokenizer"}))
    with pytest.raises(TokenizerError, match=r"is a slow one \(CTRLTokenizer\).*gives no offsets"):
        load_tokenizer(ModelRef(source=str(tmp_path)))


def test_a_tokenizer_that_loses_offsets_is_refused(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"x": 0, "</s>": 1}, unk_token="x"))
    backend.normalizer = normalizers.Sequence([normalizers.Replace("S", ""), normalizers.Replace("m", "")])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="do not cover a plain text"):
        load_tokenizer(ModelRef(source=str(tmp_path)))


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no tokenizer \(tokenizer\.json\)"):
        load_tokenizer(ModelRef(source=str(tmp_path)))
