from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from sra_core.compare import compare_runs, figures, html_report, read_run, report_tables, terminal_report, write_report
from sra_core.compare.charts import curve_names, line_chart
from sra_core.compare.comparison import MetricResult
from sra_core.compare.intervals import Comparison, Interval, compare_all
from sra_core.compare.page import _verdict
from sra_core.compare.results import METRICS
from tests.compare.store import write_run

EVIL = "<script>alert(1)</script>"


class Checker(HTMLParser):
    """Nesting, ids, links and what a page would load."""

    VOID = ("meta", "input")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.loads, self.text = [], set(), [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids.add(attributes.get("id"))
        self.links += [attributes["href"]] if "href" in attributes else []
        self.loads += [attributes["src"]] if "src" in attributes else []

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    runs = [
        read_run(write_run(store, {"teacher": 0.1, "initial": 0.9, "student": wrong}, learning_rate=wrong), name)
        for name, wrong in ((f"good {EVIL}", 0.3), ("bad & slow", 0.6))
    ]
    return compare_runs(runs, resamples=200, all_pairs=True)


@pytest.fixture(scope="module")
def page(comparison):
    comparison.cases[0].answers["bad & slow"] = f"first {EVIL} </article>"
    comparison.cases[1].answers["bad & slow"] = ""
    return html_report(comparison)


def test_the_page_is_well_formed_and_loads_nothing(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.loads == []
    assert "http" not in page.replace("http-equiv", "")
    assert {link.removeprefix("#") for link in checker.links} <= checker.ids


def test_texts_cannot_become_markup(page):
    assert page.count("<script>") == 1
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_page_shows_what_the_comparison_holds(page, comparison):
    checker = Checker()
    checker.feed(page)
    text = " ".join(" ".join(checker.text).split())
    score = comparison.metrics["bits_per_byte"].scores["bad & slow"]
    assert f"{score.estimate:.3f} {score.low:.3f} to {score.high:.3f}" in text
    assert "bits per byte by source" in text
    assert "ROUGE-L (Unicode words) by prompt length" in text
    assert "distill.learning_rate" in text
    assert text.count("reference ") >= len(comparison.cases)
    assert "empty answer" in text
    assert page.count("<svg") == 2
    assert "prefers-color-scheme: dark" in page


def test_verdicts_follow_the_better_direction(page):
    rows = re.findall(r'<td class="wrap">(.*?)</td><td class="verdict">(.*?)</td>', page)
    first = f"good {EVIL}".replace("<", "&lt;").replace(">", "&gt;")
    verdicts = {pair: verdict for pair, verdict in rows if pair == f"{first} − bad &amp; slow"}
    assert verdicts == {f"{first} − bad &amp; slow": f"{first} is better"}
    assert [verdict for pair, verdict in rows if pair.startswith("bad")].count("teacher is better") == 5


def test_no_difference_is_said_to_be_none(tmp_path):
    runs = [
        read_run(write_run(tmp_path, {"student": 0.5}, learning_rate=rate, examples=12), f"run {rate}")
        for rate in (1.0, 2.0)
    ]
    assert "no difference shown" in html_report(compare_runs(runs, resamples=100))


@pytest.mark.parametrize(
    ("low", "high", "p", "record", "said"),
    [
        (0.1, 0.3, 0.01, (2, 0, 38), "second is better"),  # bits: the first takes more
        (-0.3, -0.1, 0.01, (38, 0, 2), "first is better"),
        (-0.1, 0.2, 0.5, (20, 0, 20), "no difference shown"),
        (0.1, 0.3, 0.2, (12, 0, 28), "not shown: the interval leaves out 0, but p is 0.200"),
        (-0.1, 0.3, 0.04, (12, 0, 28), "not shown: p is 0.040, but the interval holds 0"),
        (0.1, 0.3, 0.094, (0, 0, 6), "not shown: 6 examples are too few for p below 0.05 in 2 comparisons"),
        (0.1, 0.3, 0.07, (0, 2, 5), "not shown: 7 examples are too few for p below 0.05 in 2 comparisons"),
    ],
)
def test_a_verdict_says_why_where_interval_and_p_disagree(low, high, p, record, said):
    gap = Interval((low + high) / 2, low, high, sum(record), 1)
    found = Comparison(gap, p, p, *record, detectable=0.1)
    other = Comparison(gap, p, p, 0, sum(record), 0, detectable=0.1)
    metric = next(metric for metric in METRICS if metric.name == "bits_per_byte")
    result = MetricResult(metric, {}, {("first", "second"): found, ("first", "third"): other}, sum(record), 0)
    assert _verdict(result, "first", "second") == said


@pytest.mark.parametrize("examples", [5, 6, 7])
def test_too_few_examples_are_told_from_the_test_itself(examples):
    """Whatever is measured on so few examples, the swaps cannot give a smaller p than the one that is told."""
    values = {"first": np.arange(1.0, examples + 1), "second": np.zeros(examples), "third": np.zeros(examples)}
    pairs = compare_all(values, None, [("first", "second"), ("first", "third")], resamples=20000)
    metric = next(metric for metric in METRICS if metric.name == "bits_per_byte")
    result = MetricResult(metric, {}, pairs, examples, 0)
    least = 2 * 2.0 ** (1 - examples)
    assert min(found.adjusted for found in pairs.values()) == pytest.approx(least, rel=0.25)
    said = "too few" in _verdict(result, "first", "second")
    assert said == (least >= 0.05)


def test_a_single_run_without_answers_has_a_page(tmp_path):
    folder = write_run(tmp_path, {"student": 0.5}, seeds=())
    page = html_report(compare_runs([read_run(folder, "only")], resamples=50))
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert "Answers side by side" not in page


def test_the_terminal_shows_scores_differences_and_settings(comparison):
    out = io.StringIO()
    console = Console(file=out, width=200)
    for part in terminal_report(comparison):
        console.print(part)
    text = out.getvalue()
    score = comparison.metrics["rougeL"].scores["teacher"]
    assert re.search(rf"{score.estimate:.1f} +{score.low:.1f} to {score.high:.1f}", text)
    assert "distill.learning_rate" in text
    assert f"good {EVIL} - bad & slow" in text
    assert "at token limit" in text


def test_tables_for_tracking_have_equal_columns(comparison):
    tables = report_tables(comparison)
    assert set(tables) == {"scores", "differences", "answers"}
    for rows in tables.values():
        assert all(list(row) == list(rows[0]) for row in rows)
    assert len(tables["answers"]) == 40
    assert len(tables["scores"]) == 4 * len(comparison.metrics)


def test_figures_for_tracking(comparison):
    found = figures(comparison)
    bands = {"bits_per_byte_by_prompt_length", "rougeL_by_prompt_length"}
    assert set(found) == {"learning_curves", "scores", *bands}
    for name in bands:
        (axes,) = found[name]().axes
        assert len(axes.containers) == 4
        assert len(axes.get_xticks()) == 4
    lines = found["learning_curves"]().axes[0].get_lines()
    assert [len(line.get_xdata()) for line in lines] == [5, 5]
    assert len(found["scores"]().axes) == len(comparison.metrics)
    assert curve_names(comparison)[0] == "validation/bits_per_byte"


def test_writing_is_atomic_and_whole(comparison, tmp_path):
    path = tmp_path / "deep" / "report.html"
    write_report(comparison, path)
    assert path.read_text() == html_report(comparison)
    assert [found.name for found in path.parent.iterdir()] == ["report.html"]


def test_lines_have_the_colours_of_the_page_and_nothing_else_of_its_own():
    svg = line_chart({"a": [(0, 0), (50, 2), (100, 4)], "b": [(0, 1)]}, {"a": 0, "b": 9}, "x <y>")
    assert svg.startswith('<svg role="img" aria-label="x &lt;y&gt;"')
    assert {"var(--c0)", "var(--c1)", "var(--rule)", "var(--soft)"} <= set(re.findall(r"var\(--\w+\)", svg))
    assert "c0ffe" not in svg
    assert "<text" in svg, "numbers stay text, in the page's font"
    assert svg == line_chart({"a": [(0, 0), (50, 2), (100, 4)], "b": [(0, 1)]}, {"a": 0, "b": 9}, "x <y>")
