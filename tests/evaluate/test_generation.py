from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_core.errors import EvaluationError
from sra_core.evaluate import Sampling, generate, generation
from sra_core.evaluate.decisions import text_generator
from sra_core.evaluate.generation import Decoder, stop_tokens
from tests.models.rows import build_model, build_rows

KINDS = ["llama", "mistral", "neox", "gemma2", "gpt2", "opt"]
SAMPLINGS = {"greedy": Sampling(), "paper": Sampling(1.0, 1.0), "nucleus": Sampling(0.8, 0.7)}


class Words:
    """A tokenizer that writes each token as its number."""

    bos_token_id = 0
    eos_token_id = 1

    def get_vocab(self):
        return {f"t{token}": token for token in (0, 1, 96)}

    def decode(self, ids, skip_special_tokens=True, clean_up_tokenization_spaces=None):
        assert clean_up_tokenization_spaces is False, "some tokenizers would take spaces away"
        return " ".join(f"t{token}" for token in ids if not (skip_special_tokens and token < 2))


def plain_generate(model, row, sampling, seed, max_new_tokens, max_prompt=256):
    """One text by itself, the whole prefix through the model at every step, no cache."""
    generator = text_generator(seed, row.id)
    ids = [int(token) for token in row.student_ids[: row.student_response]][-max_prompt:]
    new = []
    while len(new) < max_new_tokens:
        with torch.no_grad():
            logits = model(torch.tensor([ids + new]), logits_to_keep=1).logits[0, -1]
        if sampling.greedy:
            token = int(logits.argmax())
        else:
            gumbel = -(-torch.rand(97, generator=generator).log()).log()
            scaled = logits / sampling.temperature
            shares = scaled.double().softmax(-1)
            kept = torch.tensor([float(shares[shares > share].sum()) < sampling.top_p for share in shares])
            token = int((scaled + gumbel).masked_fill(~kept, -torch.inf).argmax())
        if token == 1:
            return new, "stop"
        new.append(token)
    return new, "length"


@pytest.mark.parametrize(
    ("kind", "how"), [*((kind, "nucleus") for kind in KINDS), ("llama", "greedy"), ("gpt2", "paper"), ("opt", "greedy")]
)
def test_equals_a_plain_loop(kind, how):
    model, rows = build_model(kind), build_rows(6)
    answers = generate(model, Words(), rows, seed=20, sampling=SAMPLINGS[how], max_new_tokens=20, batch_size=4)
    expected = [plain_generate(model, row, SAMPLINGS[how], 20, 20) for row in rows]
    assert [(list(answer.tokens), answer.finish_reason) for answer in answers] == expected
    assert [answer.id for answer in answers] == [row.id for row in rows]


@given(st.integers(1, 13), st.permutations(range(12)), st.sampled_from(sorted(SAMPLINGS)), st.integers(0, 3))
@settings(max_examples=12, deadline=None)
def test_batch_size_order_and_company_change_nothing(llama, batch_size, order, how, seed):
    rows = build_rows(12)
    options = {"seed": seed, "sampling": SAMPLINGS[how], "max_new_tokens": 10}
    whole = {answer.id: answer for answer in generate(llama, Words(), rows, **options)}
    some = [rows[index] for index in order][: max(3, batch_size)]
    assert all(
        whole[answer.id] == answer for answer in generate(llama, Words(), some, batch_size=batch_size, **options)
    )


@pytest.mark.parametrize("how", ["greedy", "paper"])
def test_near_ties_are_settled_alike(how):
    """Twin tokens whose logits differ in the last bit or not at all: each batch would break the tie its own way."""
    model, rows = build_model("llama"), build_rows(6)
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight[50:90] = weight[10:50] * (1 + 2e-7 * torch.randn(40, 1, generator=torch.Generator().manual_seed(3)))
    options = {"seed": 5, "sampling": SAMPLINGS[how], "max_new_tokens": 10}
    runs = [generate(model, Words(), rows, batch_size=size, **options) for size in (1, 2, 6)]
    assert all(run == runs[0] for run in runs)
    expected = [plain_generate(model, row, SAMPLINGS[how], 5, 10) for row in rows]
    assert [(list(answer.tokens), answer.finish_reason) for answer in runs[0]] == expected


def test_close_choices_are_counted(rows):
    model = build_model("llama")
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight[50:90] = weight[10:50]
    decoder = Decoder(model, frozenset(), Sampling())
    texts = [
        generation._Text([int(t) for t in row.student_ids[: row.student_response]], 8, text_generator(0, row.id))
        for row in rows
    ]
    decoder.run(texts, 4)
    assert decoder.decisions == 8 * len(rows)
    assert 0 < decoder.settled <= decoder.decisions
    assert 0 < decoder.deviation < generation.MARGIN / 10


def test_seeds_differ_when_sampling_and_not_when_greedy(llama, rows):
    def texts(seed, sampling):
        return [a.tokens for a in generate(llama, Words(), rows, seed=seed, sampling=sampling, max_new_tokens=12)]

    assert texts(10, Sampling(1.0)) != texts(20, Sampling(1.0))
    assert texts(10, Sampling()) == texts(20, Sampling())


