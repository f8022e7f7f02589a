"""Real servers for a test session: Prefect, MLflow and one worker."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from .servers import Stack, free_port, new_settings, running_stack, services, until

POSTGRES_PASSWORD = "p@ss/w%rd-planted"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if "TEST_STACK" in os.environ:  # services that run already, found by the variables of deploy/services.py
        yield Stack(services.Settings.from_environment(os.environ))
        return
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setenv("PREFECT_WORKER_QUERY_SECONDS", "1")
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "SRA_STORE"):
        patch.delenv(name, raising=False)
    with running_stack(new_settings(tmp_path_factory.mktemp("stack"))) as running:
        yield running
    patch.undo()


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """A real PostgreSQL with databases prefect and mlflow; yields USER:PASSWORD@HOST:PORT as an address spells them."""
    if shutil.which("initdb") is None or shutil.which("postgres") is None:
        pytest.skip("no PostgreSQL on this machine; Debian's package is `postgresql`")
    folder, port = tmp_path / "pg", free_port()
    run = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    folder.mkdir()
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.getuid() and os.getuid() == 0 and parent.is_relative_to("/tmp"):
            parent.chmod(0o755)
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    words = folder / "password"
    words.write_text(POSTGRES_PASSWORD)
    words.chmod(0o644)
    chosen = ["--username=sra", "--auth=scram-sha-256", f"--pwfile={words}"]
    subprocess.run([*run, "initdb", *chosen, folder / "data"], check=True, capture_output=True)
    options = ["-D", str(folder / "data"), "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", str(folder)]
    server = subprocess.Popen([*run, "postgres", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: _listens(port), 30, "PostgreSQL")
    password = {**os.environ, "PGPASSWORD": POSTGRES_PASSWORD}
    for name in ("prefect", "mlflow"):
        create = ["createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "sra", name]
        until(lambda do=create: subprocess.run(do, env=password, capture_output=True).returncode == 0, 20, name)  # type: ignore[misc]
    yield f"sra:{quote(POSTGRES_PASSWORD, safe='')}@127.0.0.1:{port}"
    for member in psutil.Process(server.pid).children() or [psutil.Process(server.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGINT)
    server.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
