"""Claims: the span-logit KL is small and no slower than its plain form; an SRA step from the cache is cheap.

    python -m benchmarks.objective logit [--spans 1024 --vocabulary 32000 --width 1024]
    python -m benchmarks.objective step [--student small --teacher large --batch 8 16 --length 128 320 1024]
    python -m benchmarks.objective step --student 120M --teacher 1.8B --batch 8 --length 128  # one cell
    python -m benchmarks.objective step --ragged --ways "plain sft" sra "sra padded" --batch 8 16 32 --length 512

``logit``: peak memory at most 0.35 and time at most 1.1 of the plain form, forward and backward.
``step``: forward, backward and AdamW update of the same student on the same batch in five ways: ``plain sft`` (padded,
the model's own full logits), ``sft`` and ``sra`` (this project, the teacher from the cache), ``sra padded`` (the same,
its texts padded) and ``paper`` (padded, teacher online, eager attention with full maps, full-vocabulary logits, then
selection).  SRA costs at most 1.15 of plain SFT and at most 0.5 of the paper's way.  With ``--ragged`` the texts have
the lengths of a corpus of instructions (lognormal, a median of 90 tokens, at most ``--length``): SRA then costs at most
0.6 of what it costs padded and 0.65 of plain SFT.

Every variant runs in a process of its own, all of them in turn, several rounds; the smallest time counts.  Memory is
the process's peak above what it held before the first run (``logit``) or its whole peak (``step``); on a GPU the
allocator's.  Random weights and tokens.  A variant that needs more than ``--memory`` (estimated before it starts) is
left out and named with its need.  Prints a table, writes JSON when asked to; exits with 1 when a claim fails.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.stamp import write_json
from sra_core.config import ObjectiveConfig
from sra_core.models import choose_layout, layer_count, lm_head, mapped_states
from sra_core.models.texts import Texts
from sra_core.objective import (
    Batch,
    Head,
    ObjectiveContext,
    StudentOutput,
    TeacherSpans,
    build_objective,
    pool_spans,
    span_cosine_loss,
    span_geometry_loss,
    span_logit_kl,
)
from tests.objective import plain

Step = Callable[[], Any]
LOGIT_BOUNDS = {"time": 1.1, "memory": 0.35}
STEP_BOUNDS = {"plain sft": 1.15, "paper": 0.5}
RAGGED_BOUNDS = {"plain sft": 0.65, "sra padded": 0.6}
WAYS = ["plain sft", "sft", "sra", "sra padded", "paper"]
MEDIAN, SPREAD, SHORTEST = 90, 0.6, 24
"""Tokens of ragged texts, lognormal: 52 and 61 % of 8 and 16 of them are padding (of the quickstart 53 and 61)."""
SHARED_SHARE = 0.8
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"kind": "qwen2", "layers": 3, "width": 32, "heads": 2, "inner": 64, "vocabulary": 1024},
    "small": {"kind": "qwen2", "layers": 6, "width": 256, "heads": 4, "inner": 768, "vocabulary": 8192},
    "large": {"kind": "qwen2", "layers": 12, "width": 512, "heads": 8, "inner": 1536, "vocabulary": 16384},
    "120M": {"kind": "gpt2", "layers": 12, "width": 768, "heads": 12, "inner": 3072, "vocabulary": 50257},
    "1.1B": {"kind": "llama", "layers": 22, "width": 2048, "heads": 32, "kv": 4, "inner": 5632, "vocabulary": 32000},
    "1.8B": {"kind": "qwen2", "layers": 24, "width": 2048, "heads": 16, "inner": 5504, "vocabulary": 151936},
    "7B": {"kind": "qwen2", "layers": 28, "width": 3584, "heads": 28, "kv": 4, "inner": 18944, "vocabulary": 152064},
}


def random_model(name: str, attention: str, device: str, dtype: torch.dtype) -> nn.Module:
    """A model of that shape with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = MODELS[name]
    sizes = {
        "vocab_size": shape["vocabulary"],
        "hidden_size": shape["width"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "max_position_embeddings": 2048,
    }
    if shape["kind"] != "gpt2":
        sizes |= {"intermediate_size": shape["inner"], "num_key_value_heads": shape.get("kv", shape["heads"])}
    torch.manual_seed(0)
    with torch.device(device):
        config = AutoConfig.for_model(shape["kind"], **sizes)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)


