"""The cache stage on an S3-compatible server: two machines share the capture, a third one reads the result."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from sra_core import stages
from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.runs import Run
from sra_core.shards import TeacherSet
from tests.cache import process as cache_process

EXAMPLES, PER_SHARD = 40, 8


def make_config(store: str) -> RunConfig:
    return load_config(
        "smoke",
        {
            "store": store,
            "tracking": {"enabled": False},
            "corpus": {"max_train": EXAMPLES},
            "alignment": {"examples_per_shard": PER_SHARD},
            "cache": {"tokens_per_batch": 400, "device": "cpu"},
        },
    )


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket on a local server; the environment points at it."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in environment(f"http://{host}:{port}").items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("caches")
    yield "s3://caches/store"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def environment(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.mark.integration
def test_machines_share_a_capture_on_object_storage(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    local = make_config(str(tmp_path / "store"))
    stages.prepare(local)
    reference = stages.cache(local)

    monkeypatch.setenv("SRA_CACHE_HOME", str(tmp_path / "machine-0"))
    config = make_config(bucket)
    assert stages.prepare(config).content == Run(local).result("prepare").content

    notes, processes = tmp_path / "notes", []
    for number in (1, 2):
        place = {**environment(os.environ["AWS_ENDPOINT_URL"]), "SRA_CACHE_HOME": str(tmp_path / f"machine-{number}")}
        arguments = (config.model_dump(mode="json"), 0.3, str(notes), place)
        processes.append(cache_process.start(cache_process.run_cache, *arguments))
    for process in processes:
        process.join(250)
    assert [process.exitcode for process in processes] == [0, 0]
    lines = [line.split() for line in notes.read_text().splitlines()]
    assert sorted(name for _, name in lines) == sorted(shard.name for shard in reference.shards)
    assert len({pid for pid, _ in lines}) == 2

    monkeypatch.setenv("SRA_CACHE_HOME", str(tmp_path / "machine-3"))
    found = Run(config).verified("cache")
    assert found.content == reference.content
    assert Path(found.folder).is_relative_to(tmp_path / "machine-3")
    expected = TeacherSet(reference, "train")
    for row, other in zip(TeacherSet(found, "train"), expected, strict=True):
        assert row.id == other.id
        assert (row.centers[3] == other.centers[3]).all()
