"""What corpora and models bring is shown letter by letter in Markdown: rendered by a parser, it stays text."""

from __future__ import annotations

import html
import re

import pytest
from markdown_it import MarkdownIt

from sra_core.watch import escape_markdown, fenced

EVIL = [
    "![x](http://evil.example/pixel.png)",
    "[click](javascript:alert(1))",
    "<img src=http://evil.example/pixel.png>",
    "<script>alert(1)</script>",
    "see http://evil.example/x and www.evil.example or ann@evil.example",
    "<http://evil.example>",
    "`code` ``more`` *bold* __init__ ~~gone~~ a|b",
    "back\\slash \\| &lt; &#60;img&#62;",
    "![x][ref]",
]


def _page(text: str) -> str:
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    return str(page)


@pytest.mark.parametrize("evil", EVIL)
def test_a_text_is_shown_as_its_letters(evil: str) -> None:
    for place in (f"### {escape_markdown(evil)}\n", f"| a | b |\n|---|---|\n| {escape_markdown(evil)} | y |\n"):
        page = _page(place)
        assert set(re.findall(r"<(\w+)", page)) <= {"h3", "table", "thead", "tbody", "tr", "th", "td"}
        assert html.escape(" ".join(evil.split())) in page.replace("&#39;", "'").replace("&#x27;", "'")


def test_bare_addresses_are_no_links_where_they_are_looked_for() -> None:
    escaped = escape_markdown(EVIL[4])
    assert not re.search(r"https?://|www\.|\w@\w", escaped)


def test_plain_words_stay_as_they_are() -> None:
    for plain in ("What is 1?", "C# 3.5, a-b (c); d: e!", "naïve 🦊 #tag"):
        assert escape_markdown(plain) == plain
    assert escape_markdown("two\n lines") == "two lines"


def test_a_fence_holds_what_holds_fences() -> None:
    text = "```\n![x](http://evil.example)\n````"
    block = fenced(text, "yaml")
    assert block.startswith("`````yaml\n")
    assert "<img" not in _page(block)
    assert html.escape(text) in _page(block)
    assert fenced("a: 1\n") == "```\na: 1\n```"
