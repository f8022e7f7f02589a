"""Which fields of the run config the product reads: attributes of what is annotated as a part of the config.

A name alone proves nothing: `distill.batch_size` is read where something of type `TrainingConfig` is asked for it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import sra_core.config as config_room
from sra_core.config.reference import part_of

__all__ = ["PARTS", "declared", "fields_read"]

Part = type[BaseModel]
PARTS: dict[str, Part] = {
    name: part for name, part in vars(config_room).items() if isinstance(part, type) and issubclass(part, BaseModel)
}


def declared(part: Part, field: str) -> str:
    """``Class.field`` of the class that declares a field of a part."""
    owner = next(base for base in reversed(part.__mro__) if field in getattr(base, "__annotations__", {}))
    return f"{owner.__name__}.{field}"


def fields_read(paths: Iterable[Path]) -> set[str]:
    """``Class.field`` of every field that some function of these files reads."""
    trees = [ast.parse(path.read_text()) for path in paths]
    known = _known_members(trees)
    own = _own_members(trees, known)
    found: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            members = own.get(node.name, {}) if isinstance(node, ast.ClassDef) else {}
            for function in ast.iter_child_nodes(node):
                if isinstance(function, ast.FunctionDef):
                    found |= _Scope(function, known, members).reads()
    return found


def _own_members(trees: Sequence[ast.AST], known: Mapping[str, Part]) -> dict[str, dict[str, Part]]:
    """Attributes of ``self`` that are parts, by class, those of its bases included; a part is itself one: ``""``."""
    classes = {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    found: dict[str, dict[str, Part]] = {}

    def members(name: str) -> dict[str, Part]:
        if name not in classes:
            return {}
        if name not in found:
            found[name] = {"": PARTS[name]} if name in PARTS else {}
            for base in classes[name].bases:
                found[name] |= {key: part for key, part in members(_name(base)).items() if key}
            found[name] |= _known_members([classes[name]])
            for method in ast.iter_child_nodes(classes[name]):
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    found[name] |= _Scope(method, known, found[name]).kept()
        return found[name]

    for name in classes:
        members(name)
    return found


def _known_members(trees: Sequence[ast.AST]) -> dict[str, Part]:
    """Attributes, properties and functions that are annotated as a part: ``Run.config``, ``Job.training``."""
    known: dict[str, Part] = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef) and (part := _annotated(node.returns)):
            known[node.name] = part
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and (part := _annotated(node.annotation))
        ):
            known[node.target.id] = part
    return known


def _annotated(annotation: ast.expr | None) -> Part | None:
    """The first part that an annotation names; ``list[DatasetConfig]`` and ``LoraConfig | None`` name one."""
    names = [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)] if annotation else []
    return next((PARTS[name] for name in names if name in PARTS), None)


def _assignments(function: ast.FunctionDef) -> Iterator[tuple[ast.expr, ast.expr]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                yield from zip(target.elts, node.value.elts, strict=False) if pairs else [(target, node.value)]
        elif isinstance(node, ast.NamedExpr):
            yield node.target, node.value
        elif isinstance(node, (ast.For, ast.comprehension)):
            values = node.iter.elts if isinstance(node.iter, (ast.Tuple, ast.List)) else [node.iter]
            for value in values:  # the elements of `for ref in (config.teacher, student)`
                inner = value.elts if isinstance(value, ast.Tuple) else [value]
                targets = node.target.elts if isinstance(node.target, ast.Tuple) else [node.target]
                yield from zip(targets, inner if len(inner) == len(targets) else [value] * len(targets), strict=True)


class _Scope:
    """One function: the types of its names, then what it reads."""

    def __init__(self, function: ast.FunctionDef, known: Mapping[str, Part], own: Mapping[str, Part]) -> None:
        self._function, self._known, self._own = function, known, own
        arguments = [*function.args.args, *function.args.kwonlyargs]
        self._names = {each.arg: part for each in arguments if (part := _annotated(each.annotation))}
        if "" in own:
            self._names["self"] = own[""]
        for _ in range(2):  # a name may be made from one that stands below it
            for target, value in _assignments(function):
                if isinstance(target, ast.Name) and (part := self._type(value)):
                    self._names.setdefault(target.id, part)

    def kept(self) -> dict[str, Part]:
        """Attributes that the function gives ``self``."""
        made = {target.attr: self._type(value) for target, value in _assignments(self._function) if _of_self(target)}
        return {name: part for name, part in made.items() if part}

    def reads(self) -> set[str]:
        found = set()
        for node in ast.walk(self._function):
            if isinstance(node, ast.Attribute) and (part := self._type(node.value)) and node.attr in part.model_fields:
                found.add(declared(part, node.attr))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
                found |= self._computed(node)
            if isinstance(node, ast.Call) and any(each.arg == "exclude" for each in node.keywords):
                found |= self._handed_on(node)
        return found

    def _computed(self, call: ast.Call) -> set[str]:
        """``getattr(part, name)`` reads the fields that its function spells out, by name or by how they begin."""
        part = self._type(call.args[0])
        words = {node.value for node in ast.walk(self._function) if isinstance(node, ast.Constant)}
        begins = tuple(word for word in words if isinstance(word, str) and word.endswith("_"))
        names = part.model_fields if part else ()
        return {
            declared(part, name) for name in names if part and (name in words or name.startswith(begins or ("\0",)))
        }

    def _handed_on(self, call: ast.Call) -> set[str]:
        """``part.model_dump(exclude={...})`` hands all other fields on to a part with the same ones."""
        part = self._type(call.func.value) if isinstance(call.func, ast.Attribute) else None
        left_out = {node.value for node in ast.walk(call) if isinstance(node, ast.Constant)}
        return {declared(part, name) for name in part.model_fields if name not in left_out} if part else set()

    def _type(self, node: ast.expr) -> Part | None:
        if isinstance(node, ast.Name):
            return self._names.get(node.id)
        if isinstance(node, ast.Attribute):
            part: Any = self._type(node.value)
            if part and node.attr in part.model_fields:
                return part_of(part.model_fields[node.attr].annotation)
            if part:
                return None
            return (self._own if _name(node.value) == "self" else self._known).get(node.attr)
        if isinstance(node, ast.Call):
            return self._type(node.func) if isinstance(node.func, ast.Attribute) else self._known.get(_name(node.func))
        if isinstance(node, ast.BoolOp):
            return next((part for value in node.values if (part := self._type(value))), None)
        if isinstance(node, ast.IfExp):
            return self._type(node.body) or self._type(node.orelse)
        return None


def _of_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and _name(node.value) == "self"


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""
