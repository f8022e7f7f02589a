"""The audit against figures counted one by one; merging, thresholds, and what people see."""

from __future__ import annotations

import itertools
import json
import random
from collections import defaultdict
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from sra_core.alignment import (
    AlignedExample,
    AlignmentAudit,
    AlignmentReport,
    PairEncoder,
    SharedVocabulary,
    SpanMap,
    audit,
    render_figures,
    render_html,
    render_markdown,
    render_terminal,
    shared_vocabulary,
)
from sra_core.alignment.scripts import SCRIPTS, code_points, script_numbers
from sra_core.config import AuditThresholds
from sra_core.corpus import Example, Rejected
from sra_core.errors import AlignmentError

from .texts import SHORT, fuzzed
from .tokenizers import load

TEACHER, STUDENT = "word-piece", "byte-level"  # word pieces leave white space at the end uncovered


@pytest.fixture(scope="module")
def shared() -> SharedVocabulary:
    return shared_vocabulary(load(TEACHER), load(STUDENT))


@pytest.fixture(scope="module")
def items() -> list[AlignedExample | Rejected]:
    make = PairEncoder(
        load(TEACHER),
        load(STUDENT),
        teacher_template="plain",
        student_template="plain",
        prompt="{instruction}\n",
        max_length=120,
        max_prompt=20,
    )
    texts = [*SHORT.items(), *((f"fuzz-{seed}", fuzzed(seed, 120)) for seed in range(40))]
    examples = [
        Example(name, "say it " * (k % 4 + 1), text, source=f"source-{k % 3}") for k, (name, text) in enumerate(texts)
    ]
    return [*make(examples), Rejected("d1", "duplicate", ""), Rejected("d2", "duplicate", "")]


@pytest.fixture(scope="module")
def report(items, shared) -> AlignmentReport:
    return audit(items, shared, load(TEACHER), load(STUDENT))


def script_of(text: str) -> str:
    return SCRIPTS[max(script_numbers(code_points(text)).tolist())]


