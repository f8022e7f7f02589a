"""A person in front of the Prefect and MLflow UIs: fill the form, run it, see it complete, look at the result."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sra_core.config import DistillConfig, ObjectiveConfig
from tests import chromium
from tests.integration.servers import Stack, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

PATIENT = 240_000  # milliseconds: pages load many scripts, and machines that run tests are busy


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from chromium.started()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """A fresh page; a picture of its last state lies in BROWSER_PICTURES or the test's folder."""
    opened = browser.new_page(viewport={"width": 1500, "height": 1200})
    opened.set_default_timeout(PATIENT)
    yield opened
    folder = Path(os.environ.get("BROWSER_PICTURES", tmp_path))
    opened.screenshot(path=folder / f"{os.environ['PYTEST_CURRENT_TEST'].split('::')[-1].split(' ')[0]}.png")
    opened.close()


def _open_form(page: Any, stack: Stack, deployment: str) -> None:
    page.goto(f"{stack.settings.prefect_url}/deployments/deployment/{stack.deployment(deployment)['id']}/run")
    page.get_by_text("Run config to start from").wait_for()


def _choose_recipe(page: Any, name: str) -> None:
    select = page.locator(".p-select button").first
    select.click()
    select.press("ArrowDown")
    page.locator(".p-select-option").filter(has_text=re.compile(f"^{name}$")).click()
    assert select.inner_text() == name


def test_the_form_is_filled_and_the_run_completes(page: Any, stack: Stack) -> None:
    _open_form(page, stack, "prepare")
    _choose_recipe(page, "smoke")
    page.locator("input").first.fill("from the form")
    page.locator("input[type=number]").first.fill("3")
    flow_run = until(lambda: _submitted(page, stack, "from the form"), 240, "a flow run with the name of the form")
    stack.wait(flow_run, "COMPLETED", seconds=300)
    page.goto(f"{stack.settings.prefect_url}/runs/flow-run/{flow_run}")
    page.get_by_text("Completed").first.wait_for()
    page.get_by_text("Artifacts", exact=True).first.click()
    page.get_by_text("prepare-result").first.wait_for()
    page.get_by_text("summary", exact=True).first.wait_for()
    sent = stack.flow_run(flow_run)
    assert sent["parameters"] == {"recipe": "smoke", "seed": 3, "overrides": {}, "config": {}}, "no default is sent"
    assert sent["name"] == "smoke · sra · seed 3 · from the form"
    (run,) = stack.runs(flow_run)
    assert run["name"] == "smoke · sra · seed 3 · from the form · prepare"
    assert run["params"]["seed"] == "3"


def test_the_form_is_short_and_shows_descriptions_and_no_default_but_the_recipe(page: Any, stack: Stack) -> None:
    _open_form(page, stack, "pipeline")
    text = page.inner_text("body")
    for field in (DistillConfig.model_fields["learning_rate"], ObjectiveConfig.model_fields["name"]):
        assert field.description is not None
        assert field.description.replace("`", "") in text
    assert len(page.query_selector_all("label")) < 25
    assert "ZeRO stage" not in text
    assert {box.input_value() for box in page.locator("textarea, input[type=number]").all()} <= {"", "{}"}


def test_what_a_corpus_brings_is_not_fetched_by_the_readers_browser(page: Any, stack: Stack, tmp_path: Path) -> None:
    evil = '![x](http://127.0.0.1:1/evil.png) <img src="http://127.0.0.1:1/evil.png">'
    rows = [{"instruction": f"{evil} {number}", "response": f"{evil} {'word ' * 9}{number}"} for number in range(60)]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = {"store": str(tmp_path / "store"), "corpus.source": str(corpus), "corpus.layout": "instruction"}
    overrides["evaluate.leaks"] = "report"  # the texts are much alike
    flow_run = stack.trigger("pipeline", recipe="smoke", overrides=overrides)
    stack.wait(flow_run, "COMPLETED", seconds=400)
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    shown = stack.artifacts(flow_run)
    assert "evil" in str(shown["evaluate-summary"]["data"]) + str(shown["evaluate-evaluate-answers"]["data"])
    for artifact in shown.values():
        if artifact["type"] in ("markdown", "table"):
            page.goto(f"{stack.settings.prefect_url}/artifacts/artifact/{artifact['id']}")
            page.get_by_text("Show raw data").first.wait_for()
    assert [url for url in fetched if "evil" in url] == []


def test_mlflow_shows_the_pipeline_with_its_stages(page: Any, stack: Stack) -> None:
    runs = [run for run in stack.runs() if run["tags"].get("stage") == "prepare"]
    if not runs:
        pytest.skip("no run was made yet")
    page.goto(f"{stack.settings.mlflow_url}/#/experiments/1/runs/{runs[-1]['id']}")
    page.get_by_text("alignment/coverage").first.wait_for()
    text = page.inner_text("body")
    assert runs[-1]["name"] in text


def _submitted(page: Any, stack: Stack, name: str) -> str | None:
    """Press the button; once more where SQLite was busy and the page says that something went wrong."""
    button = page.get_by_role("button", name="Submit")
    if button.is_visible():
        button.click()
        page.wait_for_timeout(30_000)
    return _named(stack, name)


def _named(stack: Stack, name: str) -> str | None:
    found = stack.post("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 20})
    for run in found:
        if str(run["name"]).endswith(name):
            return str(run["id"])
    return None