def random_batch(options: argparse.Namespace, texts: int, length: int, layers: list[tuple[int, int]]) -> Batch:
    """Texts of which the second half is the response, cut into spans of one, one and two tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.full((texts,), length)
    if options.ragged:
        parts = (torch.randperm(texts, generator=generator) + 0.5) / texts  # every length as often as it comes
        normal = torch.erfinv(2 * parts - 1) * 2**0.5
        lengths = (MEDIAN * (SPREAD * normal).exp()).long().clamp(SHORTEST, length)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    tokens, width = int(starts[-1]), MODELS[options.teacher]["width"]
    ids = torch.randint(MODELS[options.student]["vocabulary"], (tokens,), generator=generator)
    teacher_ids = torch.randint(MODELS[options.teacher]["vocabulary"], (tokens,), generator=generator)
    labels, ranges, text = ids.clone(), [], []
    for row, (begin, end) in enumerate(pairwise(starts.tolist())):
        at = begin + (end - begin) // 2
        labels[begin:at] = -100
        while at + 4 <= end:
            ranges += [(at, at + 1), (at + 1, at + 2), (at + 2, at + 4)]
            text += [row] * 3
            at += 4
    spans = {
        layer: TeacherSpans(
            torch.randn(len(text), width, generator=generator), torch.rand(len(text), generator=generator)
        )
        for layer, _ in layers
    }
    names = [str(row) for row in range(texts)]
    every = torch.tensor(ranges)
    return Batch(
        names, ids, starts, labels, torch.tensor(text), every, spans, teacher_ids=teacher_ids, teacher_range=every
    )


class StepBench:
    """The same student, batch and optimizer, trained one step in a chosen way."""

    def __init__(self, options: argparse.Namespace, way: str, texts: int, length: int) -> None:
        self.device, self.dtype = options.device, torch.bfloat16 if options.device == "cuda" else torch.float32
        eager = way == "paper"
        self.student = random_model(options.student, "eager" if eager else "sdpa", self.device, self.dtype).train()
        self.teacher: Any = random_model(options.teacher, "eager", self.device, self.dtype).eval() if eager else None
        last = MODELS[options.teacher]["layers"], layer_count(self.student)
        self.layers = [(last[0] - 2, last[1] - 1), last]
        self.batch = random_batch(options, texts, length, self.layers).to(self.device)
        self.texts = Texts.of(self.batch.starts, len(self.batch.input_ids), self.batch.sizes.longest)
        choose_layout(self.student, "padded" if way in ("sra padded", "paper", "plain sft") else "flat")
        self.shared = torch.arange(
            int(SHARED_SHARE * min(MODELS[m]["vocabulary"] for m in (options.student, options.teacher)))
        )
        self.shared = self.shared.to(self.device)
        self.objective = build_objective(
            ObjectiveConfig(name="sft" if "sft" in way else "sra", layers=self.layers), self.context(options)
        ).to(self.device, self.dtype)
        trained = [*self.student.parameters(), *self.objective.parameters()]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        self.run: Step = {"plain sft": self.plain_sft, "paper": self.paper}.get(way, self.ours)

    def context(self, options: argparse.Namespace) -> ObjectiveContext:
        width, rows = MODELS[options.teacher]["width"], len(self.shared)
        head = Head(0.02 * torch.randn(rows, width, device=self.device, dtype=self.dtype))
        return ObjectiveContext(self.layers, MODELS[options.student]["width"], width, head, self.shared, self.shared)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.run().backward()
        self.optimizer.step()

    def plain_sft(self) -> Tensor:
        return self.full_cross_entropy(self.student(**self.padded(self.batch.input_ids)).logits)

    def padded(self, ids: Tensor) -> dict[str, Tensor]:
        """What a model takes of (N,) tokens without this project."""
        return {"input_ids": self.texts.padded(ids), "attention_mask": self.texts.real.long()}

    def full_cross_entropy(self, logits: Tensor) -> Tensor:
        labels = self.texts.padded(self.batch.labels).masked_fill(~self.texts.real, -100)
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())

    def ours(self) -> Tensor:
        layers = [layer for _, layer in self.layers] if hasattr(self.objective, "projectors") else []
        batch = self.batch
        states = mapped_states(self.student, batch.input_ids, batch.starts, layers, batch.sizes.longest)
        output = StudentOutput(states.hidden, states.weights, states.final, lm_head(self.student))
        loss: Tensor = self.objective(self.batch, output)["loss"]
        return loss

    def paper(self) -> Tensor:
        """Both models whole, every attention map, all logits; shared rows selected from full-vocabulary ones."""
        batch, config = self.batch, self.objective.config
        wanted = {"output_attentions": True, "output_hidden_states": True, "use_cache": False}
        with torch.no_grad():
            theirs = self.teacher(**self.padded(batch.teacher_ids), **wanted)
        mine = self.student(**self.padded(batch.input_ids), **wanted)
        loss = config.alpha * self.full_cross_entropy(mine.logits)
        rest = mine.logits.new_zeros((), dtype=torch.float32)
        for (upper, lower), projector in zip(self.layers, self.objective.projectors, strict=True):
            teacher, mass = self.centers(theirs, upper)
            student, _ = self.centers(mine, lower)
            rest = rest + span_cosine_loss(student, teacher, mass, projector, 1.0, batch.span_text, batch.texts)
        rest = rest + config.geometry * span_geometry_loss(student, teacher, mass, 1.0, batch.span_text, batch.texts)
        heads = (self.teacher.get_output_embeddings().weight, self.student.get_output_embeddings().weight)
        p, q = (
            plain.logits(c.to(self.dtype), head)[:, self.shared].float()
            for c, head in zip((teacher, student), heads, strict=True)
        )
        return loss + (1 - config.alpha) * (rest + plain.kl(p, q, config.temperature).mean())

    def centers(self, output: Any, layer: int) -> tuple[Tensor, Tensor]:
        each, last = torch.arange(len(self.texts.real)), self.texts.real.sum(-1) - 1
        rows = output.attentions[layer - 1][each, :, last].float().sum(1)
        rows = rows / rows.sum(-1, keepdim=True)
        flat = self.texts.flat
        return pool_spans(flat(output.hidden_states[layer]), flat(rows), self.batch.span_range)


def logit_step(options: argparse.Namespace, way: str, scale: int = 1) -> Step:
    """Forward and backward of the KL at the asked size divided by ``scale``."""
    torch.manual_seed(0)
    spans, entries, width = options.spans // scale, options.vocabulary // scale, options.width
    leaf = {"device": options.device, "requires_grad": True}
    student, head = torch.randn(spans, width, **leaf), torch.empty(entries, width, **leaf)
    teacher, other = (
        torch.randn(spans, width, device=options.device),
        torch.empty(entries, width, device=options.device),
    )
    for weight in (head, other):
        nn.init.normal_(weight, std=width**-0.5)

    def run() -> None:
        student.grad = head.grad = None
        if way == "plain":
            value = plain.kl(plain.logits(teacher, other), plain.logits(student, head), 2.0).sum()
        else:
            value = span_logit_kl(student, teacher, head, other)
        (0.5 * value).backward()

    return run


def peak(device: str) -> float:
    """Highest memory of this process so far, MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def timed(run: Step, device: str, repeats: int) -> dict[str, float]:
    """Smallest wall and processor time of a run, seconds."""
    found = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return {"wall_s": min(wall for wall, _ in found), "cpu_s": min(cpu for _, cpu in found)}


