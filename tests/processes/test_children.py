"""Processes of multiprocessing end with the one that started them, however that ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

CODE = """
import multiprocessing, os, sys, time
from pathlib import Path
from sra_core.processes import die_with_parent

def work(note):
    die_with_parent()
    Path(note).write_text(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=work, args=(sys.argv[1],), daemon=True)
    child.start()
    child.join()
"""


def test_a_child_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script, note = tmp_path / "parent.py", tmp_path / "child"
    script.write_text(CODE)
    parent = subprocess.Popen([sys.executable, str(script), str(note)])
    end = time.monotonic() + 60
    while not (note.exists() and note.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    child = psutil.Process(int(note.read_text()))
    parent.kill()
    parent.wait()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()
