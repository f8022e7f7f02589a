"""Claims of the prepare stage: 0.7 of the speed of the two tokenizations alone, the same bytes from more workers, and
memory bounded by a shard: 1,000,000 short examples pass under 2 GiB.

    python -m benchmarks.preparation [--examples 12000] [--rounds 3] [--million] [--json FILE]

The two tokenizations alone are transformers' own batched calls with offsets, as anyone would make them, over texts that
are rendered beforehand. Beside them stand the bare calls below those (`encode_batch` with Rust's threads, ids and
offsets read out and thrown away). They and the stage run in turns, several rounds; shares are of medians. Each run is a
process of its own, so that its peak memory is its own; loading models and libraries is in none of the tokenizations'
times. Beside seconds stands the stage's processor time against that of the bare calls. Scaling is measured in cores:
one worker process held to one core against two workers on two.

Takes about three minutes on two quiet cores, `--million` a quarter of an hour more. Exits with 1 when a claim fails.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.stamp import write_json

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
    from sra_core.config.load import load_config

    corpus = {"source": str(data), "max_train": None, "max_validation": 1000, "max_test": 1000}
    return load_config(
        "smoke",
        {
            "store": str(folder),
            "teacher": {"source": TEACHER},
            "student": {"source": STUDENT},
            "corpus": corpus,
            "alignment": {"workers": workers, "examples_per_shard": 1024, "max_length": 320, "max_prompt": 256},
        },
    )


def _processor() -> float:
    """Seconds of processor time of this process and its children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def tokenize_alone(data: Path, bare: bool) -> dict[str, Any]:
    """Both tokenizations of every text, in the stage's batches, and nothing else."""
    from sra_core.corpus import Corpus, Example, render
    from sra_core.models import load_tokenizer

    config = config_for(data.parent, data, 1)
    tokenizers = [load_tokenizer(ref) for ref in (config.teacher, config.student)]
    texts = []
    for _, item in Corpus(config.corpus):
        if isinstance(item, Example):
            rendered = render(item, "plain", config.corpus.prompt)
            texts.append(rendered.prompt + rendered.response)
    started, used = time.perf_counter(), _processor()
    for start in range(0, len(texts), 1024):
        batch = texts[start : start + 1024]
        for tokenizer in tokenizers:
            if bare:
                for encoding in tokenizer.backend_tokenizer.encode_batch(batch):
                    _ = encoding.ids, encoding.offsets
            else:
                tokenizer(batch, return_offsets_mapping=True)
    return {"seconds": time.perf_counter() - started, "processor": _processor() - used}


def run_stage(data: Path, workers: int, cores: int) -> dict[str, Any]:
    """The prepare stage in a fresh store, on so many cores (0: all)."""
    from sra_core import stages
    from sra_core.runs import Run

    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    with tempfile.TemporaryDirectory() as store:
        config = config_for(Path(store), data, workers)
        run = Run(config)
        run.identity("prepare")
        started, used = time.perf_counter(), _processor()
        manifest = stages.prepare(run)
        seconds, processor = time.perf_counter() - started, _processor() - used
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "seconds": seconds,
        "processor": processor,
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


SETTINGS = {"1 worker": (1, 0), "2 workers": (2, 0), "1 worker, 1 core": (1, 1)}


def measure(folder: Path, examples: int, words: int, rounds: int) -> dict[str, Any]:
    """Median seconds of the tokenizations and of every setting of the stage, taken in turns."""
    data = folder / "generated.jsonl"
    write_examples(data, examples, words)
    alone: dict[str, list[dict[str, float]]] = {"transformers": [], "bare calls": []}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
    for _ in range(rounds):
        for way, found in alone.items():
            found.append(apart(tokenize_alone, data, way == "bare calls"))
        for name, (workers, cores) in SETTINGS.items():
            runs[name].append(apart(run_stage, data, workers, cores))
    tokenization = {way: statistics.median(run["seconds"] for run in found) for way, found in alone.items()}
    processor = [
        statistics.median(run["processor"] for run in each) for each in (runs["1 worker"], alone["bare calls"])
    ]
    seconds = {name: statistics.median(run["seconds"] for run in each) for name, each in runs.items()}
    contents = [run["content"] for each in runs.values() for run in each]
    return {
        "examples": examples,
        "tokenization_seconds": {way: round(value, 2) for way, value in tokenization.items()},
        "stage_seconds": {name: round(value, 2) for name, value in seconds.items()},
        "share_of_tokenization": round(tokenization["transformers"] / seconds["1 worker"], 3),
        "share_of_bare_calls": round(tokenization["bare calls"] / seconds["1 worker"], 3),
        "processor_time_against_bare_calls": round(processor[0] / processor[1], 3),
        "two_workers_against_one_core": round(seconds["1 worker, 1 core"] / seconds["2 workers"], 2),
        "same_bytes": all(content == contents[0] for content in contents),
        "peak_mib": round(max(run["peak_mib"] for each in runs.values() for run in each)),
    }


def measure_million(folder: Path) -> dict[str, Any]:
    """Peak memory of 1,000,000 short examples."""
    data = folder / "million.jsonl"
    write_examples(data, 1_000_000, 8)
    run = apart(run_stage, data, 1, 0)
    return {"kept": run["examples"], "seconds": round(run["seconds"]), "peak_mib": round(run["peak_mib"])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=12_000, help="0 leaves this part out")
    parser.add_argument("--words", type=int, default=60, help="words of a response")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--million", action="store_true", help="also pass 1,000,000 short examples")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    claims: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as name:
        if options.examples:
            found = results["speed"] = measure(Path(name), options.examples, options.words, options.rounds)
            claims[f"at least {SHARE} of tokenization alone"] = found["share_of_tokenization"] >= SHARE
            claims["the same bytes whatever the workers"] = found["same_bytes"]
        if options.million:
            results["million"] = measure_million(Path(name))
            claims[f"a million examples under {BOUND_MIB} MiB"] = results["million"]["peak_mib"] < BOUND_MIB
    for part, figures in results.items():
        print(part, *(f"  {key}: {value}" for key, value in figures.items()), sep="\n")
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    write_json(options.json, {"results": results, "claims": claims})
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
