"""Small random batches, heads and contexts for the objective's tests, in float64."""

from __future__ import annotations

from dataclasses import dataclass

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
    side: str = "right",
    tied: bool = True,
    bias: bool = False,
    softcap: float | None = None,
    layers: tuple[tuple[int, int], ...] = ((6, 3), (7, 4)),
    same: bool = False,
) -> World:
    """A batch with as many texts as ``most_spans``, padded on one ``side``; ``same`` shares the tokenizer."""
    rng = torch.Generator().manual_seed(seed)
    texts, prompt, longest = len(most_spans), 3, 16
    shared = torch.randperm(min(STUDENT_VOCABULARY, TEACHER_VOCABULARY), generator=rng)[:SHARED]
    vocabulary = STUDENT_VOCABULARY if same else TEACHER_VOCABULARY
    shared_student = torch.arange(STUDENT_VOCABULARY) if same else shared
    shared_teacher = shared_student if same else torch.randperm(vocabulary, generator=rng)[:SHARED]

    lengths = [int(torch.randint(9, longest + 1, (), generator=rng)) for _ in range(texts)]
    teacher_lengths = lengths if same else [int(torch.randint(9, longest + 1, (), generator=rng)) for _ in range(texts)]
    ids, mask, labels = rows(rng, lengths, longest, prompt, STUDENT_VOCABULARY, side)
    teacher_ids, teacher_mask, teacher_labels = rows(rng, teacher_lengths, longest, prompt, vocabulary, side)
    if same:
        teacher_ids, teacher_labels = ids, labels
    elif shared_student.numel():
        student_of = {int(t): int(s) for s, t in zip(shared_student, shared_teacher, strict=True)}
        keep_some_tokens_equal(ids, labels, teacher_ids, teacher_mask, mask, student_of)

    text, ranges, teacher_ranges = [], [], []
    for row, most in enumerate(most_spans):
        begin = prompt + (longest - lengths[row] if side == "left" else 0)
        teacher_begin = prompt + (longest - teacher_lengths[row] if side == "left" else 0)
        own = spans_of(rng, begin, begin + lengths[row] - prompt, most)
        theirs = spans_of(rng, teacher_begin, teacher_begin + teacher_lengths[row] - prompt, most)
        count = min(len(own), len(theirs))
        text += [row] * count
        ranges += own[:count]
        teacher_ranges += theirs[:count]
    spans = len(text)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    leaves = {
        "first": normal(texts, longest, NARROW).requires_grad_(),
        "final": normal(texts, longest, NARROW).requires_grad_(),
        "head": normal(STUDENT_VOCABULARY, NARROW).requires_grad_(),
    }
    if bias:
        leaves["bias"] = normal(STUDENT_VOCABULARY).requires_grad_()
    if not tied:
        leaves["embedding"] = normal(STUDENT_VOCABULARY, NARROW).requires_grad_()
    weights = {layer: attention(rng, mask) for _, layer in layers}
    hidden = {layer: leaves["final"] if layer == layers[-1][1] else leaves["first"] for _, layer in layers}
    head = Head(leaves["head"], leaves.get("bias"), softcap)
    embedding = leaves["head"] if tied else leaves["embedding"]
    student = StudentOutput(hidden, weights, leaves["final"], head, embedding)
    full = Head(normal(vocabulary, WIDE), normal(vocabulary) if bias else None, softcap)
    batch = Batch(
        [f"t{row}" for row in range(texts)],
        ids,
        mask,
        labels,
        torch.tensor(text, dtype=torch.long),
        torch.tensor(ranges, dtype=torch.long).reshape(-1, 2),
        {
            layer: TeacherSpans(normal(spans, WIDE), torch.rand(spans, generator=rng, dtype=torch.float64) + 0.05)
            for layer, _ in layers
        },
        teacher_states={layers[-1][0]: normal(texts, longest, WIDE)},
        teacher_ids=teacher_ids,
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
    )
    return World(batch, student, context, leaves)


def rows(
    rng: torch.Generator, lengths: list[int], longest: int, prompt: int, vocabulary: int, side: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens, mask and labels, padded on one side."""
    ids = torch.zeros(len(lengths), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, length in enumerate(lengths):
        first = longest - length if side == "left" else 0
        ids[row, first : first + length] = torch.randint(vocabulary, (length,), generator=rng)
        mask[row, first : first + length] = 1
        response = slice(first + prompt, first + length)
        labels[row, response] = ids[row, response]
    return ids, mask, labels


def keep_some_tokens_equal(
    ids: Tensor, labels: Tensor, teacher_ids: Tensor, teacher_mask: Tensor, mask: Tensor, student_of: dict[int, int]
) -> None:
    """Make the n-th real tokens of both sides the same token for even n, where the teacher's is shared."""
    for row in range(len(ids)):
        own, theirs = mask[row].nonzero()[:, 0], teacher_mask[row].nonzero()[:, 0]
        for place in range(0, min(len(own), len(theirs)), 2):
            token = student_of.get(int(teacher_ids[row, theirs[place]]))
            if token is not None:
                ids[row, own[place]] = token
                if labels[row, own[place]] != -100:
                    labels[row, own[place]] = token


def attention(rng: torch.Generator, mask: Tensor) -> Tensor:
    """(B, T) random weights over the real tokens, rows summing to one."""
    scores = torch.randn(mask.shape, generator=rng, dtype=torch.float64).masked_fill(mask == 0, -torch.inf)
    return scores.softmax(-1)


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
