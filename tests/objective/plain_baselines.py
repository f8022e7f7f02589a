"""The baselines spelled out: loops over texts and positions, full logits, autograd.  Written from the formulas."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from sra_core.objective import Head
from tests.objective.make import World

Position = tuple[Tensor, int, int, int]  # state, token read, token to predict, place of that token


def sides(world: World, row: int) -> tuple[list[Position], list[Position]]:
    """Supervised positions of one text, student and teacher."""
    batch = world.batch
    states = batch.teacher_states[max(batch.teacher_states)]

    def found(hidden: Tensor, ids: Tensor, labels: Tensor) -> list[Position]:
        places = [t for t in range(1, len(labels)) if labels[t] != -100]
        return [(hidden[t - 1], int(ids[t - 1]), int(labels[t]), t) for t in places]

    own, theirs = world.text(row), world.teacher_text(row)
    return (
        found(world.student.final[own], batch.input_ids[own], batch.labels[own]),
        found(states[theirs], batch.teacher_ids[theirs], batch.teacher_labels[theirs]),
    )


def z(head: Head, state: Tensor) -> Tensor:
    raw = head.weight @ state
    if head.bias is not None:
        raw = raw + head.bias
    return raw if head.softcap is None else head.softcap * torch.tanh(raw / head.softcap)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum()


def uld(world: World) -> Tensor:
    values = []
    for row in range(world.batch.texts):
        for mine, theirs in zip(*sides(world, row), strict=False):
            q = torch.softmax(z(world.student.head, mine[0]), -1).sort(descending=True).values
            p = torch.softmax(z(world.context.teacher_full_head, theirs[0]), -1).sort(descending=True).values
            total = torch.zeros((), dtype=p.dtype)
            for v in range(max(len(p), len(q))):
                total = total + ((p[v] if v < len(p) else 0) - (q[v] if v < len(q) else 0)).abs()
            values.append(total)
    return torch.stack(values).mean()


def divergence(world: World, name: str, tau: float, skew: float) -> Tensor:
    values = []
    head = Head(world.student.head.weight, world.student.head.bias, world.student.head.softcap)
    for row in range(world.batch.texts):
        for mine, theirs in zip(*sides(world, row), strict=True):
            q = torch.softmax(z(head, mine[0]) / tau, -1)
            p = torch.softmax(z(world.context.teacher_full_head, theirs[0]) / tau, -1)
            m = (p + q) / 2
            values.append(
                {
                    "fkl": lambda p=p, q=q: kl(p, q),
                    "rkl": lambda p=p, q=q: kl(q, p),
                    "js": lambda p=p, q=q, m=m: (kl(p, m) + kl(q, m)) / 2,
                    "skl": lambda p=p, q=q: kl(p, skew * p + (1 - skew) * q),
                }[name]()
            )
    return torch.stack(values).mean()


def alm(world: World, tau: float = 100.0, floor: float = 1e-6) -> Tensor:
    batch, values = world.batch, []
    for span in range(len(batch.span_text)):
        row = int(batch.span_text[span])
        mine, theirs = sides(world, row)
        own = likelihood(world.student.head, mine, batch.span_range[span] - batch.starts[row])
        other = likelihood(
            world.context.teacher_full_head, theirs, batch.teacher_range[span] - batch.teacher_starts[row]
        )
        if own is None or other is None:
            continue
        q, p = torch.exp(own / tau - floor), torch.exp(other / tau - floor)
        values.append(tau * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()))
    return torch.stack(values).mean()


def likelihood(head: Head, positions: list[Position], span: Tensor) -> Tensor | None:
    """Log-likelihood of the tokens of one span, none where one of them is not predicted."""
    known = {place: torch.log_softmax(z(head, state), -1)[target] for state, _, target, place in positions}
    tokens = range(int(span[0]), int(span[1]))
    return sum((known[t] for t in tokens), torch.zeros((), dtype=torch.float64)) if set(tokens) <= set(known) else None


def dskd_pairs(world: World) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """What each of DSKD's maps is fitted to: inputs and targets, span by span of one token on both sides."""
    student, context, batch = world.student, world.context, world.batch
    theirs = [position for row in range(batch.texts) for position in sides(world, row)[1]]
    table, embeddings = student.embedding.detach(), context.teacher_embedding
    target_spread = torch.stack([embeddings[target] for _, _, target, _ in theirs]).std()
    state_spread = torch.stack([state for state, _, _, _ in theirs]).std()
    key_spread = torch.stack([key(embeddings, each) for each in theirs]).std()
    found = {name: ([], []) for name in ("query", "to_student", "to_teacher")}
    for row in range(batch.texts):
        own, teacher = sides(world, row)
        own_at, teacher_at = ({each[3]: each for each in side} for side in (own, teacher))
        for place, span in enumerate(batch.span_text.tolist()):
            (a, b), (c, d) = batch.span_range[place].tolist(), batch.teacher_range[place].tolist()
            if span != row or b - a != 1 or d - c != 1:
                continue
            mine = own_at.get(a - int(batch.starts[row]))
            other = teacher_at.get(c - int(batch.teacher_starts[row]))
            if mine is None or other is None:
                continue
            found["query"][0].append(key(table, mine))
            found["query"][1].append(key(embeddings, other) / key_spread)
            found["to_student"][0].append(other[0] / state_spread + embeddings[other[2]] / target_spread)
            found["to_student"][1].append(mine[0])
            found["to_teacher"][0].append(mine[0])
            found["to_teacher"][1].append(other[0])
    return found