def child(options: argparse.Namespace) -> dict[str, float]:
    """One variant, measured in this process."""
    torch.set_num_threads(options.threads)
    if options.what == "logit":
        logit_step(options, options.way, scale=32)()  # libraries load and thread pools start before the baseline
        run = logit_step(options, options.way)
        cuda = options.device == "cuda"
        before = torch.cuda.memory_allocated() / 2**20 if cuda else psutil.Process().memory_info().rss / 2**20
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        return {**timed(run, options.device, options.repeats), "peak_mib": peak(options.device) - before}
    bench = StepBench(options, options.way, options.batch[0], options.length[0])
    bench.step()
    return {**timed(bench.step, options.device, options.repeats), "peak_mib": peak(options.device)}


def parameters(name: str) -> int:
    """Weights of a model of that shape: attention, feed-forward, embeddings and head; norms and biases are nothing."""
    shape = MODELS[name]
    width, inner = shape["width"], shape["inner"]
    grouped = shape.get("kv", shape["heads"]) / shape["heads"]
    tied = shape["kind"] == "gpt2"
    layer = (2 + 2 * grouped) * width**2 + (2 if tied else 3) * width * inner
    return round(shape["layers"] * layer + (1 if tied else 2) * shape["vocabulary"] * width)


def need(options: argparse.Namespace, way: str, texts: int, length: int) -> float:
    """About how much memory a step takes, GiB: weights, gradients, AdamW's moments, activations, logits, maps.

    Some 20 values of its width are kept of a token in each layer. Full logits exist three times: as they come, in
    float32, and as their gradient. Attention maps exist twice in the student, for its backward.
    """
    size = 2 if options.device == "cuda" else 4
    shape, tokens = MODELS[options.student], texts * length
    values = 4 * parameters(options.student) + 20 * shape["layers"] * tokens * shape["width"]
    if way in ("plain sft", "paper"):
        values += 3 * tokens * shape["vocabulary"]
    if way == "paper":
        teacher = MODELS[options.teacher]
        maps = 2 * shape["layers"] * shape["heads"] + teacher["layers"] * teacher["heads"]
        values += parameters(options.teacher) + tokens * teacher["vocabulary"] + maps * texts * length**2
    return values * size / 2**30


