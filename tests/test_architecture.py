"""Arrows between the rooms point one way, heavy packages stay with their owners, and the map in the docs is true."""

from __future__ import annotations

import ast
import importlib
import inspect
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import sra_core
from tests.structure import circle, declared_packages, file_graph, handed_on, imports, nested_comprehensions, undeclared

ROOT = Path(sra_core.__file__).parent
PROJECT = ROOT.parent

FLOORS = [
    "errors",
    "config",
    "shards",
    "watch",
    "processes",
    "runs",
    "corpus",
    "alignment",
    "objective",
    "models",
    "training",
    "compare",
    "prepare",
    "adapt",
    "cache",
    "distill",
    "evaluate",
    "generate",
    "doctor",
    "init",
    "stages",
    "check_cache",
    "plan",
    "bench",
    "publish",
    "api",
    "cli",
]
"""A room imports only rooms that stand before it.

One arrow runs up on purpose and without an import: ``runs`` asks the room of a stage's name for its identity.
"""

COMMANDS = {
    "prepare",
    "adapt",
    "cache",
    "distill",
    "evaluate",
    "generate",
    "compare",
    "plan",
    "bench",
    "check_cache",
    "init",
    "publish",
}
"""Rooms of one command each. What two commands share lies below them."""
BUILT_ON = {
    ("evaluate", "compare"),
    ("generate", "evaluate"),
    ("cache", "compare"),
    ("distill", "compare"),
    ("bench", "compare"),
    ("check_cache", "cache"),
    ("plan", "cache"),
    ("plan", "compare"),
    ("plan", "evaluate"),
    ("plan", "prepare"),
}
"""Evaluations are written in the form that comparisons read; `generate` answers as `evaluate` does; cache and distill
say by its intervals whether there is something to learn; the check and the plan look into their stages."""

OWNERS = {
    "mlflow": {"watch/mlflow"},
    "deepspeed": {"training"},
    "peft": {"training", "adapt", "models/rewritten"},  # the last: an adapter beside the weights is merged once
    "prefect": set(),
    "typer": {"cli"},
    "distributed": {"processes"},
    "datasets": {"corpus"},
    "vllm": {"evaluate"},
    "lm_eval": {"evaluate"},
}

CONTRACTS = {
    "sra_core": ["align", "audit", "load_config", "pool_spans", "run", "shared_vocabulary"],
    "sra_core.alignment": ["clean_cuts", "align", "SpanMap", "shared_vocabulary", "SharedVocabulary", "audit"],
    "sra_core.objective": ["pool_spans", "span_cosine_loss", "span_geometry_loss", "span_logit_kl"],
    "sra_core.models": ["last_row_attention", "load_model"],
    "sra_core.stages": ["prepare", "adapt", "cache", "distill", "evaluate", "run"],
}
"""Names that others rely on."""


def sources() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def rooms_used(path: Path) -> set[str]:
    """Rooms that a file imports from."""
    found = set()
    for each in imports(path):
        parts = f"{each.module}.{each.name}".split(".")
        if parts[0] == "sra_core" and parts[1] not in ("", "__version__"):
            found.add(parts[1])
    return found - {room_of(path)}


def test_every_room_is_on_the_list() -> None:
    assert {room_of(path) for path in sources()} == set(FLOORS)


@pytest.mark.parametrize("room", FLOORS)
def test_arrows_point_one_way(room: str) -> None:
    allowed = set(FLOORS[: FLOORS.index(room)])
    wrong = [(path.name, rooms_used(path) - allowed) for path in sources() if room_of(path) == room]
    assert [each for each in wrong if each[1]] == []


def test_commands_share_by_what_lies_below_them() -> None:
    arrows = {(room_of(path), room) for path in sources() for room in rooms_used(path)}
    between = {(a, b) for a, b in arrows if a in COMMANDS and b in COMMANDS}
    assert between == BUILT_ON


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circle(file_graph(ROOT)) == []


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    package = tmp_path / "house"
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "room" / "__init__.py").write_text("from house.room.door import Door\n")
    (package / "room" / "door.py").write_text("from house.window import Window\n\n\nclass Door: ...\n")
    (package / "window.py").write_text("class Window: ...\n")
    assert circle(file_graph(package)) == []
    (package / "window.py").write_text("def look():\n    from house.room import Door\n    return Door\n")
    assert set(circle(file_graph(package))) == {"house.room.door", "house.window"}


