"""Layouts: which columns mean what, conversations, and columns of one's own."""

from __future__ import annotations

import itertools
import json

import pytest
from pydantic import ValidationError

from sra_core.config import CorpusConfig
from sra_core.corpus import Corpus, Turn, conversations
from sra_core.corpus.types import MalformedRow
from sra_core.errors import DataError

from .helpers import NO_HOLDOUT, kept, rejected, splits, write_jsonl

DOLLY = {"instruction": "q", "context": "c", "response": "a", "category": "open_qa"}
ALPACA = {"instruction": "q", "input": "c", "output": "a", "text": "Below is an instruction ... q c a"}
CHAT = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "u2"},
    {"role": "assistant", "content": "a2"},
]
SHAREGPT = [
    {"from": "system", "value": "s"},
    {"from": "human", "value": "u1"},
    {"from": "gpt", "value": "a1"},
    {"from": "human", "value": "u2"},
    {"from": "gpt", "value": "a2"},
]


@pytest.fixture
def file(tmp_path):
    return lambda *rows: write_jsonl(tmp_path / "d.jsonl", rows)


@pytest.mark.parametrize("layout", ["auto", "own"])
@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("dolly", DOLLY, ("q", "c", "a", "", "open_qa")),
        ("alpaca", ALPACA, ("q", "c", "a", "", "d")),
        ("alpaca", {"instruction": "q", "output": "a"}, ("q", "", "a", "", "d")),
        ("instruction", {"instruction": "q", "response": "a", "system": "s"}, ("q", "", "a", "s", "d")),
        ("instruction", {**DOLLY, "context": None, "source": "wiki"}, ("q", "", "a", "", "wiki")),
        ("text", {"text": "body"}, ("", "", "body", "", "d")),
    ],
)
def test_known_columns_are_recognised_and_can_be_named(file, layout, name, row, expected):
    if layout == "auto" and name == "instruction":
        row = {key: value for key, value in row.items() if key != "category"}
    (example,) = kept(file(row), layout="auto" if layout == "auto" else name, **NO_HOLDOUT)
    assert (example.instruction, example.context, example.response, example.system, example.source) == expected


@pytest.mark.parametrize(
    "row", [{"messages": CHAT}, {"conversations": SHAREGPT}, {"conversation": CHAT}, {"messages": SHAREGPT}]
)
def test_a_conversation_teaches_its_last_answer_after_its_history(file, row):
    (example,) = kept(file({**row, "id": 7}), **NO_HOLDOUT)
    assert (example.id, example.system, example.instruction, example.response) == ("7", "s", "u2", "a2")
    assert example.history == (Turn("user", "u1"), Turn("assistant", "a1"))


def test_all_turns_give_one_example_each_in_the_same_split(file):
    rows = [{"messages": [{**turn, "content": f"{turn['content']} {n}"} for turn in CHAT]} for n in range(200)]
    examples = kept(file(*rows), turns="all", validation_share=0.3, test_share=0.3, max_validation=None, max_test=None)
    assert [e.id for e in examples[:2]] == ["d:1#1", "d:1#2"]
    assert [(e.instruction, len(e.history)) for e in examples[:2]] == [("u1 0", 0), ("u2 0", 2)]
    by_response = splits(
        file(*rows), turns="all", validation_share=0.3, test_share=0.3, max_validation=None, max_test=None
    )
    assert all(by_response[f"a1 {n}"] == by_response[f"a2 {n}"] for n in range(200))
    assert len(set(by_response.values())) == 3


def test_last_and_all_turns_put_a_conversation_into_the_same_split(file):
    rows = [{"messages": [{**turn, "content": f"{turn['content']} {n}"} for turn in CHAT]} for n in range(50)]
    last, every = splits(file(*rows)), splits(file(*rows), turns="all")
    assert all(every[response] == split for response, split in last.items())


