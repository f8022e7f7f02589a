"""A process goes on when whoever reads its output is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys, time
from pathlib import Path
from rich.console import Console
from sra_core.processes import outlive_readers

outlive_readers()
console = Console(file=getattr(sys, sys.argv[1]))
console.print("ready")
sys.stdin.read()  # until the reader is gone
time.sleep(0.2)
console.print("to nobody")
print("to nobody", file=getattr(sys, sys.argv[1]), flush=True)
Path(sys.argv[2]).write_text("the end")
"""


@pytest.mark.parametrize("output", ["stdout", "stderr"])
def test_a_broken_pipe_does_not_end_a_process(output: str, tmp_path: Path) -> None:
    note = tmp_path / "note"
    command = [sys.executable, "-c", CODE, output, str(note)]
    pipes = {"stdin": subprocess.PIPE, output: subprocess.PIPE}
    process = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
    reader = getattr(process, output)
    assert reader.readline() == b"ready\n"
    reader.close()
    process.stdin.close()
    assert process.wait(60) == 0
    assert note.read_text() == "the end"
