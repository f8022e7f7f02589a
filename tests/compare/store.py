"""A store with finished evaluations, made from random numbers: what a comparison reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sra_core.compare import ANSWER_SCHEMA, answer_scores
from sra_core.shards import Manifest, StageFolder

WORDS = ["the", "span", "token", "teacher", "student", "aligns", "text", "model", "learns", "from", "centre", "mass"]


def sentence(seed: int, length: int) -> str:
    random = np.random.default_rng(seed)
    return " ".join(random.choice(WORDS, length))


def garbled(text: str, share: float, random: np.random.Generator) -> str:
    return " ".join(str(random.choice(WORDS)) if random.random() < share else word for word in text.split())


def write_run(
    store: Path | str,
    quality: dict[str, float],
    *,
    learning_rate: float = 5e-4,
    examples: int = 40,
    seeds: tuple[int, ...] = (10,),
    objective: str = "sra",
    more: dict[str, object] | None = None,
    skip: int = 0,
    datasets: tuple[str, ...] = ("test",),
) -> Path:
    """One run.

    ``quality`` gives, by system, the share of answer words that are wrong; examples below ``skip`` lack. On each data
    set after the first, a third more of the words are wrong.
    """
    prepared = _commit(store, "prepare", {"corpus": {"source": "python-docs"}, "teacher": {"tokenizer": "abc"}})
    identity = {
        "objective": {"name": objective, **(more or {})},
        "distill": {"learning_rate": learning_rate},
        "seed": 0,
    }
    distilled = StageFolder(store, "distill", identity)
    distilled.path.mkdir(parents=True, exist_ok=True)
    lines = [{"step": step, "loss": 3 * np.exp(-step / 40) + 1} for step in range(0, 201, 10)]
    for line in lines[::5]:
        line["validation/bits_per_byte"] = 4.5 * np.exp(-line["step"] * learning_rate * 40) + 1.9
    (distilled.path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {"distill/seconds": 431.0, "distill/best_bits_per_byte": 1.9, "distill/peak_memory_bytes": 3.2e9}
    trained = distilled.commit(upstream=[prepared], files=[distilled.entry("history.jsonl")], metrics=metrics)
    settings = {"test_name": "test", "datasets": [{"name": name} for name in datasets[1:]]}
    identity = {"students": distilled.fingerprint, "quality": quality, "evaluate": settings}
    evaluated = StageFolder(store, "evaluate", identity)
    evaluated.path.mkdir(parents=True, exist_ok=True)
    for system, wrong in quality.items():
        random = np.random.default_rng(int(1000 * wrong))
        for number, dataset in enumerate(datasets):
            share = wrong + (1 - wrong) * number / 3
            table = _likelihood(dataset, examples, share, random, skip)
            pq.write_table(table, evaluated.path / f"likelihood-{dataset}-{system}.parquet")
            for seed in seeds:
                table = _answers(dataset, examples, share, seed, random, skip)
                pq.write_table(table, evaluated.path / f"answers-{dataset}-{system}-{seed}-00000.parquet")
    names = sorted(path.name for path in evaluated.path.glob("*.parquet"))
    evaluated.commit(
        upstream=[prepared, trained],
        files=[evaluated.entry(name) for name in names],
        counts={"examples": examples, "leaked_exact_prompt": 1, "leaked_near_response": 2, "excluded": 3},
    )
    return evaluated.path


def _commit(store: Path | str, stage: str, identity: dict) -> Manifest:
    folder = StageFolder(store, stage, identity)
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder.commit(metrics={"audit/coverage": 0.9})


def _source(index: int) -> str:
    return "dolly" if index % 3 else "self-instruct"


def _prompt(index: int) -> str:
    return f"### Instruction:\nQuestion {index}: " + sentence(index, 8 + index) + "?\n\n### Response:\n"


def _likelihood(dataset: str, examples: int, wrong: float, random: np.random.Generator, skip: int) -> pa.Table:
    size = np.array([len(sentence(500 + i, 12)) for i in range(examples)])
    nats = size * (1 + 1.5 * wrong + 0.1 * random.normal(size=examples))
    columns = {
        "dataset": [dataset] * examples,
        "id": [f"ex-{i}" for i in range(examples)],
        "source": [_source(i) for i in range(examples)],
        "prompt_bytes": [len(_prompt(i)) for i in range(examples)],
        "nats": nats,
        "bytes": size,
        "tokens": size // 4,
    }
    return pa.table(columns).slice(skip)


def _answers(dataset: str, examples: int, wrong: float, seed: int, random: np.random.Generator, skip: int) -> pa.Table:
    references = [sentence(500 + i, 12) for i in range(examples)]
    answers = [garbled(text, wrong, random) if i != 5 else "" for i, text in enumerate(references)]
    columns = {
        "dataset": [dataset] * examples,
        "id": [f"ex-{i}" for i in range(examples)],
        "source": [_source(i) for i in range(examples)],
        "seed": [seed] * examples,
        "prompt": [_prompt(i) for i in range(examples)],
        "reference": references,
        "other_references": [[]] * examples,
        "answer": answers,
        "tokens": [[1, 2]] * examples,
        "finish_reason": ["length" if i % 7 == 0 else "stop" for i in range(examples)],
        "prompt_tokens": [9] * examples,
        "prompt_cut": [0] * examples,
        **answer_scores(references, answers),
    }
    return pa.table(columns, schema=ANSWER_SCHEMA).slice(skip)
