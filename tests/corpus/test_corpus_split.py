"""The split by hash, limits, filters and duplicates: what they promise whatever the data."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sra_core.config import CorpusConfig
from sra_core.corpus import Example, Rejected
from sra_core.corpus.files import Files
from sra_core.corpus.split import Limit, digest, split_of

from .helpers import NO_HOLDOUT, corpus, kept, pairs, rejected, splits, write_jsonl

OPEN = {"validation_share": 0.3, "test_share": 0.3, "max_validation": None, "max_test": None}
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
rows = st.lists(st.fixed_dictionaries({"instruction": texts, "context": texts, "response": texts}), min_size=1)
limits = st.none() | st.integers(1, 6)
GOLDEN_DIGEST = "4bfacd13ecd1d11d1aa273fef78d32de"
GOLDEN_SPLITS = "va va tr tr tr tr va tr tr va te tr te va tr tr tr tr va va tr va tr tr"
quick = settings(max_examples=60, deadline=None)


def stream(records, **fields):
    with tempfile.TemporaryDirectory() as folder:
        return list(corpus(write_jsonl(Path(folder) / "d.jsonl", records), **fields))


def placed(items):
    """Split by content of what was kept."""
    return {(e.instruction, e.context, e.response): s for s, e in items if isinstance(e, Example)}


@quick
@given(rows, rows, st.randoms())
def test_adding_and_shuffling_never_move_an_example(old, new, random):
    before = placed(stream(old, **OPEN))
    together = old + new
    random.shuffle(together)
    after = placed(stream(together, **OPEN))
    assert {key: after[key] for key in before} == before


@quick
@given(rows, limits, limits, limits, st.booleans(), st.randoms())
def test_limits_choose_the_same_contents_in_any_order(records, train, validation, test, deduplicate, random):
    fields = {**OPEN, "max_train": train, "max_validation": validation, "max_test": test, "deduplicate": deduplicate}
    whole, limited = stream(records, **{**OPEN, "deduplicate": deduplicate}), stream(records, **fields)
    shuffled = list(records)
    random.shuffle(shuffled)
    assert placed(stream(shuffled, **fields)) == placed(limited)
    full = Counter(split for split, item in whole if isinstance(item, Example))
    counts = Counter(split for split, item in limited if isinstance(item, Example))
    for split, most in (("train", train), ("validation", validation), ("test", test)):
        assert counts[split] == (full[split] if most is None else min(most, full[split]))
    assert placed(limited).items() <= placed(whole).items()


@quick
@given(rows, st.booleans())
def test_every_row_is_accounted_for_once_and_twice_alike(records, deduplicate):
    items = stream(records, deduplicate=deduplicate, max_train=2, **{**OPEN, "max_test": 1})
    assert len(items) == len(records)
    ids = [item.id for _, item in items if isinstance(item, Example)]
    assert len(set(ids)) == len(ids)
    for split, item in items:
        early = isinstance(item, Rejected) and item.reason in ("empty_response", "empty_instruction")
        assert (split == "") == early
    assert items == stream(records, deduplicate=deduplicate, max_train=2, **{**OPEN, "max_test": 1})


@quick
@given(st.lists(texts), st.lists(texts))
def test_different_texts_never_share_a_digest(first, second):
    assert (digest(*first) == digest(*second)) == (first == second)


@quick
@given(st.lists(st.integers(0, 9)), st.integers(1, 5))
def test_a_limit_admits_the_lowest_ranks(ranks, size):
    limit = Limit(size)
    for rank in ranks:
        limit.offer(rank)
    admits, again = limit.admits(), limit.admits()
    admitted = [rank for rank in ranks if admits(rank)]
    assert sorted(admitted) == sorted(ranks)[:size]
    assert [rank for rank in ranks if again(rank)] == admitted


def test_the_split_is_this_hash_for_ever():
    """Golden: a change here silently mixes the training and test sets of results made before."""
    group = hashlib.blake2b(b"1:q0:1:a", digest_size=16).digest()
    assert digest("q", "", "a") == group
    assert group.hex() == GOLDEN_DIGEST
    config = CorpusConfig(validation_share=0.25, test_share=0.25)
    found = [split_of(digest(f"question {n}", "", f"answer {n}"), config)[:2] for n in range(24)]
    assert " ".join(found) == GOLDEN_SPLITS


def test_shares_are_met_and_changing_one_leaves_the_other_held_out_set(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", pairs(4000))
    fields = {"max_validation": None, "max_test": None}
    base = splits(path, validation_share=0.2, test_share=0.1, **fields)
    counts = Counter(base.values())
    for split, share in (("train", 0.7), ("validation", 0.2), ("test", 0.1)):
        assert abs(counts[split] / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000)
    more_test = splits(path, validation_share=0.2, test_share=0.3, **fields)
    more_validation = splits(path, validation_share=0.4, test_share=0.1, **fields)
    for response, split in base.items():
        if split == "validation":
            assert more_test[response] == "validation"
        if split == "test":
            assert more_validation[response] == more_test[response] == "test"


def test_the_split_ignores_id_system_prompt_and_place(tmp_path):
    plain = splits(write_jsonl(tmp_path / "a.jsonl", pairs(300)), **OPEN)
    changed = [{"id": f"x{n}", "system": "s", **row} for n, row in enumerate(reversed(pairs(300)))]
    assert splits(write_jsonl(tmp_path / "sub" / "b.jsonl", changed), **OPEN) == plain


def test_limits_default_and_say_what_they_left_out(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", pairs(3000))
    limited = corpus(path, validation_share=0.2, test_share=0.3, max_train=100)
    items = list(limited)
    assert limited.admitted == 800
    counts = Counter(split for split, item in items if isinstance(item, Example))
    assert counts == {"train": 100, "validation": 200, "test": 500}
    over = [(split, item) for split, item in items if isinstance(item, Rejected)]
    assert {item.reason for _, item in over} == {"over_limit"}
    assert {split for split, _ in over} == {"train", "validation", "test"}
    assert "corpus.max_train keeps 100" in next(item.detail for split, item in over if split == "train")


def test_chosen_examples_are_spread_over_the_file(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", pairs(2000))
    chosen = [int(e.id.split(":")[1]) for e in kept(path, max_train=200, **NO_HOLDOUT)]
    assert chosen == sorted(chosen)
    assert 60 < sum(line > 1000 for line in chosen) < 140


def test_duplicates_are_dropped_by_whole_content(tmp_path):
    base = {"instruction": "q", "context": "c", "response": "a"}
    others = [{**base, "context": "d"}, {**base, "response": "b"}, {**base, "system": "s"}]
    path = write_jsonl(tmp_path / "d.jsonl", [base, *others, {**base, "id": "again"}])
    assert [e.id for e in kept(path, **NO_HOLDOUT)] == ["d:1", "d:2", "d:3", "d:4"]
    assert [(r.id, r.reason) for r in rejected(path, **NO_HOLDOUT)] == [("again", "duplicate")]
    assert len(kept(path, deduplicate=False, **NO_HOLDOUT)) == 5


def test_the_same_answer_after_another_history_is_no_duplicate(tmp_path):
    def chat(first):
        turns = [("user", first), ("assistant", "ok"), ("user", "thanks"), ("assistant", "you're welcome")]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    path = write_jsonl(tmp_path / "d.jsonl", [chat("a"), chat("b"), chat("a")])
    assert [e.id for e in kept(path, **NO_HOLDOUT)] == ["d:1", "d:2"]


@pytest.mark.parametrize(("fields", "reasons"), [
    ({"min_response": 3}, ["too_short", "kept", "kept"]),
    ({"max_response": 3}, ["kept", "kept", "too_long"]),
    ({"min_response": 2, "max_response": 3}, ["too_short", "kept", "too_long"]),
    ({}, ["kept", "kept", "kept"]),
])  # fmt: skip
def test_length_filters_count_characters(tmp_path, fields, reasons):
    records = [{"instruction": "q", "response": text} for text in ("é", "日本語", "four")]
    items = [item for _, item in corpus(write_jsonl(tmp_path / "d.jsonl", records), **fields)]
    assert [getattr(item, "reason", "kept") for item in items] == reasons


@pytest.mark.parametrize("response", ["", " \n\t", None, "\u3000"])
def test_an_empty_response_is_rejected(tmp_path, response):
    path = write_jsonl(tmp_path / "d.jsonl", [{"instruction": "q", "response": response}, *pairs(1)])
    assert [(r.id, r.reason) for r in rejected(path)] == [("d:1", "empty_response")]
    assert len(kept(path)) == 1


def test_a_kept_response_is_untouched(tmp_path):
    response = "\n    return x\r\n\n"
    path = write_jsonl(tmp_path / "d.jsonl", [{"instruction": " q ", "response": response}])
    assert [(e.instruction, e.response) for e in kept(path)] == [(" q ", response)]


@pytest.mark.parametrize("fields", [
    {"validation_share": 0.5, "test_share": 0.5}, {"min_response": 5, "max_response": 4}, {"max_train": 0},
    {"min_response": 0}, {"max_malformed": -1}, {"layout": "csv"}, {"turns": "first"},
])  # fmt: skip
def test_values_that_contradict_each_other_are_refused(fields):
    with pytest.raises(ValidationError):
        CorpusConfig(**fields)


def test_two_passes_side_by_side_do_not_disturb_each_other(tmp_path):
    shared = corpus(write_jsonl(tmp_path / "d.jsonl", pairs(200)), max_train=50)
    alone = list(shared)
    assert [first for first, second in zip(shared, shared, strict=True) if first == second] == alone


SOURCES = {
    "none": lambda n: {},
    "named": lambda n: {"source": f"part {n % 3}"},
    "telling rows apart": lambda n: {"source": f"https://example.org/{n}"},
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_corpus_that_is_kept_between_the_passes_gives_what_reading_it_again_gives(name, tmp_path, monkeypatch):
    rows = [{**row, **SOURCES[name](n)} for n, row in enumerate([*pairs(40), *pairs(9)])]
    path = write_jsonl(tmp_path / "d.jsonl", [*rows, b"{", {"instruction": "q", "response": ""}])
    fields = {"max_train": 20, "validation_share": 0.2, "max_malformed": 3}
    read = []
    original = Files.__iter__
    monkeypatch.setattr(Files, "__iter__", lambda files: (read.append(1), original(files))[1])
    once = corpus(path, tmp_path / "odd.jsonl", **fields)
    small, again = list(once), list(once)
    assert len(read) == (3 if name == "telling rows apart" else 2)
    monkeypatch.setattr("sra_core.corpus.corpus._SMALL", 0)
    large = corpus(path, tmp_path / "odd.jsonl", **fields)
    assert small == again == list(large)
    assert len((tmp_path / "odd.jsonl").read_text().splitlines()) == 1
    assert once.notes() == large.notes()
