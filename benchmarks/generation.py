"""Claim: batched answers are the same texts as one by one, at twice the throughput or more.

    python -m benchmarks.generation [--model FOLDER] [--texts 24] [--tokens 32] [--batch 16] [--json FILE]

Greedy and sampled answers to prompts of 10 to 120 random tokens, by `generate` one by one and in batches, and, when
greedy, by transformers' own `generate` one by one. Without ``--model`` a random Llama of the quickstart student's shape
(width 576, 8 layers, 4,096 tokens) answers. Time is the process's CPU time over its threads, so that a busy machine
tilts the ratio less. Prints a table, writes JSON when asked to; exits with 1 when a claim fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tests.evaluation.conftest import Row

from benchmarks.stamp import write_json
from sra_core.evaluate import Sampling, generate
from sra_core.evaluate.generation import Decoder

GAIN = 2.0
MODES = {"greedy": Sampling(), "sampled": Sampling(1.0)}


class Tokens:
    """A tokenizer that decodes nothing: texts are compared by their tokens."""

    bos_token_id = None
    eos_token_id = 1

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return ""


def build(folder: str | None) -> Any:
    """The model named, or a random one of the quickstart student's shape."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    if folder:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 4096}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "initializer_range": 0.1, "eos_token_id": 1}
    return AutoModelForCausalLM.from_config(LlamaConfig(**shape, **heads)).eval()


def prompts(count: int, vocabulary: int) -> list[Row]:
    random = np.random.default_rng(0)
    made = []
    for index in range(count):
        ids = random.integers(2, vocabulary, int(random.integers(10, 121))).astype(np.int32)
        made.append(Row(f"text-{index}", ids, ids, len(ids), len(ids), "", ""))
    return made


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, CPU seconds and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def library(model: Any, rows: Sequence[Row], tokens: int) -> list[tuple[int, ...]]:
    """transformers' own greedy decoding, one by one."""
    found = []
    for row in rows:
        ids = torch.tensor(row.student_ids[None].astype(np.int64))
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, pad_token_id=1
        )
        found.append(tuple(token for token in made[0, ids.shape[1] :].tolist() if token != 1))
    return found


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a mode and way of batching."""
    model = build(options.model)
    rows, tokenizer = prompts(options.texts, model.config.vocab_size), Tokens(model.config.vocab_size)
    decoders: list[Decoder] = []
    start = Decoder.__init__

    def watched(self: Decoder, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        decoders.append(self)

    Decoder.__init__ = watched  # type: ignore[method-assign]
    results = []
    for mode, sampling in MODES.items():
        single: dict[str, Any] = {}
        for batch in (1, options.batch):
            answers, cpu, wall = timed(
                lambda batch=batch, sampling=sampling: generate(
                    model, tokenizer, rows, sampling=sampling, max_new_tokens=options.tokens, batch_size=batch
                )
            )
            texts, decoder = [answer.tokens for answer in answers], decoders[-1]
            row = {"mode": mode, "way": f"batch of {batch}", "cpu": cpu, "wall": wall, "decisions": decoder.decisions}
            row |= {"settled": decoder.settled, "deviation": decoder.deviation}
            single = single or row | {"texts": texts}
            results.append(row | {"ratio": single["cpu"] / cpu, "same": texts == single["texts"]})
        if mode == "greedy":
            texts, cpu, wall = timed(lambda: library(model, rows, options.tokens))
            row = {"mode": mode, "way": "transformers one by one", "cpu": cpu, "wall": wall}
            results.append(row | {"ratio": single["cpu"] / cpu, "same": texts == single["texts"]})
    Decoder.__init__ = start  # type: ignore[method-assign]
    return results


def show(results: list[dict[str, Any]]) -> None:
    table = Table("mode", "way", "CPU s", "wall s", "throughput", "same texts", "settled alone", "largest deviation")
    for row in results:
        settled = f"{row['settled']} of {row['decisions']}" if "settled" in row else ""
        deviation = f"{row['deviation']:.1e}" if "deviation" in row else ""
        seconds = f"{row['cpu']:.1f}", f"{row['wall']:.1f}"
        table.add_row(row["mode"], row["way"], *seconds, f"{row['ratio']:.2f}x", str(row["same"]), settled, deviation)
    Console(width=140).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a causal language model")
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = measure(options)
    show(results)
    write_json(options.json, {"threads": torch.get_num_threads(), "results": results})
    batched = [row for row in results if row["way"] == f"batch of {options.batch}"]
    return int(any(row["ratio"] < GAIN or not row["same"] for row in batched))


if __name__ == "__main__":
    sys.exit(main())
