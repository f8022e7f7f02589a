"""Baselines that compare distributions span by span, spelled out from their formulas: loops, full logits, autograd."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.objective.make import World
from tests.objective.plain_baselines import Position, sides, z


def spans(world: World) -> Iterator[tuple[list[Position], list[Position]]]:
    """The positions that predict the tokens of each span, student and teacher; spans with all of them only."""
    batch = world.batch
    for span, row in enumerate(batch.span_text.tolist()):
        both = []
        for positions, ranges, starts in zip(
            sides(world, row),
            (batch.span_range, batch.teacher_range),
            (batch.starts, batch.teacher_starts),
            strict=True,
        ):
            known = {place: (state, read, target, place) for state, read, target, place in positions}
            tokens = [t - int(starts[row]) for t in range(int(ranges[span, 0]), int(ranges[span, 1]))]
            both.append([known[t] for t in tokens if t in known] if set(tokens) <= set(known) else [])
        if all(both):
            yield both[0], both[1]


def strict_kl(world: World, tau: float, reverse: bool, top_k: int | None) -> Tensor:
    values = []
    for mine, theirs in spans(world):
        if len(mine) != 1 or len(theirs) != 1:
            continue
        q = z(world.student.head, mine[0][0])[world.context.shared_student_ids]
        p = z(world.context.teacher_full_head, theirs[0][0])[world.context.shared_teacher_ids]
        if top_k is not None:
            best = sorted(range(len(q)), key=lambda v, q=q: -float(q[v].detach()))[:top_k]
            q, p = q[best], p[best]
        q, p = torch.softmax(q / tau, -1), torch.softmax(p / tau, -1)
        values.append((q * (q / p).log()).sum() if reverse else (p * (p / q).log()).sum())
    return torch.stack(values).mean()


def gold(world: World, beta: float) -> Tensor:
    context, values = world.context, []
    student_ids, teacher_ids = context.shared_student_ids.tolist(), context.shared_teacher_ids.tolist()
    for mine, theirs in spans(world):
        merged = []
        for head, positions in ((world.student.head, mine), (context.teacher_full_head, theirs)):
            whole = torch.softmax(z(head, positions[0][0]), -1)
            for state, _, target, _ in positions[1:]:
                whole = whole * torch.softmax(z(head, state), -1)[target]
            merged.append(whole)
        q, p = merged
        shared = torch.zeros((), dtype=q.dtype)
        for s, t in zip(student_ids, teacher_ids, strict=True):
            m = beta * p[t] + (1 - beta) * q[s]
            if beta in (0, 1):
                shared = shared + (p[t] * (p[t] / q[s]).log() if beta == 0 else q[s] * (q[s] / p[t]).log())
            else:
                shared = shared + beta * p[t] * (p[t] / m).log() + (1 - beta) * q[s] * (q[s] / m).log()
        rest_q = sorted(
            (q[v] for v in range(len(q)) if v not in student_ids), key=lambda each: float(each.detach()), reverse=True
        )
        rest_p = sorted(
            (p[v] for v in range(len(p)) if v not in teacher_ids), key=lambda each: float(each.detach()), reverse=True
        )
        rest = torch.zeros((), dtype=q.dtype)
        for place in range(max(len(rest_q), len(rest_p))):
            a = rest_p[place] if place < len(rest_p) else 0
            b = rest_q[place] if place < len(rest_q) else 0
            rest = rest + (a - b).abs()
        share = len(teacher_ids) / len(p)
        values.append(share * shared + (1 - share) * rest)
    return torch.stack(values).mean()


def xtoken(world: World, tau: float, top_k: int | None) -> Tensor:
    context, values = world.context, []
    positions = [each for row in range(world.batch.texts) for each in sides(world, row)[1]]
    best = torch.stack([torch.softmax(z(context.teacher_full_head, state), -1) for state, *_ in positions]).amax(0)
    kept = best.argsort(descending=True)[: top_k or len(best)]
    carry = context.student_in_teacher.to_dense()
    for mine, theirs in spans(world):
        q = torch.stack([torch.softmax(z(world.student.head, s) / tau, -1) @ carry for s, *_ in mine])[:, kept].mean(0)
        q = q / q.sum()
        logits = torch.stack([z(context.teacher_full_head, s)[kept] / tau for s, *_ in theirs])
        log_p = torch.log_softmax(logits, -1).mean(0)
        values.append(tau**2 * (log_p.exp() * (log_p - q.log())).sum())
    return torch.stack(values).mean()
