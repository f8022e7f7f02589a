"""The comparison page in a real browser: search, order, a phone's width, light and dark.

With COMPARE_PICTURE set to a path, the picture of the README is written there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sra_core.compare import compare_runs, read_run, write_report
from tests.compare.store import write_run

from .. import chromium

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SETS = ("test", "dialogsum", "self_inst")
QUALITIES = {"sra": 0.3, "uld": 0.42, "sft": 0.45}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from chromium.started()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = tmp_path_factory.mktemp("store")
    runs = [
        read_run(
            write_run(
                store,
                {"teacher": 0.15, "initial": 0.9, "student": wrong},
                objective=name,
                seeds=(10, 20),
                datasets=SETS,
                learning_rate=1e-3 - wrong / 1000,
            ),
            name,
        )
        for name, wrong in QUALITIES.items()
    ]
    path = store / "comparison.html"
    write_report(compare_runs(runs), path)
    return f"file://{path}"


def opened(browser: Any, report: str, width: int = 1200, scheme: str = "light") -> Any:
    page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
    page.on("pageerror", lambda error: pytest.fail(f"script error: {error}"))
    page.goto(report)
    return page


def shown(page: Any) -> list[Any]:
    return [card for card in page.query_selector_all("article") if card.is_visible()]


def gaps(page: Any) -> list[float]:
    return [float(card.get_attribute("data-gap")) for card in shown(page)]


def test_search_leaves_what_holds_every_word(browser: Any, report: str) -> None:
    page = opened(browser, report)
    everything = len(shown(page))
    assert everything > 100
    page.get_by_role("searchbox").fill("dialogsum ex-7")
    found = shown(page)
    assert 0 < len(found) < everything
    assert all("ex-7" in card.inner_text() and "dialogsum" in card.inner_text() for card in found)
    assert f"{len(found)} of {everything} examples" in page.inner_text("#shown")
    page.get_by_role("searchbox").fill("no such words anywhere")
    assert shown(page) == []
    page.close()


def test_order_and_kind(browser: Any, report: str) -> None:
    page = opened(browser, report)
    sizes = [abs(gap) for gap in gaps(page)]
    assert sizes == sorted(sizes, reverse=True)
    page.get_by_label("Order").select_option("loss")
    assert gaps(page) == sorted(gaps(page))
    page.get_by_label("Which examples").select_option("win")
    assert min(gaps(page)) > 0
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_never_scrolls_sideways(browser: Any, report: str, width: int, scheme: str) -> None:
    page = opened(browser, report, width, scheme)
    for summary in page.query_selector_all("details > summary"):
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    channels = [int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    assert (sum(channels) > 3 * 128) == (scheme == "light")
    folder = os.environ.get("BROWSER_PICTURES")
    if folder:
        page.screenshot(path=Path(folder) / f"comparison-{scheme}-{width}.png", full_page=True)
    page.close()


def test_the_picture_of_the_readme(browser: Any, report: str, tmp_path: Path) -> None:
    path = Path(os.environ.get("COMPARE_PICTURE", tmp_path / "compare.png"))
    page = opened(browser, report, 1100)
    page.set_viewport_size({"width": 1100, "height": 1180})
    page.screenshot(path=path)
    assert 20_000 < path.stat().st_size < 300_000
    page.close()
