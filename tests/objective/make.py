"""Small random batches, heads and contexts for the objective's tests, in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sra_core.objective import Batch, Head, ObjectiveContext, StudentOutput, TeacherSpans

NARROW, WIDE, STUDENT_VOCABULARY, TEACHER_VOCABULARY, SHARED = 6, 5, 19, 23, 13


@dataclass
class World:
    """A batch with everything that any objective reads, and the student's leaves."""

    batch: Batch
    student: StudentOutput
    context: ObjectiveContext
    leaves: dict[str, Tensor]

    def recount(self) -> None:
        """Take in labels that a test has changed."""
        self.batch = replace(self.batch, sizes=None)

    def text(self, row: int) -> slice:
        """Where a text lies in the batch."""
        return slice(int(self.batch.starts[row]), int(self.batch.starts[row + 1]))

    def teacher_text(self, row: int) -> slice:
        """Where it lies among the teacher's tokens."""
        return slice(int(self.batch.teacher_starts[row]), int(self.batch.teacher_starts[row + 1]))

    def ranges(self, row: int) -> list[list[int]]:
        """The spans of a text, places of that text."""
        inside = self.batch.span_text == row
        return (self.batch.span_range[inside] - self.batch.starts[row]).tolist()


def spans_of(rng: torch.Generator, begin: int, end: int, most: int) -> list[tuple[int, int]]:
    """Disjoint ranges in order inside [begin, end), some tokens left out."""
    found, at = [], begin
    while at < end and len(found) < most:
        length = int(torch.randint(1, 4, (), generator=rng))
        skip = int(torch.randint(0, 2, (), generator=rng))
        if at + skip + length > end:
            break
        found.append((at + skip, at + skip + length))
        at += skip + length
    return found


def make(
    seed: int = 0,
    most_spans: tuple[int, ...] = (4, 0, 1, 5),
    tied: bool = True,
    bias: bool = False,
    softcap: float | None = None,
    layers: tuple[tuple[int, int], ...] = ((6, 3), (7, 4)),
    same: bool = False,
) -> World:
    """A batch with as many texts as ``most_spans``; ``same`` shares the tokenizer."""
    rng = torch.Generator().manual_seed(seed)
    texts, prompt, longest = len(most_spans), 3, 16
    shared = torch.randperm(min(STUDENT_VOCABULARY, TEACHER_VOCABULARY), generator=rng)[:SHARED]
    vocabulary = STUDENT_VOCABULARY if same else TEACHER_VOCABULARY
    shared_student = torch.arange(STUDENT_VOCABULARY) if same else shared
    shared_teacher = shared_student if same else torch.randperm(vocabulary, generator=rng)[:SHARED]

    lengths = [int(torch.randint(9, longest + 1, (), generator=rng)) for _ in range(texts)]
    teacher_lengths = lengths if same else [int(torch.randint(9, longest + 1, (), generator=rng)) for _ in range(texts)]
    ids, starts, labels = rows(rng, lengths, prompt, STUDENT_VOCABULARY)
    teacher_ids, teacher_starts, teacher_labels = rows(rng, teacher_lengths, prompt, vocabulary)
    if same:
        teacher_ids, teacher_labels = ids, labels
    elif shared_student.numel():
        student_of = {int(t): int(s) for s, t in zip(shared_student, shared_teacher, strict=True)}
        for row in range(texts):
            keep_some_tokens_equal(ids, labels, starts[row : row + 2], teacher_ids, teacher_starts[row], student_of)

    text, ranges, teacher_ranges = [], [], []
    for row, most in enumerate(most_spans):
        begin, teacher_begin = int(starts[row]) + prompt, int(teacher_starts[row]) + prompt
        own = spans_of(rng, begin, int(starts[row + 1]), most)
        theirs = spans_of(rng, teacher_begin, int(teacher_starts[row + 1]), most)
        count = min(len(own), len(theirs))
        text += [row] * count
        ranges += own[:count]
        teacher_ranges += theirs[:count]
    spans = len(text)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    leaves = {
        "first": normal(len(ids), NARROW).requires_grad_(),
        "final": normal(len(ids), NARROW).requires_grad_(),
        "head": normal(STUDENT_VOCABULARY, NARROW).requires_grad_(),
    }
    if bias:
        leaves["bias"] = normal(STUDENT_VOCABULARY).requires_grad_()
    if not tied:
        leaves["embedding"] = normal(STUDENT_VOCABULARY, NARROW).requires_grad_()
    weights = {layer: attention(rng, lengths) for _, layer in layers}
    hidden = {layer: leaves["final"] if layer == layers[-1][1] else leaves["first"] for _, layer in layers}
    head = Head(leaves["head"], leaves.get("bias"), softcap)
    embedding = leaves["head"] if tied else leaves["embedding"]
    student = StudentOutput(hidden, weights, leaves["final"], head, embedding)
    full = Head(normal(vocabulary, WIDE), normal(vocabulary) if bias else None, softcap)
    batch = Batch(
        [f"t{row}" for row in range(texts)],
        ids,
        starts,
        labels,
        torch.tensor(text, dtype=torch.long),
        torch.tensor(ranges, dtype=torch.long).reshape(-1, 2),
        {
            layer: TeacherSpans(normal(spans, WIDE), torch.rand(spans, generator=rng, dtype=torch.float64) + 0.05)
            for layer, _ in layers
        },
        teacher_states={layers[-1][0]: normal(len(teacher_ids), WIDE)},
        teacher_ids=teacher_ids,
        teacher_starts=teacher_starts,
        teacher_labels=teacher_labels,
        teacher_range=torch.tensor(teacher_ranges, dtype=torch.long).reshape(-1, 2),
    )
    context = ObjectiveContext(
        list(layers),
        NARROW,
        WIDE,
        full.rows(shared_teacher),
        shared_student,
        shared_teacher,
        teacher_full_head=full,
        teacher_embedding=normal(vocabulary, WIDE),
        student_tokens=[chr(97 + i) * (1 + i % 3) for i in range(STUDENT_VOCABULARY)],
        teacher_tokens=[chr(97 + i) * (1 + i % 3) for i in range(vocabulary)],
        student_in_teacher=carry(rng, STUDENT_VOCABULARY, vocabulary),
    )
    return World(batch, student, context, leaves)