def test_stops_at_end_of_text_and_finished_rows_leave(rows):
    model = build_model("llama")
    sizes = []
    handle = model.register_forward_hook(
        lambda module, args, kwargs, out: sizes.append(len(out.logits)), with_kwargs=True
    )
    answers = generate(model, Words(), rows, seed=3, sampling=Sampling(6.0), max_new_tokens=60, batch_size=12)
    handle.remove()
    stopped = [answer for answer in answers if answer.finish_reason == "stop"]
    assert len(stopped) >= 3
    assert all(1 not in answer.tokens for answer in answers)
    assert all(len(answer.tokens) == 60 for answer in answers if answer.finish_reason == "length")
    tokens = sum(len(answer.tokens) + (answer.finish_reason == "stop") for answer in answers)
    assert sum(size for size in sizes if size > 1) <= tokens  # no forward carries a finished row


def test_texts_of_a_hybrid_leave_the_batch_too(rows):
    """Recurrent states beside keys and values: what is kept of the batch is kept of both."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "decoder_sparse_step": 9}
    kinds = {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2, "head_dim": 16}
    torch.manual_seed(0)
    config = Qwen3NextConfig(vocab_size=97, linear_value_head_dim=8, **sizes, **linear, **experts, **kinds)
    model = Qwen3NextForCausalLM(config).eval()
    model.generation_config.eos_token_id = list(range(1, 12))
    rows = rows[:5]
    options = {"seed": 3, "sampling": Sampling(6.0), "max_new_tokens": 30}
    answers = generate(model, Words(), rows, batch_size=5, **options)
    assert len({len(answer.tokens) for answer in answers}) > 1
    assert answers == generate(model, Words(), rows, batch_size=1, **options)


def test_prompts_lose_their_left_side_but_keep_a_first_bos(llama):
    row = build_rows(1)[0]
    row.student_ids = np.arange(2, 42, dtype=np.int32)
    row.student_response = 30
    short = generate(llama, Words(), [row], max_prompt=10, max_new_tokens=4)[0]
    assert (short.prompt_tokens, short.prompt_cut) == (10, 20)
    assert list(short.tokens) == plain_generate(llama, row, Sampling(), 10, 4, max_prompt=10)[0]
    row.student_ids[0] = 0
    kept = generate(llama, Words(), [row], max_prompt=10, max_new_tokens=4)[0]
    row.student_ids = np.array([0, *row.student_ids[21:30], 1], dtype=np.int32)
    row.student_response = 10
    assert list(kept.tokens) == plain_generate(llama, row, Sampling(), 10, 4)[0]


def test_positions_of_the_model_bound_prompt_and_answer():
    model = build_model("gpt2")
    row = build_rows(1)[0]
    row.student_ids = np.full(400, 5, dtype=np.int32)
    row.student_response = 390
    answer = generate(model, Words(), [row], max_prompt=10_000, max_new_tokens=300)[0]
    assert answer.prompt_tokens == 128
    assert len(answer.tokens) == 128
    assert answer.finish_reason == "length"


def test_teacher_side_uses_the_teachers_tokens(llama, rows):
    answers = generate(llama, Words(), rows, "teacher", max_new_tokens=4)
    assert [answer.prompt_tokens for answer in answers] == [row.teacher_response for row in rows]


def test_tokens_beyond_the_tokenizer_are_never_chosen(rows):
    model = build_model("llama", vocabulary=160)
    answers = generate(model, Words(), rows, sampling=Sampling(2.0), max_new_tokens=20)
    assert max(token for answer in answers for token in answer.tokens) < 97


def test_stop_tokens_come_from_tokenizer_and_generation_settings():
    model = build_model("llama")
    model.generation_config.eos_token_id = [7, 9]
    assert stop_tokens(model, Words()) == {1, 7, 9}


def test_progress_reaches_the_end(llama, rows):
    seen = []
    generate(llama, Words(), rows, max_new_tokens=2, batch_size=5, progress=lambda *p: seen.append(p))
    assert seen == [(5, 12), (10, 12), (12, 12)]


def test_an_architecture_that_sees_padding_is_refused(rows):
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, initializer_range=0.5))
    original = model.forward
    model.forward = lambda *args, attention_mask=None, **kwargs: original(*args, **kwargs)
    with pytest.raises(EvaluationError, match="batch_size"):
        generate(model.eval(), Words(), rows, max_new_tokens=6)


def test_rounding_beyond_the_margin_is_told(llama, rows, monkeypatch):
    monkeypatch.setattr(generation, "MARGIN", 1e-12)
    with pytest.warns(UserWarning, match="may depend on the batch"):
        generate(llama, Words(), rows, max_new_tokens=4)


def test_half_precision_answers_without_the_guarantee(rows):
    answers = generate(build_model("llama").bfloat16(), Words(), rows, sampling=Sampling(1.0, 0.9), max_new_tokens=5)
    assert all(len(answer.tokens) == 5 or answer.finish_reason == "stop" for answer in answers)


def test_empty_prompts_are_an_error(llama, rows):
    rows[2].student_response = 0
    with pytest.raises(EvaluationError, match="row-2"):
        generate(llama, Words(), rows)
