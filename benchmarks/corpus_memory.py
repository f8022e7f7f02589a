"""Claim: a corpus of 1,000,000 short examples streams through under 2 GiB of process memory.

    python -m benchmarks.corpus_memory [--examples 1000000] [--json FILE]

Writes a JSONL file of that many examples, passes all of it through the corpus (duplicates looked for, every split
limited, so that the rows are read twice), and prints a table; exits with 1 when the peak is above the bound.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.stamp import write_json
from sra_core.config import CorpusConfig
from sra_core.corpus import Corpus, Example

BOUND_MIB = 2048


def write_examples(path: Path, count: int) -> None:
    """Short examples, every thousandth a duplicate of the one before it."""
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            value = number - 1 if number % 1000 == 999 else number
            record = {"instruction": f"What is {value} plus one?", "response": f"It is {value + 1}, since {value} + 1."}
            stream.write(json.dumps(record) + "\n")


def peak_mib() -> float:
    """Highest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(count: int) -> dict[str, object]:
    """Pass ``count`` generated examples through the corpus; counts, seconds and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "generated.jsonl"
        write_examples(path, count)
        before, start = peak_mib(), time.perf_counter()
        corpus = Corpus(CorpusConfig(source=str(path), max_train=count, max_validation=10_000, max_test=10_000))
        counts = Counter(split if isinstance(item, Example) else item.reason for split, item in corpus)
        seconds = time.perf_counter() - start
    return {
        "examples": count,
        "counts": dict(sorted(counts.items())),
        "seconds": round(seconds, 1),
        "examples_per_second": round(count / seconds),
        "baseline_mib": round(before),
        "peak_mib": round(peak_mib()),
        "bound_mib": BOUND_MIB,
    }


def main() -> int:
    """Measure, print, and write JSON when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(options.examples)
    for name, value in result.items():
        print(f"{name:22} {value}")
    write_json(options.json, result)
    return 0 if peak_mib() <= BOUND_MIB else 1


if __name__ == "__main__":
    raise SystemExit(main())
