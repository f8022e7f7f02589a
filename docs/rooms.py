"""Write the table of packages in architecture.md anew, from their own docstrings: `make docs` calls this."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms -->\n", "<!-- end of rooms -->\n"


def rooms(package: Path = ROOT / "sra_core") -> dict[str, str]:
    """Every package and module of the first level, with the first sentence of its docstring."""
    sources = [path for path in package.glob("*.py") if path.stem != "__init__"]
    sources += list(package.glob("*/__init__.py"))
    found = {}
    for path in sources:
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        name = f"{path.parent.name}/" if path.stem == "__init__" else path.name
        found[name] = " ".join(text.partition("\n\n")[0].split())
    return dict(sorted(found.items()))


def table() -> str:
    """The packages as a Markdown table."""
    lines = ["| package | what is in it |", "|---|---|"]
    lines += [f"| `{name}` | {text} |" for name, text in rooms().items()]
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with its table made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
