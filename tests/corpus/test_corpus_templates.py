"""Prompts: the plain template, and chat templates in the manner of the families in use."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sra_core.config import PAPER_PROMPT, CorpusConfig
from sra_core.corpus import Example, Rendered, RenderError, Turn, render
from sra_core.errors import ConfigError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}" + CHATML
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set system = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% for m in loop_messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system + m['content']) if loop.first else m['content']).strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.first %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ ' [INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ '<｜Assistant｜>' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
NO_GENERATION_PROMPT = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
DROPS_SYSTEM = (
    "{% for m in messages if m['role'] != 'system' %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
EMPTY_THOUGHT = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}"
    "{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
DROPS_THOUGHT = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'].split('</think>')[-1] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
OPENS_THOUGHT = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant><think>\n' }}{% endif %}"
)
TELLS_TODAY = (
    "\n{% macro head() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}"
    "{% if strftime_now is defined %}{% set day = strftime_now('%A, %d %b %Y') %}{% endif %}"
    "{{ head() + ' ' + day + ' ' }}"
) + CHATML

EXAMPLE = Example("e1", "Which?", "This one.", context="A or B.", system="Be brief.")
TALK = Example("e2", "And then?", "That one.", history=(Turn("user", "Which?"), Turn("assistant", "This one.")))

PROMPTS = {
    "chatml": (
        CHATML,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhich?\n\nA or B.<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\nThis one.<|im_end|>\n"
        "<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama2": (
        LLAMA2,
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhich?\n\nA or B. [/INST] ",
        "<s>[INST] Which? [/INST] This one. </s><s>[INST] And then? [/INST] ",
    ),
    "llama3": (
        LLAMA3,
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>"
        "\n\nWhich?\n\nA or B.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<s><|start_header_id|>user<|end_header_id|>\n\nWhich?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "This one.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnd then?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": (
        MISTRAL,
        "<s> [INST] Be brief.\n\nWhich?\n\nA or B. [/INST] ",
        "<s> [INST] Which? [/INST] This one.</s> [INST] And then? [/INST] ",
    ),
    "gemma": (
        GEMMA,
        "<s><start_of_turn>user\nBe brief.\n\nWhich?\n\nA or B.<end_of_turn>\n<start_of_turn>model\n",
        "<s><start_of_turn>user\nWhich?<end_of_turn>\n<start_of_turn>model\nThis one.<end_of_turn>\n"
        "<start_of_turn>user\nAnd then?<end_of_turn>\n<start_of_turn>model\n",
    ),
    "zephyr": (
        ZEPHYR,
        "<|system|>\nBe brief.</s>\n<|user|>\nWhich?\n\nA or B.</s>\n<|assistant|>\n",
        "<|user|>\nWhich?</s>\n<|assistant|>\nThis one.</s>\n<|user|>\nAnd then?</s>\n<|assistant|>\n",
    ),
    "deepseek": (
        DEEPSEEK,
        "<s>Be brief.<｜User｜>Which?\n\nA or B.<｜Assistant｜>",
        "<s><｜User｜>Which?<｜Assistant｜>This one.</s><｜User｜>And then?<｜Assistant｜>",
    ),
    "none": (
        NO_GENERATION_PROMPT,
        "system: Be brief.\nuser: Which?\n\nA or B.\nassistant: ",
        "user: Which?\nassistant: This one.\nuser: And then?\nassistant: ",
    ),
    "drops system": (
        DROPS_SYSTEM,
        "user: Be brief.\n\nWhich?\n\nA or B.\nassistant: ",
        "user: Which?\nassistant: This one.\nuser: And then?\nassistant: ",
    ),
    "empty thought": (
        EMPTY_THOUGHT,
        "<system>Be brief.<user>Which?\n\nA or B.<assistant><think>\n\n</think>\n\n",
        "<user>Which?<assistant><think>\n\n</think>\n\nThis one.<user>And then?<assistant><think>\n\n</think>\n\n",
    ),
}


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, "<s>")), bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = template
    return made


def chat(example: Example, template: str | None) -> Rendered:
    return render(example, "chat", PAPER_PROMPT, tokenizer(template))


@pytest.mark.parametrize("family", PROMPTS)
def test_chat_prompts_are_the_model_s_own(family):
    template, single, talk = PROMPTS[family]
    assert chat(EXAMPLE, template) == Rendered(single, "This one.", add_special_tokens=False)
    assert chat(TALK, template) == Rendered(talk, "That one.", add_special_tokens=False)


TOKENIZERS = {family: tokenizer(template) for family, (template, _, _) in PROMPTS.items()}
unhurried = settings(deadline=None)
answers = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@unhurried
@given(st.sampled_from(sorted(PROMPTS)), answers)
def test_the_response_is_never_changed_and_the_prompt_does_not_depend_on_it(family, response):
    example = Example("e", "Which?", response, history=TALK.history)
    rendered = render(example, "chat", PAPER_PROMPT, TOKENIZERS[family])
    assert rendered.response == response
    usual = PROMPTS[family][2].replace("And then?", "Which?")
    space = response[: len(response) - len(response.lstrip())]
    assert rendered.prompt in (usual, usual.removesuffix(space) if space else usual)


@pytest.mark.parametrize("response", ["  indented\n", "\n\nafter lines", "trailing  "])
@pytest.mark.parametrize("family", ["llama3", "gemma", "chatml", "deepseek"])
def test_white_space_that_a_template_strips_stays_in_the_response(family, response):
    template, single, _ = PROMPTS[family]
    rendered = chat(Example("e", "Which?", response, context="A or B.", system="Be brief."), template)
    assert (rendered.prompt, rendered.response) == (single, response)


def test_qwen_s_default_system_prompt_is_kept_and_gives_way():
    assert chat(TALK, QWEN).prompt.startswith("<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\nWhich?")
    assert "Be helpful" not in chat(EXAMPLE, QWEN).prompt


def test_a_template_that_tells_the_day_renders_alike_on_every_day():
    assert chat(TALK, TELLS_TODAY).prompt.startswith("\n2024-07-26 Friday, 26 Jul 2024 <|im_start|>user")
    pinned = render(TALK, "chat", PAPER_PROMPT, tokenizer(TELLS_TODAY), {"strftime_now": "2025-01-31"})
    assert pinned.prompt.startswith("\n2025-01-31 Friday, 31 Jan 2025 <|im_start|>user")


def test_a_day_without_leading_zeros_is_written_as_asked():
    day = "{{ strftime_now('%-d.%-m. %e %d') }} " + CHATML
    made = render(TALK, "chat", PAPER_PROMPT, tokenizer(day), {"strftime_now": "2025-01-05"})
    assert made.prompt.startswith("5.1.  5 05 <|im_start|>")


def test_a_template_that_changes_the_response_is_an_error_naming_the_example():
    assert chat(TALK, DROPS_THOUGHT).response == "That one."
    with pytest.raises(RenderError, match="example e9: its response is not where") as caught:
        chat(Example("e9", "q", "<think>hm</think>yes"), DROPS_THOUGHT)
    assert "plain" in caught.value.remedy


def test_a_generation_prompt_that_finished_turns_lack_is_an_error():
    with pytest.raises(RenderError, match="generation prompt"):
        chat(EXAMPLE, OPENS_THOUGHT)


def test_a_template_that_refuses_the_turns_is_an_error_naming_the_example():
    odd = Example("e7", "q", "a", history=(Turn("assistant", "hello"), Turn("assistant", "hm")))
    with pytest.raises(RenderError, match="example e7: the chat template refuses it: roles must alternate"):
        chat(odd, LLAMA2)


def test_a_missing_or_broken_template_is_a_config_error():
    with pytest.raises(ConfigError, match="no chat template"):
        chat(EXAMPLE, None)
    with pytest.raises(ConfigError, match="no chat template"):
        render(EXAMPLE, "chat", PAPER_PROMPT)
    with pytest.raises(ConfigError, match="broken"):
        chat(EXAMPLE, "{% for m in messages %}")


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_plain_text_has_no_prompt(template):
    text = Example("t", "", "Once upon a time.")
    assert render(text, template, PAPER_PROMPT) == Rendered("", "Once upon a time.", add_special_tokens=True)


def test_the_paper_s_prompt():
    example = Example("e", "Which?", "This.")
    head = "Below is an instruction that describes a task.\n\n### Instruction:\nWhich?\n\n"
    assert render(example, "plain", PAPER_PROMPT) == Rendered(head + "### Response:\n", "This.", True)
    rendered = render(Example("e", "Which?", "This.", context="A or B."), "plain", PAPER_PROMPT)
    assert rendered.prompt == head + "### Input:\nA or B.\n\n### Response:\n"


@pytest.mark.parametrize(("template", "prompt"), [
    ("{instruction} =", "Be brief.\n\nWhich?\n\nA or B. ="),
    ("{system}|{instruction}|{context}|", "Be brief.|Which?|A or B.|"),
    ("{context}{instruction}", "Be brief.\n\nA or B.Which?"),
    ("{{}}{instruction}", "Be brief.\n\n{}Which?\n\nA or B."),
])  # fmt: skip
def test_nothing_is_lost_that_the_plain_template_has_no_place_for(template, prompt):
    assert render(EXAMPLE, "plain", template).prompt == prompt


def test_history_repeats_the_plain_template_and_the_system_prompt_comes_once():
    talk = Example("e", "And then?", "x", system="S", history=TALK.history)
    assert render(talk, "plain", "Q: {instruction}\nA: ").prompt == "S\n\nQ: Which?\nA: This one.\n\nQ: And then?\nA: "
    assert render(talk, "plain", "{system}>{instruction}>").prompt == "S>Which?>This one.\n\n>And then?>"


@unhurried
@given(answers, answers)
def test_braces_in_the_data_are_data(instruction, response):
    example = Example("e", instruction + "{context}{0}{x", response)
    assert render(example, "plain", "{instruction}:").prompt == instruction + "{context}{0}{x:"


@pytest.mark.parametrize("prompt", [
    "{instruction} {input}", "{instruction.x}", "{instruction!r}", "{instruction:>9}", "{}", "{0}", "{instruction",
    "no",
])  # fmt: skip
def test_a_plain_template_with_unknown_placeholders_is_refused_by_the_config(prompt):
    with pytest.raises(ValidationError, match="prompt"):
        CorpusConfig(prompt=prompt)
