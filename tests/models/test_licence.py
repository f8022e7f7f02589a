"""The licence of a model is read from its card, its GGUF header, or the config, in this order."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from sra_core.config import ModelRef
from sra_core.errors import ModelError
from sra_core.models import MADE_HERE, licence, licence_of, resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(resolve(ModelRef(source="random:llama")), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: Apache-2.0\n---\n# A model\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: gemma\n---\n", "gemma"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("---\ntags: [x]\n---\nlicense: mit\n", "terms of mine"),
        ("---\nlicense: [\n---\n", "terms of mine"),
        ("# A model\n", "terms of mine"),
        (None, "terms of mine"),
    ],
)
def test_of_a_folder(folder: Path, card: str | None, licence: str) -> None:
    if card is not None:
        (folder / "README.md").write_text(card)
    assert licence_of(ModelRef(source=str(folder), terms=" Terms of mine ")) == licence


def test_of_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("CC-BY-ND-4.0")
    writer.add_tensor("x", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert licence_of(ModelRef(source=str(path), terms="mit")) == "cc-by-nd-4.0"


@pytest.mark.parametrize("member", ["tiny.gguf", "tiny.gguf.part{0..1}"])
def test_of_a_packaged_file(folder: Path, member: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licence, "resolve", lambda ref, weights: str(folder))
    assert licence_of(ModelRef(source=f"package:tiny==1.0/tiny/{member}", terms="Apache-2.0")) == "apache-2.0"


def test_of_models_without_one(folder: Path) -> None:
    assert licence_of(ModelRef(source="random:llama?layers=2")) == MADE_HERE
    assert licence_of(ModelRef(source=str(folder))) == ""
    with pytest.raises(ModelError, match="there is no folder"):
        licence_of(ModelRef(source="./nowhere"))
