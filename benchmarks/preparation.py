"""Claims of the prepare stage: 0.7 of the speed of the two tokenizations alone, the same bytes from more workers, and
memory bounded by a shard: 1,000,000 short examples pass under 2 GiB.

    python benchmarks/preparation.py [--examples 20000] [--workers 1 2] [--million] [--json FILE]

Each run of the stage is a process of its own, so that its peak memory is its own. Prints a table and exits with 1 when
a claim fails.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sra_core import __version__

SHARE = 0.7
BOUND_MIB = 2048
TEACHER = "random:llama?layers=1&width=16&heads=2&vocabulary=8000&seed=1"
STUDENT = "random:gpt2?layers=1&width=16&heads=2&vocabulary=4000&seed=2"


def write_examples(path: Path, count: int, words: int) -> None:
    """Generated examples of about ``words`` words each, no two alike."""
    from sra_core.config import CorpusConfig
    from sra_core.corpus import Corpus

    texts = [item.response for _, item in Corpus(CorpusConfig()) if hasattr(item, "response")]
    vocabulary = " ".join(texts).split()
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            start = number * 37 % (len(vocabulary) - words)
            response = f"{number}: " + " ".join(vocabulary[start : start + words])
            stream.write(json.dumps({"instruction": f"Text {number}?", "response": response}) + "\n")


def config_for(folder: Path, data: Path, workers: int) -> Any:
    """The smoke recipe on generated data, with tokenizers of a real size."""
    from sra_core.recipes import load_config

    corpus = {"source": str(data), "max_train": None, "max_validation": 1000, "max_test": 1000}
    return load_config(
        "smoke",
        {
            "store": str(folder / f"store-{workers}"),
            "teacher": {"source": TEACHER},
            "student": {"source": STUDENT},
            "corpus": corpus,
            "alignment": {"workers": workers, "examples_per_shard": 1024, "max_length": 320, "max_prompt": 256},
        },
    )


def tokenize_alone(folder: Path, data: Path, workers: int) -> dict[str, Any]:
    """Both tokenizations of every text with offsets, in batches, and nothing else."""
    from sra_core.corpus import Corpus, Example, render
    from sra_core.models import load_tokenizer

    config = config_for(folder, data, workers)
    tokenizers = [load_tokenizer(config.teacher), load_tokenizer(config.student)]
    texts = []
    for _, item in Corpus(config.corpus):
        if isinstance(item, Example):
            rendered = render(item, "plain", config.corpus.prompt)
            texts.append(rendered.prompt + rendered.response)
    started = time.perf_counter()
    for start in range(0, len(texts), 1024):
        for tokenizer in tokenizers:
            tokenizer(texts[start : start + 1024], return_offsets_mapping=True)
    return {"seconds": time.perf_counter() - started, "examples": len(texts)}


def run_stage(folder: Path, data: Path, workers: int) -> dict[str, Any]:
    """The prepare stage; models are made beforehand."""
    from sra_core import stages

    config = config_for(folder, data, workers)
    stages.folder_of("prepare", config)
    started = time.perf_counter()
    manifest = stages.prepare(config)
    seconds = time.perf_counter() - started
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "seconds": seconds,
        "examples": sum(shard.rows for shard in manifest.shards),
        "peak_mib": sum(peaks) / (2**20 if sys.platform == "darwin" else 2**10),
        "content": {shard.name: shard.sha256 for shard in manifest.shards},
    }


def apart(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The result of a function run in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_unpooled, (work, arguments))


def _unpooled(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    multiprocessing.current_process()._config["daemon"] = False  # the stage starts workers of its own
    return work(*arguments)


def measure(examples: int, workers: list[int], words: int) -> dict[str, Any]:
    """Seconds, examples a second, share of tokenization alone and peak memory, by number of workers."""
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), Path(name) / "generated.jsonl"
        write_examples(data, examples, words)
        alone = apart(tokenize_alone, folder, data, 1)
        runs = {count: apart(run_stage, folder, data, count) for count in workers}
    same = all(run["content"] == runs[workers[0]]["content"] for run in runs.values())
    rows = [
        {
            "workers": count,
            "seconds": round(run["seconds"], 1),
            "examples_per_second": round(run["examples"] / run["seconds"]),
            "share_of_tokenization": round(alone["seconds"] / run["seconds"], 3),
            "peak_mib": round(run["peak_mib"]),
        }
        for count, run in runs.items()
    ]
    return {"examples": examples, "tokenization_seconds": round(alone["seconds"], 1), "same_bytes": same, "runs": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=60, help="words of a response")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--million", action="store_true", help="also pass 1,000,000 short examples")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = [measure(options.examples, options.workers, options.words)]
    if options.million:
        results.append(measure(1_000_000, options.workers[-1:], 8))
    good = True
    for result in results:
        print(f"{result['examples']:,} examples; both tokenizations alone: {result['tokenization_seconds']} s")
        for row in result["runs"]:
            print("  " + ", ".join(f"{name} {value}" for name, value in row.items()))
        print(f"  the same bytes whatever the workers: {result['same_bytes']}")
        good &= result["same_bytes"] and max(row["peak_mib"] for row in result["runs"]) < BOUND_MIB
    good &= results[0]["runs"][0]["share_of_tokenization"] >= SHARE
    print("every claim holds" if good else "A CLAIM FAILS")
    if options.json:
        stamp = {"sra": __version__, "when": datetime.now(UTC).isoformat(timespec="seconds")}
        machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        options.json.write_text(json.dumps({"results": results, **stamp, **machine}, indent=2) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