def test_content_given_as_text_parts_is_joined(file):
    parts = [{"type": "text", "text": "u"}, {"type": "text", "text": "1"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]
    assert kept(file({"messages": turns}), **NO_HOLDOUT)[0].instruction == "u1"


@pytest.mark.parametrize(
    ("turns", "reason", "detail"),
    [
        (CHAT[:2], "no_assistant_turn", "none of the 1 turns"),
        ([], "no_assistant_turn", "none of the 0 turns"),
        (CHAT[2:], "turn_order", "turn 1 is the assistant's where the user's is due"),
        ([CHAT[1], *CHAT[1:]], "turn_order", "turn 2 is the user's"),
        ([*CHAT, CHAT[0]], "turn_order", "turn 5 is the system's"),
        ([*CHAT[:2], {"role": "tool", "content": "42"}, *CHAT[2:]], "unsupported_role", "turn 2 has the role 'tool'"),
        ([CHAT[1], {"role": "assistant", "content": " "}], "empty_response", "empty"),
        ([CHAT[1], {"role": "assistant", "content": None}], "empty_response", "empty"),
        ([{"role": "user", "content": ""}, CHAT[2]], "empty_instruction", "assistant turn 1"),
    ],
)
def test_a_conversation_that_cannot_be_learned_is_rejected_with_its_reason(file, turns, reason, detail):
    path = file({"messages": CHAT}, {"messages": turns})
    assert len(kept(path, **NO_HOLDOUT)) == 1
    (rejection,) = rejected(path, **NO_HOLDOUT)
    assert (rejection.id, rejection.reason) == ("d:2", reason)
    assert detail in rejection.detail


def test_an_empty_answer_in_the_middle_costs_only_itself(file):
    turns = [*CHAT[:2], {"role": "assistant", "content": ""}, *CHAT[3:]]
    path = file({"messages": turns})
    assert [e.id for e in kept(path, turns="all", **NO_HOLDOUT)] == ["d:1#2"]
    assert [(r.id, r.reason) for r in rejected(path, turns="all", **NO_HOLDOUT)] == [("d:1#1", "empty_response")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("hello", "column `messages` holds str"),
        ([["user", "hi"]], r"messages\[0\] is list"),
        ([{"role": "wizard", "content": "hi"}], r"messages\[0\] has the role 'wizard'; known roles: user"),
        ([{"role": ["user"], "content": "hi"}], r"messages\[0\] has the role \['user'\]"),
        ([CHAT[1], {"role": "assistant", "content": 5}], r"messages\[1\] holds int \(5\), not a text"),
        ([{"content": "hi"}], r"messages\[0\] has the role None"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "u"}, {"type": "text", "content": "more"}]}],
            r"messages\[0\] has a part of type text without `text`; its keys are type, content",
        ),
    ],
)
def test_a_malformed_conversation_is_reported_with_its_place(file, value, reason):
    with pytest.raises(DataError, match=f"line 2: {reason}"):
        kept(file({"messages": CHAT}, {"messages": value}))


def test_own_columns_override_the_layout(file):
    row = {"q": "Q", "passage": "P", "a": "A", "persona": "S", "key": "k1", "origin": "O"}
    columns = {
        "instruction": "q",
        "context": "passage",
        "response": "a",
        "system": "persona",
        "id": "key",
        "source": "origin",
    }
    (example,) = kept(file(row), columns=columns, **NO_HOLDOUT)
    assert (example.id, example.instruction, example.context, example.response) == ("k1", "Q", "P", "A")
    assert (example.system, example.source) == ("S", "O")


def test_one_own_column_is_enough_for_texts_and_for_conversations(file):
    assert kept(file({"body": "B", "meta": 1}), columns={"response": "body"}, **NO_HOLDOUT)[0].is_text
    assert kept(file({"chat": CHAT}), columns={"messages": "chat"}, **NO_HOLDOUT)[0].response == "a2"


def test_files_of_a_folder_may_have_different_layouts(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [DOLLY])
    write_jsonl(tmp_path / "b.jsonl", [{"messages": CHAT}])
    assert [e.response for e in kept(tmp_path, **NO_HOLDOUT)] == ["a", "a2"]


def test_unknown_columns_name_what_was_seen_and_the_remedy(file):
    with pytest.raises(DataError, match=r"line 1: columns \['reply', 'request'\] fit no layout") as caught:
        kept(file({"request": "q", "reply": "a"}))
    assert "alpaca: instruction + output" in caught.value.problem
    assert "messages: messages or conversations" in caught.value.problem
    assert "corpus.columns" in caught.value.remedy
    with pytest.raises(DataError, match="fit no layout"):
        kept(file(DOLLY), layout="alpaca")


def test_a_first_row_of_unknown_columns_can_be_put_aside(file):
    path = file({"question": "q"}, DOLLY)
    assert [e.id for e in kept(path, max_malformed=1, **NO_HOLDOUT)] == ["d:2"]
    with pytest.raises(DataError, match="line 2: columns") as caught:
        kept(file({"question": "q"}, {"question": "q"}, DOLLY), max_malformed=1)
    assert "corpus.columns" in caught.value.remedy


def test_a_column_that_no_row_has_is_reported(file):
    with pytest.raises(DataError, match=r"corpus\.columns\.context names the column `contxt`, which no row"):
        kept(file(DOLLY), columns={"context": "contxt"})


