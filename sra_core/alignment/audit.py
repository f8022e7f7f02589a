"""Audit of the alignment: figures by script and by source, gathered shard by shard in bounded memory.

Every figure is a sum or a count, so audits of parts merge into the audit of the whole, in any order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sra_core.alignment.encode import AlignedExample
from sra_core.alignment.report import AlignmentReport, GroupFigures, LongestSpan, SideFigures, WorstExample
from sra_core.alignment.scripts import SCRIPTS, byte_widths, code_points, script_numbers
from sra_core.alignment.tokens import Spelling, backend_of
from sra_core.alignment.views import shown, span_views
from sra_core.alignment.vocabulary import SharedVocabulary
from sra_core.corpus import Rejected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["AlignmentAudit", "audit"]

_BUFFER = 256  # examples that are counted together
_WORST = 10
_SHOWN = 400  # bytes of a longest span, spans of a worst example

Group = tuple[str, str]  # ("script" or "source", name)
IntVector = npt.NDArray[np.int64]
BoolVector = npt.NDArray[np.bool_]


class AlignmentAudit:
    """Gathers figures about aligned and rejected examples.

    What another process gathered is added in its plain form. Two orders of the same examples give the same report.

    Args:
        shared: The shared vocabulary of the two tokenizers.
    """

    def __init__(self, shared: SharedVocabulary) -> None:
        self._shared = shared
        self._inside = (
            _members(shared.teacher_ids, shared.teacher_size),
            _members(shared.student_ids, shared.student_size),
        )
        self._waiting: list[AlignedExample] = []
        self._spans: Counter[tuple[Group, int, int]] = Counter()  # by teacher tokens and student tokens
        self._sums: dict[Group, npt.NDArray[np.int64]] = {}  # see _add_sums
        self._dropped: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._longest: dict[str, LongestSpan] = {}
        self._worst: list[tuple[float, str, AlignedExample]] = []

    def add(self, example: AlignedExample | Rejected) -> None:
        """Count one example."""
        if isinstance(example, Rejected):
            self._dropped[example.reason] += 1
            return
        self._waiting.append(example)
        if len(self._waiting) >= _BUFFER:
            self._flush()

    def plain(self) -> dict[str, Any]:
        """What was gathered, ready for JSON; small, whatever the number of examples."""
        self._flush()
        return {
            "spans": [[*group, *lengths, count] for (group, *lengths), count in self._spans.items()],
            "sums": [[*group, sums.tolist()] for group, sums in self._sums.items()],
            "dropped": self._dropped,
            "counts": self._counts,
            "longest": {side: asdict(found) for side, found in self._longest.items()},
            "worst": [[score, example.plain()] for score, _, example in self._worst],
        }

    def add_plain(self, values: Mapping[str, Any]) -> None:
        """Add what another audit with the same shared vocabulary has gathered, in its `plain` form."""
        self._flush()
        for kind, name, teacher, student, count in values["spans"]:
            self._spans[(kind, name), teacher, student] += count
        for kind, name, sums in values["sums"]:
            self._add_sums((kind, name), np.array(sums, np.int64))
        self._dropped.update(values["dropped"])
        self._counts.update(values["counts"])
        for side, found in values["longest"].items():
            self._keep_longest(side, LongestSpan(**found))
        examples = [(score, AlignedExample.parse(example)) for score, example in values["worst"]]
        self._keep_worst([(score, example.id, example) for score, example in examples])

    def report(
        self, teacher_tokenizer: PreTrainedTokenizerFast, student_tokenizer: PreTrainedTokenizerFast
    ) -> AlignmentReport:
        """The figures so far; the tokenizers name the tokens of the worst examples."""
        self._flush()
        groups: dict[Group, Counter[tuple[int, int]]] = {group: Counter() for group in self._sums}
        for (group, teacher, student), count in self._spans.items():
            groups[group][teacher, student] += count
        figures = {group: _group_figures(self._sums[group], spans) for group, spans in groups.items()}
        by_script = {name: found for (kind, name), found in figures.items() if kind == "script"}
        by_source = {name: found for (kind, name), found in figures.items() if kind == "source"}
        # By source alone: an example has one source, while its text may lie in several scripts.
        total = sum((groups[group] for group in groups if group[0] == "source"), Counter[tuple[int, int]]())
        sums = sum((self._sums[group] for group in groups if group[0] == "source"), np.zeros(5, np.int64))
        readers = tuple(Spelling(backend_of(tokenizer)) for tokenizer in (teacher_tokenizer, student_tokenizer))
        return AlignmentReport(
            examples=self._counts["examples"],
            dropped=dict(sorted(self._dropped.items())),
            truncated=self._counts["truncated"],
            prompts_cut=self._counts["prompts_cut"],
            prompt_tokens_cut=self._counts["prompt_tokens_cut"],
            overall=_group_figures(sums, total),
            by_script=dict(sorted(by_script.items(), key=lambda item: (-item[1].bytes, item[0]))),
            by_source=dict(sorted(by_source.items(), key=lambda item: (-item[1].bytes, item[0]))),
            shared_vocabulary=len(self._shared),
            teacher_vocabulary=self._shared.teacher_size,
            student_vocabulary=self._shared.student_size,
            teacher_lengths=_lengths(total, 0),
            student_lengths=_lengths(total, 1),
            longest=dict(sorted(self._longest.items())),
            worst=[_view(score, example, readers) for score, _, example in self._worst],
            teacher_outside=self._counts["teacher_outside"],
            student_outside=self._counts["student_outside"],
            special_as_text=self._counts["special_as_text"],
            end_stripped=self._counts["end_stripped"],
            reasoning_left_out=self._counts["reasoning_left_out"],
        )

    def _flush(self) -> None:
        """Count the waiting examples, all at once."""
        batch, self._waiting = self._waiting, []
        if not batch:
            return
        self._counts["examples"] += len(batch)
        self._counts["truncated"] += sum(example.truncated for example in batch)
        self._counts["prompts_cut"] += sum(example.prompt_cut > 0 for example in batch)
        for name in ("special_as_text", "end_stripped", "reasoning_left_out"):
            self._counts[name] += sum(getattr(example, name) for example in batch)
        self._counts["prompt_tokens_cut"] += sum(example.prompt_cut for example in batch)
        table = _SpanTable.of(batch, self._inside)
        tokens = np.array([_response_tokens(example) for example in batch])
        self._counts["teacher_outside"] += int(tokens[:, 0].sum() - table.teacher.sum())
        self._counts["student_outside"] += int(tokens[:, 1].sum() - table.student.sum())
        sources = sorted({example.source for example in batch})
        number = {source: k for k, source in enumerate(sources)}
        source = np.array([number[example.source] for example in batch])
        # All bytes of an example count for its source, while each counts for its own script.
        by_source = np.eye(len(sources), dtype=np.int64)[source]  # (examples, sources)
        size, covered = (by_source * values.sum(axis=1)[:, None] for values in (table.bytes, table.covered))
        self._count("script", SCRIPTS, table.bytes, table.covered, table.span_script, table)
        self._count("source", sources, size, covered, source[table.span_example], table)
        for side, lengths in (("teacher", table.teacher), ("student", table.student)):
            self._keep_longest(side, table.longest(batch, lengths))
        candidates = [(score, example.id, example) for score, example in zip(table.scores(batch), batch, strict=True)]
        self._keep_worst(candidates)

    def _count(
        self,
        kind: str,
        names: Sequence[str],
        size: IntVector,
        covered: IntVector,
        span_group: IntVector,
        table: _SpanTable,
    ) -> None:
        """Add bytes and covered bytes (examples, groups) and the spans, each in its group."""
        columns = [
            np.count_nonzero(size, axis=0),  # each example counts once a group
            size.sum(axis=0),
            covered.sum(axis=0),
            np.bincount(span_group, table.teacher_inside, len(names)),
            np.bincount(span_group, table.student_inside, len(names)),
        ]
        for k, sums in enumerate(np.stack(columns, axis=1).astype(np.int64)):
            if sums.any():
                self._add_sums((kind, names[k]), sums)
        joint = np.stack([span_group, table.teacher, table.student], axis=1)
        for (k, teacher, student), count in _counted(joint):
            self._spans[(kind, names[k]), teacher, student] += count

    def _add_sums(self, group: Group, sums: npt.NDArray[np.int64]) -> None:
        """Sums of a group: examples, response bytes, covered bytes, teacher and student tokens that are shared."""
        self._sums[group] = self._sums[group] + sums if group in self._sums else sums

    def _keep_worst(self, found: Sequence[tuple[float, str, AlignedExample]]) -> None:
        # By score, then id: the same examples are kept whatever order the shards come in.
        self._worst = sorted([*self._worst, *found], key=lambda item: item[:2])[:_WORST]

    def _keep_longest(self, side: str, found: LongestSpan) -> None:
        known = self._longest.get(side)
        if known is None or (-found.tokens, found.id) < (-known.tokens, known.id):
            self._longest[side] = found


@dataclass(slots=True)
class _SpanTable:
    """What a batch of examples (E) holds: bytes by script, and its spans (N), one row each."""

    bytes: IntVector  # (E, scripts) of the response
    covered: IntVector  # those inside a span
    span_example: IntVector  # (N,)
    span_script: IntVector
    teacher: IntVector  # tokens in the span
    student: IntVector
    teacher_inside: IntVector  # those in the shared vocabulary
    student_inside: IntVector

    @classmethod
    def of(cls, batch: Sequence[AlignedExample], inside: tuple[BoolVector, BoolVector]) -> _SpanTable:
        points = code_points("".join(example.response for example in batch))
        lengths = np.array([len(example.response.encode()) for example in batch])
        span_example = np.repeat(np.arange(len(batch)), [len(example.spans) for example in batch])
        starts = _starts(lengths)
        chars = np.concatenate([example.spans.chars for example in batch]) + starts[span_example][:, None]
        script = script_numbers(points).repeat(byte_widths(points))  # of every byte: spans may begin inside a character
        covered = np.zeros(len(script), bool)
        for start, example in zip(starts.tolist(), batch, strict=True):  # spans leave nothing out between them
            covered[start + example.spans.chars[0, 0] : start + example.spans.chars[-1, 1]] = True
        cells = np.repeat(np.arange(len(batch)) * len(SCRIPTS), lengths) + script.astype(np.int64)
        sides = []
        for side, members in zip(("teacher", "student"), inside, strict=True):
            ids = [getattr(example, f"{side}_ids") for example in batch]
            ranges = np.concatenate([getattr(example.spans, side) for example in batch])
            # Running counts: how many of a range of tokens are shared is a difference of two.
            total = np.append(0, members[np.concatenate(ids)].cumsum())
            ranges_in_batch = ranges + _starts(np.array([len(row) for row in ids]))[span_example][:, None]
            sides.append((ranges[:, 1] - ranges[:, 0], np.diff(total[ranges_in_batch])[:, 0]))
        return cls(
            bytes=_by_script(cells, len(batch)),
            covered=_by_script(cells[covered], len(batch)),
            span_example=span_example,
            # reduceat goes on to where the next span begins: bytes between two count as 0 there, the weakest class.
            span_script=np.maximum.reduceat(script * covered, chars[:, 0]),
            teacher=sides[0][0],
            student=sides[1][0],
            teacher_inside=sides[0][1],
            student_inside=sides[1][1],
        )

    def longest(self, batch: Sequence[AlignedExample], lengths: IntVector) -> LongestSpan:
        rows = np.flatnonzero(lengths == lengths.max())
        owners = self.span_example[rows]
        owner = min(np.unique(owners).tolist(), key=lambda k: batch[k].id)
        row, example = int(rows[owners.searchsorted(owner)]), batch[owner]
        first = int(np.searchsorted(self.span_example, owner))
        begin, end = example.spans.chars[row - first].tolist()
        text = shown(example.response.encode()[begin:end][:_SHOWN])
        return LongestSpan(tokens=int(lengths[row]), text=text, id=example.id)

    def scores(self, batch: Sequence[AlignedExample]) -> list[float]:
        """How well each example is aligned: its coverage times its spans a token, smoothed so that length counts."""
        spans = np.array([len(example.spans) for example in batch])
        tokens = np.array([max(_response_tokens(example)) for example in batch])
        return list(self.covered.sum(axis=1) / self.bytes.sum(axis=1) * (spans + 2) / (tokens + 2))


def audit(
    examples: Iterable[AlignedExample | Rejected],
    shared: SharedVocabulary,
    teacher_tokenizer: PreTrainedTokenizerFast,
    student_tokenizer: PreTrainedTokenizerFast,
) -> AlignmentReport:
    """Audit a stream of examples; memory does not grow with their number.

    Args:
        examples: What ``PairEncoder`` gave, and what was rejected before it.
        shared: The shared vocabulary of the two tokenizers.
        teacher_tokenizer: Names the tokens of the worst examples.
        student_tokenizer: Likewise.
    """
    gathered = AlignmentAudit(shared)
    for example in examples:
        gathered.add(example)
    return gathered.report(teacher_tokenizer, student_tokenizer)


def _members(ids: npt.NDArray[np.int32], size: int) -> BoolVector:
    table = np.zeros(size, bool)
    table[ids] = True
    return table


def _by_script(cells: IntVector, examples: int) -> IntVector:
    """(examples, scripts) how often each cell is named."""
    return np.bincount(cells, minlength=examples * len(SCRIPTS)).reshape(examples, len(SCRIPTS))


def _starts(lengths: IntVector) -> IntVector:
    """Where each row begins when rows of such lengths are laid end to end."""
    return np.cumsum(lengths) - lengths


def _counted(rows: IntVector) -> Iterator[tuple[list[int], int]]:
    """Distinct rows of a (N, 3) table of small numbers, and how often each occurs."""
    sizes = rows.max(axis=0).astype(np.int64) + 1
    keys = (rows[:, 0] * sizes[1] + rows[:, 1]) * sizes[2] + rows[:, 2]
    if sizes.prod() <= len(keys):  # faster than sorting, where the spans are as short as they mostly are
        counts = np.bincount(keys)
        keys = counts.nonzero()[0]
        counts = counts[keys]
    else:
        keys, counts = np.unique(keys, return_counts=True)
    distinct = np.stack([keys // (sizes[1] * sizes[2]), keys // sizes[2] % sizes[1], keys % sizes[2]], axis=1)
    yield from zip(distinct.tolist(), counts.tolist(), strict=True)


def _response_tokens(example: AlignedExample) -> tuple[int, int]:
    """Response tokens on either side, the one that ends the answer left out."""
    end = int(example.ended)
    return (
        len(example.teacher_ids) - example.teacher_response - end,
        len(example.student_ids) - example.student_response - end,
    )


def _group_figures(sums: npt.NDArray[np.int64], spans: Counter[tuple[int, int]]) -> GroupFigures:
    examples, size, covered, teacher_inside, student_inside = (int(value) for value in sums)
    count = sum(spans.values())
    teacher, student = _lengths(spans, 0), _lengths(spans, 1)
    return GroupFigures(
        examples=examples,
        bytes=size,
        spans=count,
        coverage=covered / size if size else 0.0,
        one_to_one=spans[1, 1] / count if count else 0.0,
        teacher=_side_figures(teacher, teacher_inside),
        student=_side_figures(student, student_inside),
    )


def _lengths(spans: Counter[tuple[int, int]], side: int) -> dict[int, int]:
    """Spans by their number of tokens on one side."""
    lengths: Counter[int] = Counter()
    for pair, count in spans.items():
        lengths[pair[side]] += count
    return dict(sorted(lengths.items()))


def _side_figures(lengths: dict[int, int], inside: int) -> SideFigures:
    count = sum(lengths.values())
    tokens = sum(length * n for length, n in lengths.items())
    below = np.cumsum(list(lengths.values()))
    p50, p90, p99 = (
        list(lengths)[int(np.searchsorted(below, share * count))] if count else 0 for share in (0.5, 0.9, 0.99)
    )
    return SideFigures(
        tokens=tokens,
        mean=tokens / count if count else 0.0,
        p50=p50,
        p90=p90,
        p99=p99,
        longest=max(lengths, default=0),
        shared=inside / tokens if tokens else 0.0,
    )


def _view(score: float, example: AlignedExample, readers: Sequence[Spelling]) -> WorstExample:
    """An example with its spans spelled out for people."""
    text, spans = example.response.encode(), example.spans.head(_SHOWN)
    views = span_views(text, spans, example.teacher_ids, example.student_ids, readers)
    first, last = int(example.spans.chars[0, 0]), int(example.spans.chars[-1, 1])
    teacher_tokens, student_tokens = _response_tokens(example)
    return WorstExample(
        id=example.id,
        source=example.source,
        score=score,
        coverage=(last - first) / len(text),
        teacher_tokens=teacher_tokens,
        student_tokens=student_tokens,
        before=shown(text[:first]),
        spans=views,
        after=shown(text[int(spans.chars[-1, 1]) :][:_SHOWN]),
        all_spans=len(example.spans),
    )
