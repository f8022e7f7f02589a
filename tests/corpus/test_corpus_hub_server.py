"""Hub data sets through the real client, against a local server, and afterwards without any network."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from .hub_server import serve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
ROWS = [{"instruction": f"q{n}", "response": f"a{n}"} for n in range(5)]
FILES = {
    "train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "README.md": b"---\nlicense: mit\n---\n",
}
SCRIPT = """
import json, sys
from sra_core.config import CorpusConfig
from sra_core.corpus import Corpus
from sra_core.errors import DataError
corpus = Corpus(CorpusConfig(source="someone/pairs", test_share=0, validation_share=0, **json.loads(sys.argv[1])))
try:
    print(json.dumps([corpus.identity()["data"]["revision"], [[e.id, e.response] for _, e in corpus]]))
except DataError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture
def read(tmp_path):
    """Read the data set in a process of its own, from a server or, with no address, offline."""

    def run(address: str | None, **fields):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        offline = "0" if address else "1"
        environment |= {"HF_ENDPOINT": address or "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
        environment |= {"HF_HUB_OFFLINE": offline, "HF_DATASETS_OFFLINE": offline, "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", SCRIPT, json.dumps(fields)]
        return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    return run


@pytest.mark.integration
def test_a_branch_is_resolved_read_both_ways_and_found_again_offline(read):
    expected = [COMMIT, [[f"pairs:{n + 1}", f"a{n}"] for n in range(5)]]
    with serve("someone/pairs", COMMIT, FILES) as address:
        assert read(address, streaming=True) == expected
        assert read(address, revision="main") == expected
        assert "cannot be read from the hub" in read(address, revision="no-such-branch")
        assert "cannot be read from the hub" in read(address, hub_split="test")
    assert read(None) == expected
    assert read(None, revision="main") == expected
    assert read(None, revision=COMMIT) == expected
    for streaming in (False, True):
        assert f"only commit {COMMIT} is on this machine" in read(None, revision=OTHER, streaming=streaming)
