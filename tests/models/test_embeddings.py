"""Embeddings of a new tokenizer, started from the source's vectors for the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sra_core.models import train_tokenizer
from sra_core.models.embeddings import replace_embeddings, source_tokens

SOURCE = train_tokenizer(["the span of a text is a span, ünd ü"] * 4, 290)
TARGET = train_tokenizer(["a student's text spans the text 🙂🙂"] * 4, 300)

NEW = max((token for token in TARGET.get_vocab() if token not in SOURCE.get_vocab() and token.isascii()), key=len)


def spell(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(ids))


def test_every_token_is_spelled_by_source_tokens_with_its_bytes() -> None:
    groups = source_tokens(SOURCE, TARGET, len(TARGET))
    assert len(groups) == len(TARGET)
    for token, group in enumerate(groups):
        assert spell(SOURCE, group) == spell(TARGET, [token])  # both sides are byte-level: the same alphabet


def test_a_shared_token_is_itself_and_a_longer_one_is_the_sources_own_tokenization() -> None:
    groups = source_tokens(SOURCE, TARGET, len(TARGET))
    shared = [token for token in TARGET.get_vocab() if token in SOURCE.get_vocab()]
    assert len(shared) > 257
    for token in shared:
        assert groups[TARGET.get_vocab()[token]] == [SOURCE.get_vocab()[token]]
    new = TARGET.get_vocab()[NEW]
    assert groups[new] == SOURCE.encode(NEW.replace("Ġ", " "), add_special_tokens=False)


def test_pieces_of_a_character_are_bytes() -> None:
    face = "🙂".encode()
    target = train_tokenizer(["abc"], 257)
    groups = source_tokens(SOURCE, target, len(target))
    pieces = [groups[token] for token in target.encode("🙂", add_special_tokens=False)]
    assert [len(piece) for piece in pieces] == [1] * 4
    assert SOURCE.decode([token for piece in pieces for token in piece]).encode() == face


def test_special_tokens_pair_by_role_and_then_by_name() -> None:
    source = train_tokenizer(["abc"], 260)
    source.add_special_tokens({"bos_token": "<s>", "pad_token": "<pad>", "additional_special_tokens": ["<|user|>"]})
    target = train_tokenizer(["abc"], 260)
    target.add_special_tokens({"eos_token": "</s>", "bos_token": "<begin>", "pad_token": "[PAD]", "unk_token": "[UNK]"})
    target.add_tokens([AddedToken("<|user|>", special=True), AddedToken("<|new|>", special=True)])
    groups = source_tokens(source, target, len(target))

    def at(token: str) -> list[int]:
        return groups[target.convert_tokens_to_ids(token)]

    assert at("</s>") == [source.eos_token_id]
    assert at("<begin>") == [source.convert_tokens_to_ids("<s>")]
    assert at("[PAD]") == [source.convert_tokens_to_ids("<pad>")]
    assert at("[UNK]") == [source.eos_token_id]  # the source has none
    assert at("<|user|>") == [source.convert_tokens_to_ids("<|user|>")]
    assert at("<|new|>") == []


def test_the_end_of_text_wins_where_one_token_has_two_roles() -> None:
    source = train_tokenizer(["abc"], 260)
    source.add_special_tokens({"pad_token": "<pad>"})
    target = train_tokenizer(["abc"], 260)
    assert source_tokens(source, target, len(target))[target.pad_token_id] == [source.eos_token_id]


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """A space is U+2581, a text gets one in front, single bytes are <0xNN>."""
    vocabulary = ["</s>", "<unk>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁the", "▁", "t", "h", "e", "ex", "ü"]
    merges = [("e", "x")]
    vocabulary += ["x"]
    backend = Tokenizer(
        models.BPE({token: i for i, token in enumerate(vocabulary)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def test_from_sentencepiece_to_byte_level() -> None:
    source = sentencepiece_like()
    target = train_tokenizer([" the the text üü"] * 5, 275)
    target.add_tokens(["te", " ext the"])
    groups = source_tokens(source, target, len(target))
    vocabulary = target.get_vocab()

    def at(token: str) -> list[str]:
        return source.convert_ids_to_tokens(groups[vocabulary[token]])

    assert at("Ġthe") == ["▁the"]
    assert at("Ġ") == ["▁"]
    assert at("te") == ["t", "e"]  # without the space that the source would put in front
    assert at(" ext the") == ["▁", "ex", "t", "▁", "t", "h", "e"]  # the source's own, with its space in front
    assert at("Ã¼") == ["ü"]
    assert at("Ã") == ["<0xC3>"]
    assert at("b") == ["<0x62>"]


def test_a_tokenizer_that_cannot_spell_a_token_leaves_it_empty() -> None:
    backend = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, "a": 2, "text": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    source = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    target = train_tokenizer(["text texta"] * 3, 262)
    groups = source_tokens(source, target, len(target))
    assert groups[target.get_vocab()["text"]] == [3]
    assert groups[target.get_vocab()["z"]] == []


@pytest.mark.parametrize(("name", "tied"), [("llama", False), ("llama", True), ("gpt2", True), ("phi", False)])
def test_vectors_head_rows_and_biases_are_means(tiny, name: str, tied: bool, tmp_path: Path) -> None:
    model = tiny(name, vocab_size=len(SOURCE), tie_word_embeddings=tied)
    inputs = model.get_input_embeddings().weight.detach().clone()
    head = model.get_output_embeddings()
    outputs, bias = head.weight.detach().clone(), getattr(head, "bias", None)
    bias = None if bias is None else bias.detach().clone()
    groups = source_tokens(SOURCE, TARGET, len(TARGET))
    replace_embeddings(model, SOURCE, TARGET, "transfer", len(TARGET))
    for token in (0, 5, 250, TARGET.get_vocab()[NEW], len(TARGET) - 1):
        expected = sum(inputs[k] for k in groups[token]) / len(groups[token])
        torch.testing.assert_close(model.get_input_embeddings().weight[token], expected)
        expected = sum(outputs[k] for k in groups[token]) / len(groups[token])
        torch.testing.assert_close(model.get_output_embeddings().weight[token], expected)
        if bias is not None:
            expected = sum(bias[k] for k in groups[token]) / len(groups[token])
            torch.testing.assert_close(model.get_output_embeddings().bias[token], expected)
    shared = model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert shared == tied
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.get_output_embeddings().weight, model.get_output_embeddings().weight)


def test_an_empty_group_takes_the_mean_of_all(tiny) -> None:
    model = tiny("llama", vocab_size=len(SOURCE))
    old = model.get_input_embeddings().weight.detach().clone()
    target = train_tokenizer(["abc"], 258)
    target.add_tokens([AddedToken("<|new|>", special=True)])
    replace_embeddings(model, SOURCE, target, "transfer", len(target))
    torch.testing.assert_close(model.get_input_embeddings().weight[-1], old.mean(0))


def test_random_embeddings(tiny) -> None:
    model = tiny("phi", vocab_size=len(SOURCE), initializer_range=0.1)
    body = model.model.layers[0].mlp.fc1.weight.detach().clone()
    torch.manual_seed(0)
    replace_embeddings(model, SOURCE, TARGET, "random", len(TARGET))
    for weight in (model.get_input_embeddings().weight, model.lm_head.weight):
        assert weight.shape[0] == len(TARGET)
        assert float(weight.detach().std()) == pytest.approx(0.1, rel=0.05)
    assert not torch.equal(model.get_input_embeddings().weight, model.lm_head.weight)
    assert (model.lm_head.bias == 0).all()
    assert torch.equal(model.model.layers[0].mlp.fc1.weight, body)