@pytest.mark.parametrize(("package", "owners"), OWNERS.items())
def test_packages_stay_with_their_owner(package: str, owners: set[str]) -> None:
    users = [path for path in sources() for each in imports(path) if each.module.split(".")[0] == package]
    places = {path.relative_to(ROOT).with_suffix("").as_posix() for path in users}
    assert {place for place in places if not place.startswith(tuple(owners))} == set()


def test_flows_are_orchestration_only() -> None:
    heavy = {"torch", "transformers", "deepspeed", "mlflow", "pyarrow"}
    paths = sorted((PROJECT / "flows").glob("*.py"))
    assert {path.name for path in paths} > {"form.py", "retries.py", "watcher.py", "common.py"}
    assert {each.module for path in paths for each in imports(path) if each.module.split(".")[0] in heavy} == set()


def test_what_is_imported_is_declared() -> None:
    folders = ("sra_core", "flows", "deploy", "docker")
    paths = [path for folder in folders for path in sorted((PROJECT / folder).rglob("*.py"))]
    assert undeclared(paths, declared_packages(PROJECT / "pyproject.toml"), {"sra_core", "flows", "deploy"}) == set()


def test_a_planted_undeclared_import_is_found(tmp_path: Path) -> None:
    project, file = tmp_path / "pyproject.toml", tmp_path / "guest.py"
    project.write_text('[project]\ndependencies = ["numpy>=2", "PyYAML"]\n[project.optional-dependencies]\n')
    file.write_text("import json\nimport numpy\nimport yaml\n\n\ndef late():\n    import torch\n")
    assert undeclared([file], declared_packages(project), set()) == {"guest.py imports torch"}


def test_no_comprehension_holds_another() -> None:
    paths = [path for folder in ("sra_core", "flows") for path in sorted((PROJECT / folder).rglob("*.py"))]
    assert [place for path in paths for place in nested_comprehensions(path)] == []


def test_a_planted_comprehension_in_another_is_found(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(
        "a = [x for y in z for x in y]\nb = [any(x for x in y) for y in z]\nc = {x for x in [y for y in z]}\n"
    )
    assert nested_comprehensions(file) == ["file.py:2", "file.py:3"]


@pytest.mark.parametrize(("module", "names"), CONTRACTS.items())
def test_names_that_others_rely_on_are_there(module: str, names: list[str]) -> None:
    found = importlib.import_module(module)
    assert set(names) <= set(found.__all__)
    assert [name for name in names if not inspect.getdoc(getattr(found, name))] == []


def test_every_package_says_exactly_what_it_hands_on() -> None:
    for path in ROOT.rglob("__init__.py"):
        package = ".".join(path.relative_to(ROOT.parent).parent.parts)
        own = {name for name, module in handed_on(path, package).items() if module.startswith("sra_core.")}
        assert set(importlib.import_module(package).__all__) - {"__version__"} == own, path
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_every_room_has_its_tests_under_its_name() -> None:
    folders = {path.name for path in (PROJECT / "tests").iterdir() if (path / "__init__.py").exists()}
    assert folders - {"integration", "golden", "flows"} == set(FLOORS) - {"errors"}


def test_help_and_config_load_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "mlflow", "prefect", "pyarrow", "matplotlib")
    for command in (["--help"], ["recipes"], ["fields"], ["config", "smoke"]):
        code = (
            f"import sys; sys.argv = ['sra', *{command}]\n"
            "from sra_core.cli import app\n"
            "try: app()\n"
            f"except SystemExit: pass\nfinally: print('loaded', [m for m in {heavy} if m in sys.modules])"
        )
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert answer.stdout.splitlines()[-1] == "loaded []", command


def test_the_table_of_rooms_in_the_docs_is_the_rooms_own_words() -> None:
    rooms = runpy.run_path(str(PROJECT / "docs" / "rooms.py"))
    text = (PROJECT / "docs" / "architecture.md").read_text()
    assert rooms["page"](text) == text, "run `make docs`"
    assert set(rooms["rooms"]()) == {path.name + "/" * path.is_dir() for path in map(_place, FLOORS)}


def _place(room: str) -> Path:
    return ROOT / room if (ROOT / room).is_dir() else ROOT / f"{room}.py"
