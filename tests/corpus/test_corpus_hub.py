"""Hub data sets: the same code path on a local data set folder, and the resolution of revisions."""

from __future__ import annotations

import errno
import json
import re
from collections import Counter

import datasets
import httpx
import huggingface_hub
import pytest

from sra_core.config import CorpusConfig
from sra_core.corpus import Corpus, Example
from sra_core.corpus.hub import HubRows
from sra_core.errors import DataError

from .helpers import NO_HOLDOUT, pairs, write_jsonl

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: train-*.jsonl
  - split: extra
    path: extra.jsonl
- config_name: short
  data_files: extra.jsonl
---
"""


@pytest.fixture
def data_set(tmp_path, monkeypatch):
    """A data set repository as the hub holds them, in a folder that `datasets` is pointed at by its id."""
    folder = tmp_path / "repository"
    write_jsonl(folder / "train-0.jsonl", pairs(3))
    write_jsonl(folder / "train-1.jsonl", pairs(2, 3))
    write_jsonl(folder / "extra.jsonl", pairs(1, 9))
    (folder / "README.md").write_text(CARD)
    calls = []
    real = datasets.load_dataset_builder

    def local(path, *args, **kwargs):
        calls.append((path, kwargs))
        return real(str(folder), *args, **{**kwargs, "cache_dir": str(tmp_path / "cache")})

    monkeypatch.setattr(datasets, "load_dataset_builder", local)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return calls


def hub(**fields):
    return CorpusConfig(**{"source": "someone/some-pairs", "revision": COMMIT, **NO_HOLDOUT, **fields})


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_come_in_order_named_after_the_data_set(data_set, streaming):
    examples = [item for _, item in Corpus(hub(streaming=streaming))]
    assert [e.id for e in examples] == [f"some-pairs:{n}" for n in range(1, 6)]
    assert [e.response for e in examples] == [f"answer {n}" for n in range(5)]
    assert {e.source for e in examples} == {"some-pairs"}
    path, kwargs = data_set[0]
    assert (path, kwargs["revision"]) == ("someone/some-pairs", COMMIT)


def test_downloaded_and_streamed_give_the_same_corpus(data_set):
    fields = {"validation_share": 0.3, "test_share": 0.3, "max_train": 1}
    once, streamed = Corpus(hub(**fields)), Corpus(hub(streaming=True, **fields))
    assert list(once) == list(streamed)
    assert once.identity() == streamed.identity()


def test_a_stream_that_breaks_says_after_which_row(monkeypatch):
    def stream():
        yield from pairs(2)
        raise httpx.ReadError("")

    monkeypatch.setattr(HubRows, "_data", {"train": stream()})
    with pytest.raises(DataError, match=r"split train, cannot be read after row 2: ReadError\n  -> run it again"):
        list(Corpus(hub(streaming=True)))


def test_split_and_subset_choose_the_rows(data_set):
    assert [e.response for _, e in Corpus(hub(hub_split="extra"))] == ["answer 9"]
    assert [e.response for _, e in Corpus(hub(subset="short"))] == ["answer 9"]
    identities = [Corpus(hub(**fields)).identity() for fields in ({}, {"hub_split": "extra"}, {"subset": "short"})]
    assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == 3


@pytest.mark.parametrize("fields", [{"hub_split": "tes"}, {"subset": "other"}])
def test_an_unknown_split_or_subset_is_a_data_error(data_set, fields):
    with pytest.raises(DataError, match="someone/some-pairs") as caught:
        list(Corpus(hub(**fields)))
    assert next(iter(fields.values())) in caught.value.problem
    assert "hub_split" in caught.value.remedy


def test_identity_names_id_and_resolved_commit(data_set, monkeypatch):
    asked = []

    def info(self, repo_id, revision=None):
        asked.append((repo_id, revision))
        return type("Info", (), {"sha": COMMIT})()

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    by_tag, by_commit = Corpus(hub(revision="v1.0")), Corpus(hub())
    assert by_tag.identity() == by_commit.identity()
    assert by_tag.identity()["data"]["revision"] == COMMIT
    assert asked == [("someone/some-pairs", "v1.0")]
    assert Counter(type(item) for _, item in by_tag) == {Example: 5}
    assert data_set[-1][1]["revision"] == COMMIT


def test_a_hub_that_is_not_reached_is_a_data_error(monkeypatch):
    """What its client raises then, whichever library it speaks HTTP with."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    huggingface_hub.close_session()  # made while it was offline
    with pytest.raises(DataError, match=r"cannot be read from the hub: .*refused"):
        _ = HubRows(hub(revision=None)).revision
    monkeypatch.undo()
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (RuntimeError("Data processing error: CAS"), "check corpus.source"),
        (huggingface_hub.errors.HTTPError("no route"), "check corpus.source"),
        (OSError(errno.ENOSPC, "No space left on device"), "free space"),
        (datasets.exceptions.DatasetGenerationError("An error occurred"), "free space"),
    ],
    ids=repr,
)
def test_a_fetch_that_fails_is_a_data_error(monkeypatch, error, remedy):
    """As `datasets` and the transports of the hub's client raise it."""
    if isinstance(error, datasets.exceptions.DatasetsError):
        error.__cause__ = OSError(errno.ENOSPC, "No space left on device")

    def answer(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", answer)
    with pytest.raises(DataError, match=f"data set someone/some-pairs .*{re.escape(str(error))}") as caught:
        list(Corpus(hub()))
    assert caught.value.remedy.startswith(remedy)


def test_without_network_the_commit_comes_from_the_local_cache(tmp_path, monkeypatch):
    refs = tmp_path / "datasets--someone--some-pairs" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert HubRows(hub(revision=None)).revision == COMMIT
    with pytest.raises(DataError, match="revision v2") as caught:
        _ = HubRows(hub(revision="v2")).revision
    assert "network" in caught.value.remedy
    with pytest.raises(DataError, match="no-such-data"):
        Corpus(hub(source="no-such-data", revision=None)).identity()


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_that_the_set_brings_are_used(data_set, tmp_path, streaming):
    folder = tmp_path / "repository"
    write_jsonl(folder / "held.jsonl", pairs(2, 20))
    (folder / "README.md").write_text(
        CARD.replace(
            "split: extra\n    path: extra.jsonl",
            "split: dev\n    path: extra.jsonl\n  - split: test\n    path: held.jsonl",
        )
    )
    found = Corpus(hub(streaming=streaming, validation_share=0.4, test_share=0.4))
    splits = {item.response: split for split, item in found}
    assert splits == {
        **{f"answer {n}": "train" for n in range(5)},
        "answer 9": "validation",
        "answer 20": "test",
        "answer 21": "test",
    }
    assert "dev as validation" in found.notes()[0]
    chosen = Corpus(hub(streaming=streaming, splits={"train": "test", "test": "dev"}))
    assert [split for split, _ in chosen] == ["test", "train", "train"]
    assert "not read: train" in chosen.notes()[0]
    assert {split for split, _ in Corpus(hub(streaming=streaming, hub_split="test"))} == {"train"}