@pytest.mark.parametrize(
    "fields",
    [
        {"columns": {"reply": "x"}},
        {"columns": {"messages": "m", "response": "r"}},
        {"columns": {"messages": "m"}, "layout": "dolly"},
        {"columns": {"response": "r"}, "layout": "messages"},
        {"columns": {"instruction": "i"}, "layout": "text"},
    ],
)
def test_columns_that_contradict_the_layout_are_refused_by_the_config(fields):
    with pytest.raises(ValidationError, match="columns"):
        CorpusConfig(**fields)


def test_the_default_system_prompt_fills_in_but_never_overrides_or_touches_texts(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [DOLLY, {**DOLLY, "response": "b", "system": "own"}])
    assert [e.system for e in kept(path, system="default", **NO_HOLDOUT)] == ["default", "own"]
    path = write_jsonl(tmp_path / "b.jsonl", [{"messages": CHAT}, {"messages": CHAT[1:]}])
    assert [e.system for e in kept(path, system="default", **NO_HOLDOUT)] == ["s", "default"]
    path = write_jsonl(tmp_path / "c.jsonl", [{"text": "body"}])
    assert kept(path, system="default", **NO_HOLDOUT)[0].is_text
    assert kept(path, system="default", **NO_HOLDOUT)[0].system == ""


def test_an_empty_instruction_is_rejected_unless_there_is_a_context(file):
    path = file({**DOLLY, "instruction": ""}, {**DOLLY, "instruction": " ", "context": None})
    assert [e.context for e in kept(path, **NO_HOLDOUT)] == ["c"]
    assert rejected(path, **NO_HOLDOUT)[0].reason == "empty_instruction"


def test_ids_may_be_numbers_and_never_hide_another_example(file):
    rows = [
        {**DOLLY, "id": 3},
        {**DOLLY, "id": "3", "response": "other"},
        {**DOLLY, "id": 3, "response": "third"},
        {**DOLLY, "id": None, "response": "fourth"},
        {**DOLLY, "id": 3},
    ]
    ids = [e.id for e in kept(file(*rows), deduplicate=False, **NO_HOLDOUT)]
    assert ids[0] == "3"
    assert ids[3] == "d:4"
    assert len(set(ids)) == 5
    assert all(i.startswith("3~") for i in (ids[1], ids[2], ids[4]))
    swapped = [rows[0], rows[2], rows[1]]
    again = {e.response: e.id for e in kept(file(*swapped), **NO_HOLDOUT)}
    assert again["other"] == ids[1]
    assert again["third"] == ids[2]
    with pytest.raises(DataError, match="column `id` holds list"):
        kept(file({**DOLLY, "id": [1]}))


def test_many_copies_of_one_example_keep_apart_when_duplicates_are_allowed(file):
    ids = [e.id for e in kept(file(*[{**DOLLY, "id": "x"}] * 5), deduplicate=False, **NO_HOLDOUT)]
    assert len(set(ids)) == 5
    assert json.dumps(ids).count("~2") == 1


def test_a_list_of_responses_is_taken_only_where_several_are_asked_for(file):
    data = file({"instruction": "q", "response": ["a", "b", "c"]})
    config = CorpusConfig(source=str(data), **NO_HOLDOUT)
    with pytest.raises(DataError, match="column `response` holds list"):
        list(Corpus(config))
    ((_, example),) = Corpus(config, several=True)
    assert (example.response, example.references) == ("a", ("b", "c"))


@pytest.mark.parametrize("responses", [[], ["a", ""], ["a", None], ["a", 3]])
def test_a_list_of_responses_has_no_holes(file, responses):
    config = CorpusConfig(source=str(file({"instruction": "q", "response": responses})), **NO_HOLDOUT)
    with pytest.raises(DataError, match="line 1: column `response` holds"):
        list(Corpus(config, several=True))


ROLES = [*conversations.ROLES, "tool", "User", " gpt ", "narrator", "", None, 3]
CONTENTS = ["text", "", None, ["a"], [{"type": "text", "text": "part"}], {"a": 1}, 5, "half \ud800"]


@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value"), ("role", "value"), ("from", "content")])
def test_plain_turns_are_read_as_all_others_are(keys):
    """Turns of two keys take a shorter way; a third key that says nothing sends them the whole one."""
    for role, content in itertools.product(ROLES, CONTENTS):
        turn = dict(zip(keys, (role, content), strict=True))
        found = []
        for each in (turn, {**turn, "weight": None}):
            try:
                found.append(conversations.spoken_turns([each], "messages"))
            except MalformedRow as error:
                found.append(str(error).replace(", weight", "").replace(", 'weight'", ""))
        assert found[0] == found[1], turn
