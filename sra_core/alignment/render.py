"""An audit's report for people: on a terminal, as Markdown, and as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

from sra_core.alignment.report import AlignmentReport, GroupFigures, WorstExample
from sra_core.watch import escape_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

__all__ = ["render_figures", "render_html", "render_markdown", "render_terminal"]

_ROWS = 40  # groups shown in a table
_COLORS = ("#0b6bcb", "#b3470b", "#1f7a3d", "#8f3fb5", "#a8730a", "#c2255c")
_TERMINAL_SPANS = 60
_VISIBLE = {" ": "·", "\n": "⏎", "\r": "␍", "\t": "→", "\u00a0": "⍽", "\u200b": "␣", "\u2028": "↵", "\x00": "␀"}
_JOINERS = "\u200d\ufe0f"  # between characters they make one emoji of several; as a token of their own they'd be unseen
_HEADINGS = (
    "examples",
    "bytes",
    "covered",
    "spans",
    "1:1",
    "teacher tokens per span",
    "student tokens per span",
    "teacher shared",
    "student shared",
)
_WORST = "Worst aligned examples"
_NAMED = "An example is named by the id that the data gives it, or by the file (or split) and line it comes from."
_READ = "A | stands between tokens of one span, a space between spans."
_TERMINAL_HEADINGS = ("examples", "bytes", "covered", "spans", "1:1", "tokens\nper span", "shared %")


def visible(text: str) -> str:
    """A text with its white space, control characters and lone joiners made visible."""
    kept = "" if text in _JOINERS else _JOINERS
    return "".join(_VISIBLE.get(c, c if c.isprintable() or c in kept else f"\\u{ord(c):04x}") for c in text)


def headline(report: AlignmentReport) -> list[tuple[str, str]]:
    """The figures of the whole, as label and value."""
    overall = report.overall
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items()) or "none"
    rows = [
        ("Examples aligned", f"{report.examples:,}"),
        ("Examples dropped", f"{dropped} ({report.dropped_share:.1%})"),
        ("Responses truncated", f"{report.truncated:,}"),
        ("Prompts cut", f"{report.prompts_cut:,} (by {report.prompt_tokens_cut:,} tokens)"),
        ("Response bytes in spans", f"{overall.coverage:.2%} of {overall.bytes:,}"),
        ("Spans", f"{overall.spans:,}, {overall.one_to_one:.1%} of them one token to one token"),
        (
            "Shared vocabulary",
            f"{report.shared_vocabulary:,} of {report.teacher_vocabulary:,} teacher and "
            f"{report.student_vocabulary:,} student entries",
        ),
    ]
    for title, count in (
        ("Special tokens typed in the text, kept as text", report.special_as_text),
        ("End tokens typed after the response, left out", report.end_stripped),
        ("Reasoning that a template has no place for", report.reasoning_left_out),
    ):
        if count:
            rows.append((title, f"in {count:,} examples"))
    for side, figures in (("teacher", overall.teacher), ("student", overall.student)):
        text = f"mean {figures.mean:.2f}, p50 {figures.p50}, p90 {figures.p90}, p99 {figures.p99}"
        rows.append((f"{side.capitalize()} tokens per span", f"{text}, longest {figures.longest}"))
        if side in report.longest:
            longest = report.longest[side]
            rows.append((f"Longest ({side})", f"“{visible(longest.text[:80])}” in {longest.id}"))
        rows.append((f"{side.capitalize()} tokens shared", f"{figures.shared:.1%}"))
        outside = getattr(report, f"{side}_outside")
        share = outside / max(figures.tokens + outside, 1)
        rows.append((f"{side.capitalize()} tokens outside spans", f"{outside:,} ({share:.2%})"))
    return rows


def _group_rows(groups: dict[str, GroupFigures]) -> list[list[str]]:
    rows = []
    for name, each in list(groups.items())[:_ROWS]:
        tokens = [f"{side.mean:.2f} ({side.p50}/{side.p90}/{side.p99})" for side in (each.teacher, each.student)]
        shared = [f"{side.shared:.1%}" for side in (each.teacher, each.student)]
        figures = [f"{each.examples:,}", f"{each.bytes:,}", f"{each.coverage:.2%}", f"{each.spans:,}"]
        rows.append([name or "(none)", *figures, f"{each.one_to_one:.1%}", *tokens, *shared])
    return rows


def _terminal_rows(groups: dict[str, GroupFigures]) -> list[list[str]]:
    """As :func:`_group_rows`, short enough for 80 columns: both sides in one column, no percentiles."""
    rows = []
    for name, each in list(groups.items())[:_ROWS]:
        tokens = f"{each.teacher.mean:.2f} / {each.student.mean:.2f}"
        shared = f"{100 * each.teacher.shared:.0f} / {100 * each.student.shared:.0f}"
        figures = [f"{each.examples:,}", f"{each.bytes:,}", f"{each.coverage:.1%}", f"{each.spans:,}"]
        rows.append([name or "(none)", *figures, f"{each.one_to_one:.1%}", tokens, shared])
    return rows


def _groups(report: AlignmentReport) -> Iterable[tuple[str, dict[str, GroupFigures]]]:
    yield "script", report.by_script
    if len(report.by_source) > 1:
        yield "source", report.by_source


def render_terminal(report: AlignmentReport, worst: int = 3) -> RenderableType:
    """The report for a rich console, with the spans of the ``worst`` examples side by side in colour."""
    from rich.console import Group
    from rich.table import Table

    summary = Table(show_header=False, box=None, title="Alignment audit", title_justify="left")
    for label, value in headline(report):
        summary.add_row(f"[dim]{label}", _plain(value))
    parts: list[RenderableType] = [summary]
    for title, groups in _groups(report):
        caption = "tokens per span and shared: teacher / student"
        table = Table(
            title=f"\nBy {title}",
            title_justify="left",
            caption=caption,
            caption_justify="left",
            box=None,
            padding=(0, 2, 0, 0),
            collapse_padding=True,
        )
        for k, heading in enumerate((title, *_TERMINAL_HEADINGS)):
            table.add_column(heading, justify="right" if k else "left", header_style="bold", vertical="bottom")
        for row in _terminal_rows(groups):
            table.add_row(*map(_plain, row))
        parts.append(table)
    if shown := report.worst[:worst]:
        parts.append(_plain(f"\n{_WORST}", "bold"))
        parts.append(_plain(f"{_NAMED} {_READ}", "dim"))
    parts += [_terminal_example(example) for example in shown]
    return Group(*parts)


def _plain(text: str, style: str = "") -> Any:
    from rich.text import Text

    # A plain string is read as markup: what stands in brackets vanishes.
    return Text(text, style=style)


def _terminal_example(example: WorstExample) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    lines = [Text(f"\n{example.id}", style="bold"), Text(_subtitle(example), style="dim")]
    teacher, student = Text("teacher ", style="dim"), Text("student ", style="dim")
    for k, span in enumerate(example.spans[:_TERMINAL_SPANS]):
        for line, tokens in ((teacher, span.teacher), (student, span.student)):
            line.append("|".join(map(visible, tokens)), style=f"{_COLORS[k % len(_COLORS)]} reverse")
            line.append(" ")
    hidden = example.all_spans - len(example.spans[:_TERMINAL_SPANS])
    if hidden > 0:
        lines[1].append(f"; {hidden:,} more spans not shown")
    return Group(*lines, teacher, student)


def _subtitle(example: WorstExample) -> str:
    tokens = f"{example.teacher_tokens:,} teacher and {example.student_tokens:,} student tokens"
    source = f"{example.source}; " if example.source else ""
    return f"{source}{example.all_spans:,} spans, {tokens}, {example.coverage:.1%} of the response covered"


def render_markdown(report: AlignmentReport) -> str:
    """The report in Markdown: headline, tables by script and source; no texts of the corpus but the longest spans."""
    lines = ["# Alignment audit", "", "| | |", "|---|---|"]
    # Letter by letter: else a browser fetches images that a text of the corpus names.
    lines += [f"| {escape_markdown(label)} | {escape_markdown(value)} |" for label, value in headline(report)]
    for title, groups in _groups(report):
        lines += ["", f"## By {title}", "", f"| {title} | {' | '.join(_HEADINGS)} |"]
        lines += ["|---|" + "---:|" * len(_HEADINGS)]
        lines += [f"| {' | '.join(map(escape_markdown, row))} |" for row in _group_rows(groups)]
    return "\n".join(lines) + "\n"


def render_figures(report: AlignmentReport) -> dict[str, Callable[[], Figure]]:
    """Figures for a tracker, drawn when called: ``tokens_per_span`` (both sides) and ``coverage_by_script``."""
    return {
        "tokens_per_span": partial(_draw_tokens_per_span, report),
        "coverage_by_script": partial(_draw_coverage_by_script, report),
    }


def _draw_tokens_per_span(report: AlignmentReport) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for side, shift, counts in (("teacher", -0.2, report.teacher_lengths), ("student", 0.2, report.student_lengths)):
        axes.bar([length + shift for length in counts], list(counts.values()), 0.4, label=side)
    axes.set(xlabel="tokens per span", ylabel="spans", yscale="log" if report.overall.spans else "linear")
    axes.legend()
    return figure


def _draw_coverage_by_script(report: AlignmentReport) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    groups = dict(list(report.by_script.items())[:_ROWS])
    axes = figure.subplots()
    axes.barh(list(groups), [each.coverage for each in groups.values()])
    axes.invert_yaxis()
    axes.set(xlabel="share of response bytes in spans", xlim=(0, 1))
    return figure


def render_html(report: AlignmentReport) -> str:
    """The whole report as one HTML page: figures, tables, and the worst examples with their spans in colour."""
    parts = [_html_table(["", ""], headline(report), "figures", head=False)]
    for title, groups in _groups(report):
        parts += [f"<h2>By {title}</h2>", _html_table([title, *_HEADINGS], _group_rows(groups), "groups")]
    parts += ["<h2>Tokens per span</h2>", _html_histogram(report)]
    if report.worst:
        parts.append(f"<h2>{_WORST}</h2>")
        parts.append(f"<p>{_NAMED} Each box is a span: its text, the teacher's tokens, the student's tokens.</p>")
        parts += [_html_example(example) for example in report.worst]
    # Not str.format: a style sheet is full of braces.
    return _PAGE.replace("{{body}}", "\n".join(parts))


def _html_table(headings: Sequence[str], rows: Iterable[Sequence[str]], kind: str, head: bool = True) -> str:
    top = "<tr>" + "".join(f"<th>{escape(heading)}</th>" for heading in headings) + "</tr>" if head else ""
    body = []
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body.append(f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table class="{kind}">{top}{"".join(body)}</table></div>'


def _html_histogram(report: AlignmentReport) -> str:
    """Share of the spans by number of tokens, the last row for all longer ones."""
    rows = []
    total = max(report.overall.spans, 1)
    for length in range(1, 9):
        cells = []
        for side, lengths in (("teacher", report.teacher_lengths), ("student", report.student_lengths)):
            count = lengths.get(length, 0) if length < 8 else sum(n for each, n in lengths.items() if each >= 8)
            cells.append(f'<td class="bar"><i class="{side}" style="width:{count / total:.2%}"></i></td>')
            cells.append(f"<td>{count / total:.2%}</td>")
        rows.append(f"<tr><th>{length if length < 8 else '8 or more'}</th>{''.join(cells)}</tr>")
    head = '<tr><th>tokens</th><th colspan="2">teacher</th><th colspan="2">student</th></tr>'
    return f'<table class="histogram">{head}{"".join(rows)}</table>'


def _html_example(example: WorstExample) -> str:
    boxes = []
    if example.before:
        boxes.append(f'<span class="none">{escape(visible(example.before))}</span>')
    for k, span in enumerate(example.spans):
        rows = ""
        for side, tokens in (("t", span.teacher), ("s", span.student)):
            cells = "".join(f"<b>{escape(visible(token))}</b>" for token in tokens)
            rows += f'<div class="{side}">{cells}</div>'
        color = f"--c:{_COLORS[k % len(_COLORS)]}"
        boxes.append(
            f'<span class="span" style="{color}"><div class="x">{escape(visible(span.text))}</div>{rows}</span>'
        )
    if example.after:
        boxes.append(f'<span class="none">{escape(visible(example.after))}</span>')
    if example.all_spans > len(example.spans):
        boxes.append(f'<span class="none">{example.all_spans - len(example.spans):,} more spans</span>')
    return (
        f"<section><h3>{escape(example.id)}</h3><p>{escape(_subtitle(example))}</p>"
        f'<div class="spans">{"".join(boxes)}</div></section>'
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Alignment audit</title>
<style>
:root { color-scheme: light dark; --line: #8884; --dim: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0; overflow-wrap: anywhere; }
p { color: var(--dim); margin: 0 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
td, th { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
.groups td + td, .groups th + th { text-align: right; font-variant-numeric: tabular-nums; }
.figures td:first-child { color: var(--dim); }
.figures td { white-space: normal; overflow-wrap: anywhere; }
.bar { width: 16rem; } .bar i { display: block; height: .8rem; border-radius: 2px; }
i.teacher { background: #0b6bcb; } i.student { background: #b3470b; }
.spans { display: flex; flex-wrap: wrap; gap: 4px; font: 13px/1.4 ui-monospace, monospace; }
.span { border-left: 3px solid var(--c); background: color-mix(in srgb, var(--c) 14%, transparent); border-radius: 3px;
  padding: 1px 4px; max-width: 100%; overflow-wrap: anywhere; }
.x { font-weight: 600; } .t, .s { font-size: 11px; }
b { font-weight: 400; display: inline-block; border: 1px solid color-mix(in srgb, var(--c) 55%, transparent);
  border-radius: 2px; padding: 0 2px; margin: 1px 1px 0 0; max-width: 100%; }
.none { align-self: center; color: #c92a2a; text-decoration: underline wavy; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>Alignment audit</h1>
{{body}}
</body>
</html>
"""
