"""YAML as recipes are written, which is YAML 1.2, read and written: what is printed is read back as it was."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

__all__ = ["NotYaml", "read_yaml", "write_yaml"]


class NotYaml(ValueError):
    """A text that is no YAML, or holds a value that holds itself; says where."""


def read_yaml(text: str) -> Any:
    """The values of a text.

    Raises:
        NotYaml: Says what is wrong, and in which line.
    """
    try:
        values = yaml.load(text, _Loader)
        json.dumps(values, default=str)  # refuses a value that holds itself
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise NotYaml(str(error).replace('  in "<unicode string>", line', "  in line")) from error
    except RecursionError as error:
        raise NotYaml("values are nested too deeply") from error
    return values


def write_yaml(values: Any, **options: Any) -> str:
    """Values as text, in their order; `read_yaml` gives them back, and so does a reader of YAML 1.1.

    Args:
        values: Mappings, lists, texts, numbers, booleans, None.
        options: As for ``yaml.dump``.
    """
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, **options)
    return text


class _Loader(yaml.SafeLoader):
    """YAML 1.2: only `true` and `false` are booleans (`off` is a value of `evaluate.leaks`), a date is a text, `5e8` a number,
    `010` ten; and a key stands once: PyYAML takes the last of several, and what stood under the others is gone."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        # Before `<<` is merged in: a section may say anew what the one that it merges says.
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and first.setdefault(key.value, key) is not key:
                told = f"{key.value!r} stands here and in line {first[key.value].start_mark.line + 1}; write it once"
                raise yaml.composer.ComposerError(None, None, told, key.start_mark)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0 if text.startswith(("0o", "0x")) else 10)


_NOT_TAKEN = (":bool", ":timestamp", ":float", ":int")
# A table of its own: SafeLoader's is shared by all who use PyYAML.
_Loader.yaml_implicit_resolvers = {}
for _first, _resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items():
    _Loader.yaml_implicit_resolvers[_first] = [pair for pair in _resolvers if not pair[0].endswith(_NOT_TAKEN)]
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",  # before integers, which are floats without point and exponent
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that a reader of YAML 1.2 or of 1.1 would take for something else, as in "08", "1e3" and "off"."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # PyYAML (6.0) writes the line end U+0085 as it is, and reads another one.
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)

_Dumper.yaml_implicit_resolvers = {
    first: _Loader.yaml_implicit_resolvers.get(first, []) + yaml.SafeLoader.yaml_implicit_resolvers.get(first, [])
    for first in {*_Loader.yaml_implicit_resolvers, *yaml.SafeLoader.yaml_implicit_resolvers}
}
