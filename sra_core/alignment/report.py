"""What an audit found: figures as plain data, and the thresholds that they must meet before the teacher runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sra_core.config import AuditThresholds
from sra_core.errors import AlignmentError

__all__ = [
    "AlignmentReport",
    "GroupFigures",
    "LongestSpan",
    "SideFigures",
    "SpanView",
    "WorstExample",
]


@dataclass(frozen=True, slots=True)
class SideFigures:
    """Tokens a span on one side."""

    tokens: int
    """Tokens inside spans."""
    mean: float
    p50: int
    p90: int
    p99: int
    longest: int
    shared: float
    """Share of the tokens inside spans that are in the shared vocabulary."""


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """Figures of all examples, of one source, or of the text in one script (a span counts for the script it holds)."""

    examples: int
    bytes: int
    """UTF-8 bytes of the responses."""
    spans: int
    coverage: float
    """Share of the bytes that lie in spans."""
    one_to_one: float
    """Share of the spans with one token on either side."""
    teacher: SideFigures
    student: SideFigures


@dataclass(frozen=True, slots=True)
class LongestSpan:
    """The span with the most tokens on one side."""

    tokens: int
    text: str
    id: str


@dataclass(frozen=True, slots=True)
class SpanView:
    """One span for people: its text and the tokens of both sides."""

    text: str
    teacher: list[str]
    student: list[str]


@dataclass(frozen=True, slots=True)
class WorstExample:
    """One of the worst aligned examples; ``before`` and ``after`` are response text outside the spans shown."""

    id: str
    source: str
    score: float
    """Coverage times spans a token; small is bad."""
    coverage: float
    teacher_tokens: int
    student_tokens: int
    before: str
    spans: list[SpanView]
    after: str
    all_spans: int


@dataclass(frozen=True, slots=True)
class AlignmentReport:
    """Figures of an audit."""

    examples: int
    """Aligned examples."""
    dropped: dict[str, int]
    """Rejected examples by reason."""
    truncated: int
    prompts_cut: int
    prompt_tokens_cut: int
    overall: GroupFigures
    by_script: dict[str, GroupFigures]
    by_source: dict[str, GroupFigures]
    shared_vocabulary: int
    teacher_vocabulary: int
    student_vocabulary: int
    teacher_lengths: dict[int, int]
    """Spans by their number of teacher tokens."""
    student_lengths: dict[int, int]
    longest: dict[str, LongestSpan]
    """By side, ``teacher`` and ``student``."""
    worst: list[WorstExample]
    teacher_outside: int = 0
    """Response tokens in no span: those without text of their own, and those beyond the first and the last cut."""
    student_outside: int = 0
    special_as_text: int = 0
    """Examples with text that looks like a special token; it was tokenized as text."""
    end_stripped: int = 0
    """Examples whose response ended with a typed end token, which is left out."""
    reasoning_left_out: int = 0
    """Examples whose reasoning a template has no place for."""

    @property
    def dropped_share(self) -> float:
        """Share of all examples that were rejected."""
        dropped = sum(self.dropped.values())
        return dropped / max(self.examples + dropped, 1)

    def failures(self, thresholds: AuditThresholds) -> list[str]:
        """What keeps the alignment from passing, one sentence each; empty when it passes."""
        found = []
        if not self.examples:
            found.append("no example was aligned")
        elif self.overall.coverage < thresholds.min_coverage:
            found.append(
                f"spans cover {self.overall.coverage:.1%} of the response bytes, less than min_coverage "
                f"{thresholds.min_coverage:.1%}{self._blame()}"
            )
        for side, figures in (("teacher", self.overall.teacher), ("student", self.overall.student)):
            if figures.mean > thresholds.max_tokens_per_span:
                found.append(
                    f"a span holds {figures.mean:.2f} {side} tokens on average, more than max_tokens_per_span "
                    f"{thresholds.max_tokens_per_span:g}"
                )
        if self.dropped_share > thresholds.max_dropped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            found.append(
                f"{self.dropped_share:.1%} of the examples were dropped, more than max_dropped "
                f"{thresholds.max_dropped:.1%} ({reasons})"
            )
        return found

    def require(self, thresholds: AuditThresholds) -> None:
        """Let nothing expensive start on an alignment that does not meet the thresholds.

        Raises:
            AlignmentError: naming every bound that failed.
        """
        failures = self.failures(thresholds)
        if failures:
            raise AlignmentError(
                f"The alignment does not pass the audit: {'; '.join(failures)}.",
                "Look at the worst examples in the audit's report; choose other tokenizers, templates or data, or "
                "change the thresholds in alignment.gate.",
            )

    def _blame(self) -> str:
        worst = min(self.by_script.items(), key=lambda item: (item[1].coverage, item[0]), default=None)
        return f" (worst script: {worst[0]}, {worst[1].coverage:.1%})" if worst else ""

    def metrics(self) -> dict[str, float]:
        """The headline figures by name, for a tracker."""
        overall = self.overall
        values: dict[str, float] = {
            "examples": self.examples,
            "dropped_share": self.dropped_share,
            "truncated": self.truncated,
            "prompts_cut": self.prompts_cut,
            "spans": overall.spans,
            "coverage": overall.coverage,
            "one_to_one": overall.one_to_one,
            "shared_vocabulary": self.shared_vocabulary,
        }
        for side, figures in (("teacher", overall.teacher), ("student", overall.student)):
            values[f"{side}_tokens_per_span"] = figures.mean
            values[f"{side}_tokens_per_span_p99"] = figures.p99
            values[f"{side}_shared_tokens"] = figures.shared
            values[f"{side}_tokens_outside"] = getattr(self, f"{side}_outside")
        for name in ("special_as_text", "end_stripped", "reasoning_left_out"):
            if getattr(self, name):
                values[name] = getattr(self, name)
        return {f"alignment/{name}": float(value) for name, value in values.items()}

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of the tables ``by_script``, ``by_source``, ``tokens_per_span`` and ``dropped``."""
        lengths = []
        for length in sorted({*self.teacher_lengths, *self.student_lengths}):
            spans = (self.teacher_lengths.get(length, 0), self.student_lengths.get(length, 0))
            lengths.append({"tokens": length, "teacher_spans": spans[0], "student_spans": spans[1]})
        return {
            "by_script": [_row("script", *each) for each in self.by_script.items()],
            "by_source": [_row("source", *each) for each in self.by_source.items()],
            "tokens_per_span": lengths,
            "dropped": [{"reason": reason, "examples": count} for reason, count in self.dropped.items()],
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)


def _row(title: str, name: str, figures: GroupFigures) -> dict[str, Any]:
    row: dict[str, Any] = {title: name}
    for column in ("examples", "bytes", "coverage", "spans", "one_to_one"):
        row[column] = getattr(figures, column)
    for side in ("teacher", "student"):
        for column in ("mean", "p50", "p90", "p99", "longest", "shared"):
            row[f"{side}_{column}"] = getattr(getattr(figures, side), column)
    return row