def measure(options: argparse.Namespace, ways: list[str], texts: int, length: int) -> dict[str, dict[str, float]]:
    """Every variant in processes of their own, taking turns; the best of the rounds."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        for way in ways:
            arguments = [arg for arg in sys.argv[1:] if arg != options.what]
            command = [sys.executable, "-m", "benchmarks.objective", options.what, *arguments]
            command += ["--way", way, "--batch", str(texts), "--length", str(length)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            best[way] = {key: min(value, best.get(way, found)[key]) for key, value in found.items()}
    return best


def cells(options: argparse.Namespace) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """Rows of each comparison as it ends, and whether its claims hold.

    Time is the processor's on a CPU, since others may share it.
    """
    clock = "wall_s" if options.device == "cuda" else "cpu_s"
    if options.what == "logit":
        found = measure(options, ["plain", "chunked"], 1, 1)
        ratios = {
            "time": found["chunked"][clock] / found["plain"][clock],
            "memory": found["chunked"]["peak_mib"] / found["plain"]["peak_mib"],
        }
        rows = [{"way": way, **values} for way, values in found.items()]
        rows[-1] |= {f"{name}_ratio": value for name, value in ratios.items()}
        yield rows, all(ratios[name] <= bound for name, bound in LOGIT_BOUNDS.items())
        return
    for texts, length in product(options.batch, options.length):
        needs = {way: need(options, way, texts, length) for way in options.ways}
        found = measure(options, [way for way in needs if needs[way] <= options.memory], texts, length)
        ratios = {way: found["sra"][clock] / values[clock] for way, values in found.items() if "sra" in found}
        rows = [
            {"batch": texts, "length": length, "way": way, **found.get(way, _left_out(needs[way]))} for way in needs
        ]
        for row in rows:
            row |= {"sra_over_it": ratios[row["way"]]} if row["way"] in ratios else {}
        bounds = RAGGED_BOUNDS if options.ragged else STEP_BOUNDS
        yield rows, all(ratios[way] <= bound for way, bound in bounds.items() if way in ratios)


def _left_out(gib: float) -> dict[str, str]:
    return {"left_out": f"needs about {gib:.1f} GiB"}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["logit", "step"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--spans", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--student", choices=MODELS, default="small")
    parser.add_argument("--teacher", choices=MODELS, default="large")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--length", type=int, nargs="+", default=[128, 320, 1024])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="variants of a step to measure")
    parser.add_argument("--ragged", action="store_true", help="texts of the lengths that instructions have")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB that a variant may take")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure, print, write JSON when asked to."""
    options = parse()
    if options.way:
        print(json.dumps(child(options)))
        return 0
    every: list[dict[str, Any]] = []
    good = True
    for rows, holds in cells(options):
        for row in rows:
            values = (
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
            print("  ".join(values), flush=True)
        every, good = every + rows, good and holds
    print("claims hold" if good else "A CLAIM FAILS")
    settings = {name: value for name, value in vars(options).items() if name not in ("json", "way")}
    write_json(options.json, {"rows": every, "claims_hold": good, "settings": settings})
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
