"""Claims: `align` is linear, fast and flat; encoding a pair costs little beyond the two tokenizations.

    python -m benchmarks.alignment [--rounds 9] [--examples FILE.jsonl] [--json FILE]

`align`: at least 5 million tokens a second (both sides counted) at 200,000 tokens, the cost a token at 2,000 and at
2,000,000 within 1.5x of each other and never growing by more than that with size, at least 100x the plain quadratic
LCS of the tests at 2,000 tokens. Three kinds of offsets:
tidy (ASCII), one side with characters spread over several tokens, one side that leaves white space out.
`encode`: PairEncoder and the audit against the two tokenizations of the same texts alone, on one thread; at least 0.7
of their speed. `shared`: the shared vocabulary by bytes against raw string matching, and the share of the student's
response tokens that it holds, with and without the option that adds first tokens.

Processor time of one thread; the smallest of several rounds, in which all sizes take turns, counts. Real tokenizers
take part where the packages that ship them are installed. Prints tables, writes JSON when asked to; exits with 1 when a
claim fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks.stamp import write_json
from sra_core.alignment import AlignedExample, AlignmentAudit, PairEncoder, align, shared_vocabulary
from sra_core.config import PAPER_PROMPT
from sra_core.corpus import Example, render
from tests.alignment.plain import plain_align
from tests.alignment.tokenizers import load

Offsets = npt.NDArray[np.int32]
SIZES = (2_000, 20_000, 200_000, 2_000_000)
SPEED, FLATNESS, GAIN, ENCODE = 5e6, 1.5, 100.0, 0.7
PAIRS = [
    ("mistral", "qwen"),
    ("smollm2", "mistral"),
    ("qwen", "mistral"),
    ("deepseek", "qwen"),
    ("smollm2", "byte-level"),
]


def offsets(tokens: int, seed: int, kind: str) -> Offsets:
    """Random offsets of about so many tokens, four characters each on average."""
    random = np.random.default_rng(seed)
    length = 4 * tokens
    inner = np.flatnonzero(random.random(length) < 0.25)
    edges = np.unique(np.concatenate([[0], inner, [length]]))
    pairs = np.stack([edges[:-1], edges[1:]], axis=1).astype(np.int32)
    if kind == "pieces":
        repeats = np.where(random.random(len(pairs)) < 0.2, 3, 1)
        pairs = np.repeat(pairs, repeats, axis=0)
    if kind == "gaps":
        pairs[:, 0] += (random.random(len(pairs)) < 0.5) & (pairs[:, 1] - pairs[:, 0] > 1)
    return np.ascontiguousarray(pairs)


def best(work: Sequence[Callable[[], Any]], rounds: int, repeats: Sequence[int] | None = None) -> list[float]:
    """Seconds of processor time of one call of each, the smallest of several rounds; they take turns in every round."""
    times = [float("inf")] * len(work)
    for _ in range(rounds):
        for k, (each, count) in enumerate(zip(work, repeats or [1] * len(work), strict=True)):
            start = time.process_time()
            for _ in range(count):
                each()
            times[k] = min(times[k], (time.process_time() - start) / count)
    return times


def measure_align(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for kind in ("tidy", "pieces", "gaps"):
        sides = [(offsets(size // 2, 1, kind), offsets(size // 2, 2, "tidy")) for size in SIZES]
        work = [lambda pair=pair: align(*pair) for pair in sides]
        seconds = best(work, rounds, [max(1, 2_000_000 // size) for size in SIZES])
        for pair, cost in zip(sides, seconds, strict=True):
            tokens = len(pair[0]) + len(pair[1])
            row = {"offsets": kind, "tokens": tokens, "spans": len(align(*pair))}
            speed = {"nanoseconds_a_token": cost / tokens * 1e9, "million_tokens_a_second": tokens / cost / 1e6}
            rows.append(row | speed)
    return rows


def measure_plain() -> dict[str, Any]:
    teacher, student = offsets(1_000, 1, "tidy"), offsets(1_000, 2, "tidy")
    lists = [[(int(a), int(b)) for a, b in side] for side in (teacher, student)]
    plain, fast = best([lambda: plain_align(*lists), lambda: align(teacher, student)], 3, [1, 1000])
    return {"tokens": len(teacher) + len(student), "plain_seconds": plain, "seconds": fast, "gain": plain / fast}


def measure_encode(examples: Sequence[Example], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for names in (("mistral", "qwen"), ("deepseek", "byte-level"), ("unigram", "byte-level")):
        teacher, student = (load(name) for name in names)
        if teacher is None or student is None:
            continue
        settings = {"prompt": PAPER_PROMPT, "max_length": 320, "max_prompt": 256}
        encode = PairEncoder(teacher, student, teacher_template="plain", student_template="plain", **settings)
        audit = AlignmentAudit(shared_vocabulary(teacher, student))
        rendered = [render(example, "plain", PAPER_PROMPT) for example in examples]
        texts = [each.prompt + each.response for each in rendered]

        def tokenize(texts: list[str] = texts, sides: tuple[Any, Any] = (teacher, student)) -> None:
            for side in sides:
                for encoding in side.backend_tokenizer.encode_batch(texts):
                    _ = encoding.ids, encoding.offsets

        def prepare(encode: PairEncoder = encode, audit: AlignmentAudit = audit) -> None:
            for item in encode(examples):
                audit.add(item)

        alone, all_of_it = best([tokenize, prepare], rounds)
        rows.append(
            {
                "pair": " / ".join(names),
                "examples": len(examples),
                "tokenizations_seconds": alone,
                "encode_and_audit_seconds": all_of_it,
                "share_of_speed": alone / all_of_it,
            }
        )
    return rows


def measure_shared(examples: Sequence[Example]) -> list[dict[str, Any]]:
    rows = []
    for names in PAIRS:
        teacher, student = (load(name) for name in names)
        if teacher is None or student is None:
            continue
        settings = {"prompt": PAPER_PROMPT, "max_length": 4096, "max_prompt": 2048}
        encode = PairEncoder(teacher, student, teacher_template="plain", student_template="plain", **settings)
        exact, wide = (shared_vocabulary(teacher, student, first_tokens=option) for option in (False, True))
        aligned = [item for item in encode(examples) if isinstance(item, AlignedExample)]
        ids = np.concatenate([item.student_ids[item.student_response :] for item in aligned])
        rows.append(
            {
                "pair": " / ".join(names),
                "raw_strings": len(set(teacher.get_vocab()) & set(student.get_vocab())),
                "by_bytes": len(exact),
                "with_first_tokens": len(wide),
                "student_vocabulary": exact.student_size,
                "response_tokens_inside": float(np.isin(ids, exact.student_ids).mean()),
                "inside_with_first_tokens": float(np.isin(ids, wide.student_ids).mean()),
            }
        )
    return rows


def read_examples(path: Path | None, count: int = 500) -> list[Example]:
    """Examples of a JSONL file, or generated ones."""
    if path is None:
        words = re.findall(r"\S+", "the quick brown fox jumps over a lazy dog while naïve cafés close at 17.45 in 東京")
        random = np.random.default_rng(0)
        texts = [[" ".join(random.choice(words, n)) for n in (12, 90, 40)] for _ in range(count)]
        return [Example(str(k), *parts) for k, parts in enumerate(texts)]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:count]]
    return [Example(str(row["id"]), row["instruction"], row["response"], row.get("context", "")) for row in rows]


def claims(results: dict[str, Any]) -> dict[str, bool]:
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in results["align"]:
        by_kind.setdefault(row["offsets"], []).append(row)
    found = {}
    for kind, rows in by_kind.items():
        costs = [row["nanoseconds_a_token"] for row in rows]
        speed = next(row["million_tokens_a_second"] for row in rows if row["tokens"] > 100_000) * 1e6
        found[f"{kind}: at least {SPEED / 1e6:g} million tokens a second at 200,000 ({speed / 1e6:.1f})"] = (
            speed >= SPEED
        )
        ends = max(costs[0] / costs[-1], costs[-1] / costs[0])
        found[f"{kind}: cost a token at 2,000 and at 2,000,000 within {FLATNESS}x ({ends:.2f})"] = ends <= FLATNESS
        growth = max(later / min(costs[: k + 1]) for k, later in enumerate(costs))
        found[f"{kind}: cost a token never above {FLATNESS}x that of a smaller size ({growth:.2f})"] = (
            growth <= FLATNESS
        )
    gain = results["plain"]["gain"]
    found[f"at least {GAIN:g}x the plain quadratic LCS at 2,000 tokens ({gain:,.0f})"] = gain >= GAIN
    for row in results["encode"]:
        share = row["share_of_speed"]
        found[f"{row['pair']}: at least {ENCODE:g} of the speed of the tokenizations ({share:.2f})"] = share >= ENCODE
    for row in results["shared"]:
        if "byte-level" not in row["pair"]:
            sizes = f"{row['by_bytes']:,} against {row['raw_strings']:,}"
            found[f"{row['pair']}: more shared by bytes than by strings ({sizes})"] = (
                row["by_bytes"] > row["raw_strings"]
            )
    return found


def show(console: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ():
        table.add_column(name.replace("_", " "), justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    console.print(table)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if value < 1e3 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--examples", type=Path, help="JSONL with id, instruction, context and response")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    examples = read_examples(options.examples)
    results: dict[str, Any] = {
        "align": measure_align(options.rounds),
        "plain": measure_plain(),
        "encode": measure_encode(examples, min(options.rounds, 5)),
        "shared": measure_shared(examples),
    }
    results["claims"] = claims(results)
    console = Console(width=160)
    for name in ("align", "encode", "shared"):
        show(console, name, results[name])
    show(console, "plain quadratic LCS", [results["plain"]])
    for claim, holds in results["claims"].items():
        console.print(f"{'holds' if holds else 'FAILS'}  {claim}", markup=False)
    write_json(options.json, results)
    return 0 if all(results["claims"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
