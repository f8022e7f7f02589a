"""Arrows between the rooms point one way, and heavy packages stay in the room that owns them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sra_core

ROOT = Path(sra_core.__file__).parent

ROOMS = [
    "errors",
    "config",
    "reference",
    "telemetry",
    "redaction",
    "outbox",
    "figures",
    "shards",
    "watching",
    "recipes",
    "corpus",
    "alignment",
    "objective",
    "models",
    "evaluation",
    "cluster",
    "preparation",
    "capture",
    "training",
    "distillation",
    "adaptation",
    "scoring",
    "stages",
    "fidelity",
    "planning",
    "tracking",
    "benchmarking",
    "doctor",
    "cli",
]
"""A room imports only rooms that stand before it."""

OWNERS = {
    "mlflow": {"tracking"},
    "deepspeed": {"training"},
    "peft": {"training", "adaptation"},
    "prefect": set(),
    "typer": {"cli"},
}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def sources() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT or path.name != "__init__.py"]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_every_room_is_on_the_list() -> None:
    assert {room_of(path) for path in sources()} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_one_way(room: str) -> None:
    allowed = {room, *ROOMS[: ROOMS.index(room)], "__version__"}
    wrong = [
        f"{path.name} imports {name}"
        for path in sources()
        if room_of(path) == room
        for name in imported(path)
        if name.startswith("sra_core.") and name.split(".")[1] not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize(("package", "owners"), OWNERS.items())
def test_packages_stay_with_their_owner(package: str, owners: set[str]) -> None:
    users = {room_of(path) for path in sources() for name in imported(path) if name.split(".")[0] == package}
    assert users <= owners


def test_flows_are_orchestration_only() -> None:
    flows = ROOT.parent / "flows"
    heavy = {"torch", "transformers", "deepspeed", "mlflow", "pyarrow"}
    found = {name for path in flows.glob("*.py") for name in imported(path) if name.split(".")[0] in heavy}
    assert found == set()


def test_help_and_config_load_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "mlflow", "prefect")
    code = f"import sys, sra_core.cli, sra_core.recipes; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_every_package_says_what_it_exports() -> None:
    for path in ROOT.rglob("__init__.py"):
        names = [
            getattr(node.targets[0], "id", "")
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign)
        ]
        assert "__all__" in names, path
