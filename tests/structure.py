"""Who imports whom, read from the code itself: deferred imports count, those for type checkers alone do not."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

__all__ = [
    "Import",
    "circle",
    "declared_packages",
    "file_graph",
    "handed_on",
    "imports",
    "nested_comprehensions",
    "undeclared",
]


@dataclass(frozen=True)
class Import:
    """``from module import name`` or, with an empty name, ``import module``."""

    module: str
    name: str = ""


def imports(path: Path) -> Iterator[Import]:
    """Imports of a file that are carried out when it, or a function of it, runs."""
    yield from _of(ast.parse(path.read_text()))


def _of(node: ast.AST) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (Import(each.name) for each in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield from (Import(child.module, each.name) for each in child.names)
        yield from _of(child)


def file_graph(root: Path) -> dict[str, set[str]]:
    """Modules below a package's folder and the modules whose code each of them takes.

    A name that a package hands on counts as an import of the module that defines it.
    """
    package = root.name
    modules = {_name(path, root.parent): path for path in sorted(root.rglob("*.py"))}
    faces = {name: handed_on(path, name) for name, path in modules.items() if path.name == "__init__.py"}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        graph[name] = set()
        if path.name == "__init__.py":
            continue
        for each in imports(path):
            if each.module.split(".")[0] == package:
                graph[name].add(_home(each, modules, faces))
    return graph


def handed_on(face: Path, package: str) -> dict[str, str]:
    """The names that ``__init__.py``, or the stub beside it, hands on, and the modules that define them."""
    stub = face.with_suffix(".pyi")
    found = {}
    for node in ast.walk(ast.parse((stub if stub.exists() else face).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = f"{package}.{node.module}" if node.level else node.module
            found |= {each.name: module for each in node.names}
    return found


def _name(path: Path, above: Path) -> str:
    parts = path.relative_to(above).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _home(each: Import, modules: dict[str, Path], faces: dict[str, dict[str, str]]) -> str:
    if f"{each.module}.{each.name}" in modules:
        return f"{each.module}.{each.name}"
    module = each.module
    while each.name in faces.get(module, {}):
        module = faces[module][each.name]
    return module


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a loop, in order; empty if there are none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for other in sorted(graph.get(node, ())):
            if found := visit(other, [*path, node]):
                return found
        done.add(node)
        return []

    for start in sorted(graph):
        if found := visit(start, []):
            return found
    return []


def declared_packages(project: Path) -> set[str]:
    """Import names of the packages that pyproject.toml asks for, extras for users included."""
    values = tomllib.loads(project.read_text())["project"]
    extras = values["optional-dependencies"]
    lines = [*values["dependencies"], *(line for name, extra in extras.items() if name != "dev" for line in extra)]
    asked = [Requirement(line) for line in lines]
    wanted = {_canonical(name) for each in asked for name in (each.name, *each.extras)}  # such as dask[distributed]
    by_import = metadata.packages_distributions()
    found = {name for name, made_by in by_import.items() if wanted & {_canonical(each) for each in made_by}}
    return found | {name.replace("-", "_") for name in wanted}  # extras that are not installed here


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def undeclared(paths: list[Path], declared: set[str], own: set[str]) -> set[str]:
    """``file imports package`` of every package that is neither the standard library's, nor declared, nor ``own``."""
    import sys

    known = declared | own | set(sys.stdlib_module_names)
    return {
        f"{path.name} imports {each.module.split('.')[0]}"
        for path in paths
        for each in imports(path)
        if each.module.split(".")[0] not in known
    }


_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def nested_comprehensions(path: Path) -> list[str]:
    """``file:line`` of every comprehension that holds another, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, _COMPREHENSIONS):
            inner = [each for each in ast.walk(node) if isinstance(each, _COMPREHENSIONS)]
            if len(inner) > 1:  # the walk begins with the node itself
                found.append(f"{path.name}:{node.lineno}")
    return found
