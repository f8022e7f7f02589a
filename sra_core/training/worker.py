"""One training process. A launcher starts it with a job file; `torch.distributed` variables say which one it is."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sra_core.capture import load_head
from sra_core.errors import SraError
from sra_core.models import layer_count, lm_head, pick_device, resolve_layer
from sra_core.objective import ObjectiveContext, build_objective, student_layers
from sra_core.shards import PreparedSet, TeacherSet, atomic_write
from sra_core.shards.folder import read_manifest
from sra_core.training.adapters import add_adapters
from sra_core.training.checkpoints import Progress
from sra_core.training.data import DistillData
from sra_core.training.job import Job
from sra_core.training.module import DistillModule, parameter_groups
from sra_core.training.processes import die_with_parent
from sra_core.training.runtime import deepspeed_settings, make_optimizer, start_processes
from sra_core.training.trainer import Trainer

__all__ = ["main"]


def main(job_file: str) -> int:
    """Train; returns the exit code. An error is written beside the job, where the launcher finds the first one."""
    die_with_parent()
    job = Job.load(Path(job_file))
    rank = int(os.environ["RANK"])
    try:
        progress = _train(job)
    except Exception as error:
        _write_error(job, rank, error)
        traceback.print_exc()
        return 1
    if rank == 0:
        _write_result(job, progress)
    return 0


def _train(job: Job) -> Progress:
    device = start_processes(pick_device(job.config.distill.device))
    import deepspeed

    torch.manual_seed(job.config.seed + torch.distributed.get_rank())
    prepared = PreparedSet(read_manifest(job.prepared), "train")
    teacher = TeacherSet(read_manifest(job.teacher), "train") if job.teacher else None
    module = build_module(job)
    data = DistillData(prepared, teacher, module.student.config.pad_token_id or 0)
    config = job.config.distill
    groups = parameter_groups(module, config.learning_rate, config.projector_learning_rate, config.weight_decay)
    module.to(device)
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=make_optimizer(groups, device), config=deepspeed_settings(config)
    )
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    validation = list(PreparedSet(read_manifest(job.prepared), "validation"))
    progress = Trainer(engine, job, data, validation, device, rank, world).run()
    deepspeed.comm.destroy_process_group()
    return progress


def build_module(job: Job) -> DistillModule:
    """The student as it starts, its projectors and the objective."""
    config = job.config
    student: Any = AutoModelForCausalLM.from_pretrained(job.initial, dtype=torch.float32, attn_implementation="sdpa")
    if config.distill.gradient_checkpointing:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.distill.lora:
        student = add_adapters(config.distill.lora, student)
    layers = [resolve_layer(layer_count(student), layer) for layer in student_layers(config.objective)]
    objective = build_objective(config.objective, objective_context(job, student))
    student.train()
    return DistillModule(student, objective, layers)


def objective_context(job: Job, student: Any) -> ObjectiveContext:
    """Widths, layers, shared vocabulary and the teacher's head rows, as the cache kept them."""
    config = job.config
    width = lm_head(student).weight.shape[1]
    if job.teacher is None:
        empty = torch.empty(0, dtype=torch.long)
        return ObjectiveContext([], width, 0, None, empty, empty, config.seed)
    kept = load_head(job.teacher)
    count = layer_count(student)
    pairs = [(resolve_layer(kept.layers, t), resolve_layer(count, s)) for t, s in config.objective.layers]
    return ObjectiveContext(pairs, width, kept.width, kept.head, kept.student_ids, kept.teacher_ids, config.seed)


def _write_error(job: Job, rank: int, error: Exception) -> None:
    known = isinstance(error, SraError)
    values = {
        "time": time.time(),
        "rank": rank,
        "type": type(error).__name__,
        "problem": error.problem if isinstance(error, SraError) else str(error),
        "remedy": error.remedy if isinstance(error, SraError) else "",
        "known": known,
        "traceback": traceback.format_exc(),
    }
    (job.folder / f"error-{rank}.json").write_text(json.dumps(values))


def _write_result(job: Job, progress: Progress) -> None:
    values = {
        "steps": progress.step,
        "best_bits_per_byte": progress.best,
        "best_step": progress.best_step,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
    }
    with atomic_write(job.folder / "result.json") as file:
        file.write(json.dumps(values).encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
