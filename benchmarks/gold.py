"""Claim: a training step of SRA costs at most half of TRL's GOLD step on the same texts.

    .venv/bin/pip install -e '.[benchmark]'
    python -m benchmarks.gold [--recipe quality --batch 8 --steps 4]

Both train the recipe's student from the same start, in float32, on the same examples: SRA reads the teacher from the
cache that ``sra cache`` made (it is made first where there is none), GOLD (``use_uld_loss`` with its hybrid loss,
``lmbda=0``: no generation) runs the teacher beside the student, as it must.  Both sides get the texts as they were cut
for SRA; GOLD adds its chat template around them, and the student's tokenizer borrows the teacher's template for that.

Each way runs in a process of its own, in turn, several rounds: the smallest mean processor time of the steps after the
first counts, and the process's peak memory.  Prints a table, writes JSON when asked to; exits with 1 when the claim
fails.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.stamp import write_json
from sra_core import stages
from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.models import choose_layout, initial_student, layer_count, load_head, load_model, resolve_layer
from sra_core.objective import build_objective, student_layers
from sra_core.shards import PreparedSet, TeacherSet
from sra_core.shards.prepared import STUDENT_TOKENIZER, TEACHER_TOKENIZER
from sra_core.training.context import distill_data, objective_context
from sra_core.training.module import DistillModule

BOUND = 0.5
WAYS = ("sra", "sft", "gold")


def settled(options: argparse.Namespace) -> RunConfig:
    """The recipe in float32, without tracking."""
    changes: dict[str, Any] = {"tracking": {"enabled": False}, "distill": {"precision": "float32"}}
    if options.store:
        changes["store"] = options.store
    return load_config(options.recipe, changes)


def ours(options: argparse.Namespace, config: RunConfig, name: str) -> list[float]:
    """Processor time of each step of this project, seconds."""
    config.objective.name = name
    prepared, cache = stages.prepare(config), stages.cache(config)
    student = initial_student(config, prepared)[0].float().train()
    choose_layout(student)
    context = objective_context(config, Path(prepared.folder), Path(cache.folder), student)
    layers = [resolve_layer(layer_count(student), layer) for layer in student_layers(config.objective)]
    module = DistillModule(student, build_objective(config.objective, context), layers)
    last = load_head(Path(cache.folder)).layers
    data = distill_data(config, PreparedSet(prepared, "train"), TeacherSet(cache, "train"), last)
    optimizer, times = torch.optim.AdamW(module.parameters(), lr=1e-5), []
    for step in range(options.steps):
        began = time.process_time()
        batch = data.batch(range(step * options.batch, (step + 1) * options.batch), 0)
        module(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.process_time() - began)
    return times


def gold(options: argparse.Namespace, config: RunConfig) -> list[float]:
    """Processor time of each step of GOLDTrainer, seconds."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

    prepared = stages.prepare(config)
    student = initial_student(config, prepared)[0].float().train()
    folder = Path(prepared.folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / STUDENT_TOKENIZER)
    with tempfile.TemporaryDirectory() as scratch:
        theirs = AutoTokenizer.from_pretrained(folder / TEACHER_TOKENIZER)
        theirs.save_pretrained(scratch)
        tokenizer.chat_template = theirs.chat_template
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        settings = GOLDConfig(
            output_dir=f"{scratch}/out",
            use_uld_loss=True,
            uld_use_hybrid_loss=True,
            lmbda=0.0,
            per_device_train_batch_size=options.batch,
            max_steps=options.steps,
            max_length=2 * config.alignment.max_length,
            teacher_tokenizer_name_or_path=scratch,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
        )
        teacher = load_model(config.teacher).float().eval()
        rows = [PreparedSet(prepared, "train")[place] for place in range(options.steps * options.batch)]
        trainer = GOLDTrainer(
            model=student,
            teacher_model=teacher,
            args=settings,
            train_dataset=Dataset.from_list([messages(row, tokenizer) for row in rows]),
            processing_class=tokenizer,
        )
        clock = Clock()
        trainer.add_callback(
            type("Steps", (TrainerCallback,), {"on_step_begin": clock.begin, "on_step_end": clock.end})()
        )
        trainer.train()
    return clock.times


def messages(row: Any, tokenizer: Any) -> dict[str, Any]:
    """An example's text, as far as SRA trains on it, as a conversation."""
    cut = row.student_response
    prompt, response = (
        tokenizer.decode(ids, skip_special_tokens=True) for ids in (row.student_ids[:cut], row.student_ids[cut:])
    )
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]}


class Clock:
    """Processor time of each step, as a trainer's callbacks see it."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.began = 0.0

    def begin(self, *_: Any, **__: Any) -> None:
        self.began = time.process_time()

    def end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.process_time() - self.began)


def child(options: argparse.Namespace) -> dict[str, float]:
    """One way, measured in this process."""
    torch.set_num_threads(1)
    config = settled(options)
    times = gold(options, config) if options.way == "gold" else ours(options, config, options.way)
    later = times[1:]
    return {
        "cpu_s_per_step": sum(later) / len(later),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quality")
    parser.add_argument("--store", help="a store that holds the prepared texts and the cache already")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure, print, write JSON when asked to."""
    options = parse()
    if options.way:
        print(json.dumps(child(options)))
        return 0
    best: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.gold", *sys.argv[1:], "--way", way]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            best[way] = {key: min(value, best.get(way, found)[key]) for key, value in found.items()}
    ratio = best["sra"]["cpu_s_per_step"] / best["gold"]["cpu_s_per_step"]
    for way, values in best.items():
        print(f"{way:5}  {values['cpu_s_per_step']:.2f} s a step  {values['peak_mib']:.0f} MiB")
    holds = ratio <= BOUND
    print(f"sra / gold {ratio:.2f}: {'the claim holds' if holds else 'THE CLAIM FAILS'}")
    write_json(options.json, {"ways": best, "sra_over_gold": ratio, "claim_holds": holds})
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