def dskd(world: World, objective: torch.nn.Module, tau: float) -> dict[str, Tensor]:
    student, context = world.student, world.context
    rows = [sides(world, row) for row in range(world.batch.texts)]
    mine, theirs = ([position for row in rows for position in row[side]] for side in (0, 1))
    target_spread = torch.stack([context.teacher_embedding[target] for _, _, target, _ in theirs]).std()
    state_spread = torch.stack([state for state, _, _, _ in theirs]).std()
    key_spread = torch.stack([key(context.teacher_embedding, each) for each in theirs]).std()
    table = student.embedding.detach()
    ce, down, up = [], [], []
    for own, teacher in rows:
        if not own or not teacher:
            continue
        scores = torch.stack(
            [
                torch.stack(
                    [objective.query(key(table, a)) @ (key(context.teacher_embedding, b) / key_spread) for b in teacher]
                )
                for a in own
            ]
        ) / math.sqrt(2 * context.teacher_width)
        carried = torch.stack(
            [
                objective.to_student(s / state_spread + context.teacher_embedding[target] / target_spread)
                for s, _, target, _ in teacher
            ]
        )
        for i, (state, _, target, _) in enumerate(own):
            guess = z(student.head.constant(), torch.softmax(scores[i], 0) @ carried)
            ce.append(-torch.log_softmax(guess, -1)[target])
            fixed = torch.softmax(guess.detach() / tau, -1)
            right = float(guess.argmax() == target)
            down.append(right * kl(fixed, torch.softmax(z(student.head, state) / tau, -1)))
        carried = torch.stack([objective.to_teacher(s) for s, _, _, _ in own])
        for j, (state, _, _, _) in enumerate(teacher):
            guess = z(context.teacher_full_head, torch.softmax(scores[:, j], 0) @ carried)
            p = torch.softmax(z(context.teacher_full_head, state) / tau, -1)
            up.append(kl(p, torch.softmax(guess / tau, -1)))
    assert len(down) == len(mine)
    return {
        "teacher_to_student_ce": torch.stack(ce).mean(),
        "teacher_to_student": torch.stack(down).mean(),
        "student_to_teacher": torch.stack(up).mean(),
    }


def key(table: Tensor, position: Position) -> Tensor:
    return torch.cat([table[position[1]], table[position[2]]])


def multilevel_ot(world: World, leading: int = 50) -> dict[str, Tensor]:
    absolute, logarithmic, transport = [], [], []
    for row in range(world.batch.texts):
        mine, theirs = sides(world, row)
        q = standardised(world.student.head, mine)
        p = standardised(world.context.teacher_full_head, theirs)
        width = min(q.shape[1], p.shape[1], leading)
        q = q[:, q.detach().sum(0).argsort(descending=True)[:width]]
        p = p[:, p.sum(0).argsort(descending=True)[:width]]
        for a, b in zip(p, q, strict=False):
            absolute.append((a - b).abs().sum())
            logarithmic.append(-(a * b.log()).sum())
        cost = torch.stack([torch.stack([(a - b).abs().sum() for b in q]) for a in p])
        plan = torch.exp(-cost / 0.1)
        for _ in range(20):
            plan = plan / plan.sum(1, keepdim=True) / len(p)
            plan = plan / plan.sum(0, keepdim=True) / len(q)
        transport.append((plan * cost).sum())
    return {
        "absolute": torch.stack(absolute).mean(),
        "logarithmic": 0.1 * torch.stack(logarithmic).mean(),
        "sinkhorn": 0.1 * torch.stack(transport).mean(),
    }


def standardised(head: Head, positions: list[Position]) -> Tensor:
    values = [z(head, state) for state, _, _, _ in positions]
    return torch.stack([torch.softmax(each / (each.std() + 1e-4), -1) for each in values])


def mined(world: World, tau: float) -> Tensor:
    context, values = world.context, []
    teacher_of = dict(zip(context.shared_student_ids.tolist(), context.shared_teacher_ids.tolist(), strict=True))
    for row in range(world.batch.texts):
        mine, theirs = sides(world, row)
        partner = align(
            [context.student_tokens[read] for _, read, _, _ in mine],
            [context.teacher_tokens[read] for _, read, _, _ in theirs],
        )
        for i, (state, read, target, _) in enumerate(mine):
            log_q = torch.log_softmax(z(world.student.head, state) / tau, -1)
            j = partner[i]
            if j is not None and theirs[j][1] == teacher_of.get(read):
                p = torch.softmax(z(context.teacher_head, theirs[j][0]) / tau, -1)
                values.append((p * (p.log() - log_q[context.shared_student_ids])).sum())
            else:
                values.append(-log_q[target])
    return torch.stack(values).mean()


def align(student: list[str], teacher: list[str]) -> list[int | None]:
    """The one teacher token against each student token, by plain recursion over the monotone paths."""

    @cache
    def cost(i: int, j: int) -> float:
        if i < 0 or j < 0:
            return 0 if i == j == -1 else math.inf
        return levenshtein(student[i], teacher[j]) + min(cost(i - 1, j - 1), cost(i - 1, j), cost(i, j - 1))

    visited: dict[int, list[int]] = {}
    i, j = len(student) - 1, len(teacher) - 1
    while i >= 0 and j >= 0:
        visited.setdefault(i, []).append(j)
        i, j = min([(i - 1, j - 1), (i - 1, j), (i, j - 1)], key=lambda step: cost(*step))
    return [visited[i][0] if len(visited.get(i, [])) == 1 else None for i in range(len(student))]


def levenshtein(a: str, b: str) -> int:
    a, b = "".join(a.split()), "".join(b.split())

    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return distance(len(a), len(b))
