from __future__ import annotations

import subprocess
import sys

import sra_core.evaluation as evaluation


def test_every_public_name_is_there_and_nothing_else():
    homes = [name for names in evaluation._HOMES.values() for name in names]
    assert sorted(homes) == sorted(evaluation.__all__)
    for module, names in evaluation._HOMES.items():
        home = __import__(f"sra_core.evaluation.{module}", fromlist=["x"])
        for name in names:
            assert getattr(evaluation, name) is getattr(home, name)
            assert name in home.__all__
    assert not hasattr(evaluation, "nothing")


def test_comparing_does_not_load_torch():
    code = (
        "import sys; from sra_core.evaluation import compare_runs, read_run, find_leaks, write_report, terminal_report;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
