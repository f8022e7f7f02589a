"""The hook of mkdocs.yml: pages keep their places in the repository, so that links between them hold as on GitHub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md", "docs/*.md", "deploy/**/*.md")
SHOWN = ("docs/images/*", "docs/site.css")
NOTEBOOK = ROOT / "docs" / "tour.ipynb"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's own files, and the repository's pages and pictures under their paths."""
    found = [file for file in files if not Path(file.abs_src_path or "").is_relative_to(ROOT / "docs")]
    for pattern in (*PAGES, *SHOWN):
        for path in sorted(ROOT.glob(pattern)):
            found.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return Files([*found, *_notebook(config)])


def _notebook(config: MkDocsConfig) -> list[File]:
    """The notebook as a page, with the outputs that are kept in it, and its pictures beside it."""
    from nbconvert import MarkdownExporter

    text, resources = MarkdownExporter().from_filename(str(NOTEBOOK))
    pictures = [File.generated(config, f"docs/{name}", content=data) for name, data in resources["outputs"].items()]
    return [File.generated(config, "docs/tour.md", content=text), *pictures]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """What a block of commands needs stands behind its language, and is for the tests; the notebook is a page here."""
    markdown = re.sub(r"^```(\w+) \w+$", r"```\1", markdown, flags=re.MULTILINE)
    return markdown.replace("tour.ipynb)", "tour.md)")
