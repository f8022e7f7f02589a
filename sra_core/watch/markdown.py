"""Texts from elsewhere inside Markdown: shown letter by letter, never rendered.

A corpus or a model may bring `![](http://...)`, which the browser of whoever reads a report would fetch.
"""

from __future__ import annotations

import re

__all__ = ["escape_markdown", "fenced"]

_MEANS_SOMETHING = re.compile(r"[\\`*_\[\]<>|&~$]|:(?=//)|@(?=\w)|(?<=www)\.", re.IGNORECASE)


def escape_markdown(text: str) -> str:
    """``text`` on one line of Markdown, also in the cell of a table, as its own letters: no link, image, HTML, code
    or emphasis, not even of a bare address."""
    return _MEANS_SOMETHING.sub(r"\\\g<0>", " ".join(text.split()))


def fenced(text: str, language: str = "") -> str:
    """``text`` as a block of code, whatever fences it holds itself."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
