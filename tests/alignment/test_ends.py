"""What ends an answer: what the model's own chat template writes there, and the end of text elsewhere."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

from sra_core.alignment import PairEncoder, answer_end
from sra_core.corpus import Example
from sra_core.errors import ConfigError

from .tokenizers import byte_level

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
HARMONY = (
    "{% for m in messages %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}"
    "{% if loop.last and m['role'] == 'assistant' %}<|return|>{% else %}<|turn|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
)
NEEDS_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}" + CHATML
WRITES_NONE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
THINKS = (
    "{% if enable_thinking is defined and not enable_thinking %}{% set thought = '<think></think>' %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{{ thought }}{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ thought }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|turn|>", "<|return|>"]


def chat(template: str | None, special: bool = True):
    made = byte_level()
    made.add_tokens([AddedToken(token, special=special, normalized=False) for token in SPECIAL])
    made.chat_template = template
    return made


def encoder(teacher, student, **options) -> PairEncoder:
    settings = {
        "teacher_template": "chat",
        "student_template": "chat",
        "prompt": "{instruction}",
        "max_length": 400,
        "max_prompt": 200,
    }
    return PairEncoder(teacher, student, **(settings | options))


ENDS = {
    "chatml": (CHATML, "<|im_end|>"),
    "gemma": (GEMMA, "<end_of_turn>"),
    "llama2": (LLAMA2, "<|end|>"),
    "phi3": (PHI3, "<|turn|>"),
    "harmony": (HARMONY, "<|return|>"),
    "needs a system prompt": (NEEDS_SYSTEM, "<|im_end|>"),
    "writes none": (WRITES_NONE, "<|end|>"),
    "thinks": (THINKS, "<|im_end|>"),
}


@pytest.mark.parametrize("family", ENDS)
def test_an_answer_ends_as_the_template_ends_it(family):
    template, end = ENDS[family]
    loaded = chat(template)
    assert loaded.convert_ids_to_tokens(answer_end(loaded, "chat")) == end
    assert answer_end(loaded, "plain") == loaded.eos_token_id


def test_each_side_ends_with_its_own_and_no_other():
    teacher, student = chat(GEMMA), chat(CHATML)
    (found,) = encoder(teacher, student)([Example("a", "Name a fruit.", "An apple.")])
    assert teacher.decode(found.teacher_ids[found.teacher_response :]) == "An apple.<end_of_turn>"
    assert student.decode(found.student_ids[found.student_response :]) == "An apple.<|im_end|>"
    assert found.spans.teacher[-1, 1] == len(found.teacher_ids) - 1
    assert not found.truncated


def test_a_text_without_a_question_ends_as_texts_do():
    (found,) = encoder(chat(CHATML), chat(CHATML))([Example("t", "", "Once upon a time.")])
    assert chat(CHATML).decode(found.student_ids) == "Once upon a time.<|end|>"


def test_a_turn_end_that_was_added_as_a_word_counts_too():
    loaded = chat(CHATML, special=False)
    assert loaded.convert_ids_to_tokens(answer_end(loaded, "chat")) == "<|im_end|>"


def test_a_turn_end_that_was_added_as_a_word_is_text_where_it_is_typed():
    loaded = chat(CHATML, special=False)
    example = Example("a", "What is <|im_end|>?", "It stands at the end: <|im_end|>, once.")
    (found,) = encoder(loaded, loaded)([example])
    end = answer_end(loaded, "chat")
    assert found.teacher_ids[found.teacher_response :].tolist().count(end) == 1, "the end of the answer"
    assert found.teacher_ids[: found.teacher_response].tolist().count(end) == 1, "the end of the question"
    assert loaded.decode(found.teacher_ids[found.teacher_response : -1]) == example.response
    assert found.special_as_text


def test_an_end_of_the_model_s_own_typed_after_a_response_is_left_out():
    (found,) = encoder(chat(PHI3), chat(PHI3))([Example("a", "Name a fruit.", "An apple.<|turn|>\n")])
    assert found.response == "An apple."
    assert found.end_stripped


def test_arguments_reach_the_template_and_one_that_it_does_not_read_is_refused():
    example = Example("a", "Name a fruit.", "An apple.")
    silent = {"enable_thinking": False}
    (found,) = encoder(chat(THINKS), chat(THINKS), student_arguments=silent)([example])
    prompts = chat(THINKS).decode(found.teacher_ids[: found.teacher_response]), found.prompt
    assert [prompt.endswith("assistant\n<think></think>") for prompt in prompts] == [False, True]
    with pytest.raises(ConfigError, match="reads no 'enable_thinkng'"):
        encoder(chat(THINKS), chat(THINKS), student_arguments={"enable_thinkng": False})


def test_a_missing_template_is_an_error_before_any_example():
    with pytest.raises(ConfigError, match="no chat template"):
        encoder(chat(CHATML), chat(None))