def rows(rng: torch.Generator, lengths: list[int], prompt: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens one text after another, where the texts start, and labels."""
    starts = torch.tensor([0, *lengths]).cumsum(0)
    ids = torch.randint(vocabulary, (sum(lengths),), generator=rng)
    labels = ids.clone()
    for start in starts[:-1].tolist():
        labels[start : start + prompt] = -100
    return ids, starts, labels


def keep_some_tokens_equal(
    ids: Tensor, labels: Tensor, text: Tensor, teacher_ids: Tensor, teacher_start: Tensor, student_of: dict[int, int]
) -> None:
    """Make the n-th tokens of both sides the same token for even n, where the teacher's is shared."""
    for place in range(0, int(text[1] - text[0]), 2):
        own = int(text[0]) + place
        token = student_of.get(int(teacher_ids[min(int(teacher_start) + place, len(teacher_ids) - 1)]))
        if token is not None:
            ids[own] = token
            if labels[own] != -100:
                labels[own] = token


def carry(rng: torch.Generator, students: int, teachers: int) -> Tensor:
    """(V_S, V_T) sparse: three teacher tokens a student token; every teacher token is reached."""
    places = (torch.arange(students)[:, None] * 3 + torch.randint(3, (students, 3), generator=rng)) % teachers
    places[:, 0] = torch.arange(students)
    places[: teachers - students, 1] = torch.arange(students, teachers)
    table = torch.zeros(students, teachers, dtype=torch.float64)
    table.scatter_(1, places, torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64).expand(students, 3))
    return (table / table.sum(1, keepdim=True)).to_sparse()


def attention(rng: torch.Generator, lengths: list[int]) -> Tensor:
    """(N,) random weights that sum to one over each text."""
    return torch.cat([torch.randn(length, generator=rng, dtype=torch.float64).softmax(-1) for length in lengths])


def gradients(value: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by name, zeros where a leaf takes no part."""
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }


def assert_same(fast: Tensor, plain: Tensor, leaves: dict[str, Tensor]) -> None:
    """Equal values and equal gradients by every leaf, in float64."""
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-11)
    ours, theirs = gradients(fast, leaves), gradients(plain, leaves)
    for name in leaves:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=1e-8, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}"
        )
