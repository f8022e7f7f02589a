"""A script of its own: import the standard library and write its docstrings as JSON lines to standard output.

It is run in a fresh isolated interpreter (see ``python_docs``), never imported by the product: importing some two
hundred modules registers codecs, handlers and hooks, and a module that crashes must not take the run with it.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

# Modules that open a browser or a window, print, start programs, or hold tests and translated documentation.
SKIPPED = {
    "antigravity",
    "ctypes.macholib",
    "distutils",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "msilib",
    "pydoc_data",
    "test",
    "this",
    "tkinter",
    "turtle",
    "turtledemo",
}
SKIPPED_PARTS = {"test", "tests", "__main__"}
SIGNATURE_ONLY = re.compile(r"^[\w.]+\(.*\)( -> .*)?$", re.DOTALL)
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{4,}")
SHORTEST = 20


def modules() -> Iterator[ModuleType]:
    """Public modules of the standard library and of its packages, in order of their names."""
    for name in sorted(filter(wanted, sys.stdlib_module_names)):
        module = load(name)
        if module is None:
            continue
        yield module
        for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}.", onerror=lambda _: None):
            submodule = load(found.name) if wanted(found.name) else None
            if submodule is not None:
                yield submodule


def wanted(name: str) -> bool:
    """Whether a module is public and safe to import."""
    parts = name.split(".")
    prefixes = {".".join(parts[: end + 1]) for end in range(len(parts))}
    return not (any(part.startswith("_") or part in SKIPPED_PARTS for part in parts) or prefixes & SKIPPED)


def load(name: str) -> ModuleType | None:
    """The module, or None where this platform does not have it."""
    try:
        return importlib.import_module(name)
    except BaseException:  # a module may even call sys.exit
        return None


def public_objects(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions and classes that a module exports or defines, and the methods of the built-in types, by name."""
    exported = set(getattr(module, "__all__", ()))
    for name in sorted(exported | set(vars(module))):
        value = getattr(module, name, None)
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        home = getattr(value, "__module__", None) or module.__name__
        if name in exported or home == module.__name__:
            yield name, value
            if module is builtins and inspect.isclass(value):
                yield from ((f"{name}.{key}", method) for key, method in public_methods(value))


def public_methods(kind: type) -> Iterator[tuple[str, Any]]:
    """The methods that a type defines itself, by name."""
    for name, method in sorted(vars(kind).items()):
        if not name.startswith("_") and inspect.isroutine(method):
            yield name, method


def docstring(value: Any) -> str:
    """The cleaned docstring; empty where it is missing, too short, a bare signature, or differs from run to run."""
    text = value.__doc__
    if not isinstance(text, str):
        return ""
    text = inspect.cleandoc(text).strip()
    if len(text) < SHORTEST or SIGNATURE_ONLY.match(text) or ADDRESS.search(text):
        return ""
    return text


def collect() -> list[dict[str, str]]:
    """All documented objects, sorted by name; one reached by several names keeps the shortest."""
    found: list[tuple[str, str, str, int]] = []
    for module in modules():
        home = module.__name__
        found += [(f"{home}.{key}", home, docstring(value), id(value)) for key, value in public_objects(module)]
    # Fewest dots first: of several names of one object, or of one text, the first that comes is kept.
    found.sort(key=lambda item: (item[0].count("."), item[0]))
    objects: set[int] = set()
    texts: set[str] = set()
    kept = []
    for name, module_name, text, identity in found:
        if text and identity not in objects and text not in texts:
            objects.add(identity)
            texts.add(text)
            kept.append({"id": name, "source": module_name, "response": text})
    return sorted(kept, key=lambda item: item["id"])


def main() -> None:
    """Collect with all output of the imported modules silenced, then write the result to the real output."""
    # Descriptors, not sys.stdout: what modules write past Python's own streams is silenced too.
    output = os.dup(1)
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    records = collect()
    with os.fdopen(output, "w", encoding="utf-8", newline="\n") as stream:
        # In ASCII: the reader splits lines with str.splitlines, which cuts at Unicode's line breaks too.
        stream.writelines(json.dumps(record) + "\n" for record in records)
        stream.flush()
        os._exit(0)  # exit handlers of the imported modules have nothing to say


if __name__ == "__main__":
    main()