def counted(items, shared) -> dict[tuple[str, str], dict[str, list]]:
    """Every figure the slow way: lists of what each group holds."""
    inside = set(shared.teacher_ids.tolist()), set(shared.student_ids.tolist())
    groups: dict[tuple[str, str], dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        if isinstance(item, Rejected):
            continue
        first, last, places = item.spans.chars[0, 0], item.spans.chars[-1, 1], []
        for character in item.response:
            for _ in character.encode():
                for group in (("script", script_of(character)), ("source", item.source)):
                    groups[group]["ids"].append(item.id)
                    groups[group]["covered"].append(first <= len(places) < last)
                places.append(character)
        for (a, b), (c, d), (p, q) in zip(item.spans.teacher, item.spans.student, item.spans.chars, strict=True):
            for group in (("script", script_of("".join(places[p:q]))), ("source", item.source)):
                groups[group]["spans"].append((int(b - a), int(d - c)))
                groups[group]["teacher"] += [token in inside[0] for token in item.teacher_ids[a:b].tolist()]
                groups[group]["student"] += [token in inside[1] for token in item.student_ids[c:d].tolist()]
    return groups


def test_figures_by_script_and_source_equal_a_count_one_by_one(items, shared, report):
    expected = counted(items, shared)
    found = {("script", name): each for name, each in report.by_script.items()}
    found |= {("source", name): each for name, each in report.by_source.items()}
    assert set(found) == set(expected)
    assert len(report.by_script) > 10
    assert list(report.by_source) == sorted(report.by_source, key=lambda name: -report.by_source[name].bytes)
    for group, figures in found.items():
        slow = expected[group]
        assert figures.examples == len(set(slow["ids"]))
        assert figures.bytes == len(slow["ids"])
        assert figures.coverage == pytest.approx(np.mean(slow["covered"]))
        assert figures.spans == len(slow["spans"])
        if not figures.spans:
            continue
        assert figures.one_to_one == pytest.approx(slow["spans"].count((1, 1)) / len(slow["spans"]))
        for k, (name, side) in enumerate((("teacher", figures.teacher), ("student", figures.student))):
            lengths = [pair[k] for pair in slow["spans"]]
            assert side.tokens == sum(lengths)
            assert side.mean == pytest.approx(np.mean(lengths))
            assert side.longest == max(lengths)
            percentiles = [int(np.percentile(lengths, p, method="inverted_cdf")) for p in (50, 90, 99)]
            assert [side.p50, side.p90, side.p99] == percentiles
            assert side.shared == pytest.approx(np.mean(slow[name]))


def test_totals(items, report):
    aligned = [item for item in items if isinstance(item, AlignedExample)]
    assert report.examples == len(aligned)
    assert report.dropped["duplicate"] == 2
    assert sum(report.dropped.values()) == len(items) - len(aligned)
    assert report.dropped_share == pytest.approx(1 - len(aligned) / len(items))
    assert report.truncated == sum(item.truncated for item in aligned) > 0
    assert report.prompts_cut == sum(item.prompt_cut > 0 for item in aligned) > 0
    assert report.prompt_tokens_cut == sum(item.prompt_cut for item in aligned)
    assert report.overall.spans == sum(len(item.spans) for item in aligned)
    assert report.overall.bytes == sum(len(item.response.encode()) for item in aligned)
    assert sum(report.teacher_lengths.values()) == sum(report.student_lengths.values()) == report.overall.spans
    longest = max((b - a, item.id) for item in aligned for a, b in item.spans.teacher.tolist())[0]
    assert report.longest["teacher"].tokens == longest == report.overall.teacher.longest


def test_longest_span_shows_its_text(items, report):
    by_id = {item.id: item for item in items}
    for side, found in report.longest.items():
        example = by_id[found.id]
        ranges = getattr(example.spans, side)
        row = int(np.argmax(ranges[:, 1] - ranges[:, 0]))
        begin, end = example.spans.chars[row]
        assert found.text == example.response.encode()[begin:end].decode()


def test_worst_examples_are_those_with_the_lowest_score(items, report):
    aligned = [item for item in items if isinstance(item, AlignedExample)]

    def score(item: AlignedExample) -> float:
        chars, end = item.spans.chars, 0 if item.truncated else 1
        tokens = max(len(item.teacher_ids) - item.teacher_response, len(item.student_ids) - item.student_response) - end
        return (chars[-1, 1] - chars[0, 0]) / len(item.response.encode()) * (len(item.spans) + 2) / (tokens + 2)

    assert [worst.id for worst in report.worst] == [
        item.id for item in sorted(aligned, key=lambda i: (score(i), i.id))[:10]
    ]
    for worst in report.worst:
        item = next(item for item in aligned if item.id == worst.id)
        assert worst.before + "".join(span.text for span in worst.spans) + worst.after == item.response
        assert all(span.teacher and span.student for span in worst.spans)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_merged_audits_of_parts_in_any_order_give_the_same_report(items, shared, report, parts):
    shuffled = random.Random(parts).sample(items, len(items))
    audits = []
    for k in range(parts):
        each = AlignmentAudit(shared)
        for item in shuffled[k::parts]:
            each.add(item)
        audits.append(json.loads(json.dumps(each.plain())))
    merged = AlignmentAudit(shared)
    for each in audits:
        merged.add_plain(each)
    assert merged.report(load(TEACHER), load(STUDENT)) == report


def test_what_is_kept_does_not_grow_with_the_examples(shared):
    gathered = AlignmentAudit(shared)
    spans = SpanMap(*(np.array([[0, 1]], np.int32) for _ in range(3)))
    ids = np.array([5, 0], np.int32)
    for k in range(5000):
        gathered.add(AlignedExample(str(k), ids, ids, spans, 0, 0, "", "a", "s", False, 0))
    assert len(json.dumps(gathered.plain())) < 20_000
    assert gathered.report(load(TEACHER), load(STUDENT)).overall.spans == 5000


def test_nothing_at_all(shared):
    empty = audit([], shared, load(TEACHER), load(STUDENT))
    assert empty.examples == 0
    assert empty.overall.coverage == 0
    assert empty.failures(AuditThresholds()) == ["no example was aligned"]
    for rendered in (render_html(empty), render_markdown(empty)):
        assert "Examples aligned" in rendered


def test_the_gate_names_every_bound_that_failed(report):
    assert not report.failures(AuditThresholds(min_coverage=0.1, max_tokens_per_span=50, max_dropped=0.9))
    strict = AuditThresholds(min_coverage=1.0, max_tokens_per_span=1.0, max_dropped=0.0)
    assert report.failures(strict)
    with pytest.raises(AlignmentError) as caught:
        report.require(strict)
    message = str(caught.value)
    for part in ("min_coverage", "teacher tokens", "student tokens", "max_dropped", "2 duplicate", "alignment.gate"):
        assert part in message


@pytest.mark.parametrize(
    ("bound", "edge"),
    [
        ("min_coverage", lambda report: report.overall.coverage),
        ("max_tokens_per_span", lambda report: max(report.overall.teacher.mean, report.overall.student.mean)),
        ("max_dropped", lambda report: report.dropped_share),
    ],
)
def test_each_bound_fails_on_its_own_just_beyond_its_edge(report, bound, edge):
    loose = {"min_coverage": 0.0, "max_tokens_per_span": 1e9, "max_dropped": 1.0}
    value, step = edge(report), 1e-6 if bound == "min_coverage" else -1e-6
    assert not report.failures(AuditThresholds(**(loose | {bound: value})))
    (failure,) = report.failures(AuditThresholds(**(loose | {bound: value + step})))
    assert bound in failure


def test_figures_tables_and_json_are_plain_data(report):
    metrics = report.metrics()
    assert metrics["alignment/coverage"] == report.overall.coverage
    assert all(type(value) is float for value in metrics.values())
    tables = report.tables()
    for rows in tables.values():
        assert all(list(row) == list(rows[0]) for row in rows)
    assert [row["script"] for row in tables["by_script"]] == list(report.by_script)
    assert sum(row["teacher_spans"] for row in tables["tokens_per_span"]) == report.overall.spans
    assert json.loads(json.dumps(report.to_dict()))["overall"]["spans"] == report.overall.spans


class Tags(HTMLParser):
    """Checks that tags are balanced and collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_one_balanced_page_that_loads_nothing(report):
    parser = Tags()
    page = render_html(report)
    parser.feed(page)
    assert parser.open == []
    assert not [name for name, _ in parser.attributes if name in ("src", "href")]
    text = "".join(parser.text)
    for name in (*report.by_script, *report.by_source, *(worst.id for worst in report.worst)):
        assert name in text
    assert page.count('class="span"') == sum(len(worst.spans) for worst in report.worst)


def test_spans_of_many_tokens_are_counted_without_a_table_of_all_lengths(shared):
    tokens = 200_000  # a table of all pairs of lengths would take 320 GB
    spans = SpanMap(*(np.array([[0, n]], np.int32) for n in (tokens, tokens, 9)))
    ids = np.zeros(tokens + 1, np.int32)
    example = AlignedExample("long", ids, ids, spans, 0, 0, "", "long text", "s", False, 0)
    found = audit([example], shared, load(TEACHER), load(STUDENT))
    assert (found.teacher_lengths, found.student_lengths) == ({tokens: 1}, {tokens: 1})


def test_html_escapes_what_the_corpus_holds(shared):
    evil = "<script>alert(1)</script>&"
    spans = SpanMap(*(np.array([[0, n]], np.int32) for n in (1, 1, len(evil))))
    ids = np.array([5, 0], np.int32)
    example = AlignedExample(evil, ids, ids, spans, 0, 0, "", evil, evil, False, 0)
    page = render_html(audit([example], shared, load(TEACHER), load(STUDENT)))
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in page


def test_terminal_and_markdown_show_figures_and_spans(report):
    console = Console(width=200, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115, PTH123
    console.print(render_terminal(report))
    shown = console.export_text()
    assert f"{report.overall.coverage:.2%}" in shown
    assert report.worst[0].id in shown
    assert "teacher " in shown
    markdown = render_markdown(report)
    assert f"| Spans | {report.overall.spans:,}" in markdown
    assert "| Latin |" in markdown


def test_figures_draw_the_histogram_and_the_coverage(report):
    figures = render_figures(report)
    (axes,) = figures["tokens_per_span"]().axes
    assert sum(bar.get_height() for bar in axes.patches) == 2 * report.overall.spans
    (axes,) = figures["coverage_by_script"]().axes
    assert [bar.get_width() for bar in axes.patches] == [each.coverage for each in report.by_script.values()]


@pytest.mark.parametrize(
    ("text", "script"),
    [
        *(
            ("a", "Latin"),
            ("ệ", "Latin"),
            ("я", "Cyrillic"),
            ("ω", "Greek"),
            ("東", "Han"),
            ("𠮷", "Han"),
            ("の", "Hiragana"),
        ),
        *(
            ("カ", "Katakana"),
            ("ｶ", "Katakana"),
            ("한", "Hangul"),
            ("\u1112", "Hangul"),
            ("ا", "Arabic"),
            ("न", "Devanagari"),
        ),
        *(("ि", "Devanagari"), ("ไ", "Thai"), ("\u0301", "Mark"), ("7", "Digit"), ("½", "Digit"), (".", "Punctuation")),
        *(("+", "Symbol"), ("👍", "Emoji"), ("❤", "Emoji"), (" ", "Space"), ("\n", "Space"), ("\u00a0", "Space")),
        *(("\x00", "Other"), ("\u200d", "Other"), ("𐍈", "Other")),
    ],
)
def test_scripts_of_characters(text, script):
    assert [SCRIPTS[k] for k in script_numbers(code_points(text)).tolist()] == [script]


def test_script_numbers_do_not_depend_on_what_was_seen_before():
    text = "".join(map(chr, itertools.chain(range(0x20, 0x3000, 7), range(0x4E00, 0x4F00), range(0x1F600, 0x1F640))))
    forward = script_numbers(code_points(text))
    backward = script_numbers(code_points(text[::-1]))[::-1]
    assert np.array_equal(forward, backward)
