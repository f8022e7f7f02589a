"""From a job to a trained model: what one training process builds and runs."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file

from sra_core.models import choose_layout, layer_count, load_head, pick_device, resolve_layer
from sra_core.models.forward import compile_layers
from sra_core.models.reading import read_weights
from sra_core.objective import build_objective, student_layers
from sra_core.shards import PreparedSet, TeacherSet, read_manifest
from sra_core.training.adapters import add_adapters
from sra_core.training.checkpoints import Progress
from sra_core.training.context import distill_data, objective_context
from sra_core.training.job import Job, Lines
from sra_core.training.module import DistillModule, parameter_groups
from sra_core.training.runtime import deepspeed_settings, make_optimizer, start_processes
from sra_core.training.trainer import Trainer
from sra_core.training.weights import outer_parameters

__all__ = ["build_module", "train"]


def train(job: Job) -> tuple[Progress, str]:
    """Train as the process that the environment says, to the end; also tells how the model was run."""
    training = job.training
    device = start_processes(pick_device(training.device), training.precision)
    import deepspeed

    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    module = build_module(job).to(device)
    layout = str(choose_layout(module.student, job.config.layout, job.config.alignment.max_length))
    Lines(job.events, silent=rank != 0).append(kind="message", text=f"the {job.side} reads batches {layout}")
    if training.compile:
        compile_layers(module.student)
    # By process: each draws dropout of its own. What the model starts from is drawn by now, from the run's seed alone.
    torch.manual_seed(job.config.seed + rank)
    prepared = PreparedSet(read_manifest(job.prepared), "train")
    teacher = TeacherSet(read_manifest(job.teacher), "train") if job.teacher else None
    layers = load_head(job.teacher).layers if job.teacher else 0
    data = distill_data(job.config, prepared, teacher, layers, job.side)
    validation = list(PreparedSet(read_manifest(job.prepared), "validation"))
    engine = _engine(job, module, device)
    progress = Trainer(engine, job, data, validation, device, rank, world).run()
    deepspeed.comm.destroy_process_group()
    return progress, layout


def _engine(job: Job, module: DistillModule, device: torch.device) -> Any:
    """The module under DeepSpeed."""
    import deepspeed

    training = job.training
    groups = parameter_groups(module, training.learning_rate, job.projector_rate, training.weight_decay)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=make_optimizer(groups),
        config=deepspeed_settings(training, job.micro, job.forwards, job.part),
    )
    if training.zero_stage == 3:
        # DeepSpeed gathers a module's own parameters for its forward; the objective reads these outside of it.
        for parameter in outer_parameters(module.student):
            deepspeed.zero.register_external_parameter(module, parameter)
    return engine


def build_module(job: Job) -> DistillModule:
    """The model as it starts, its projectors and the objective."""
    training = job.training
    # float32 whatever the precision: DeepSpeed casts the module where half precision is asked for.
    model: Any = read_weights(job.initial, job.part, dtype=torch.float32, trust_remote_code=job.trusted)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if training.lora:
        model = add_adapters(training.lora, model, job.config.seed)
        if training.gradient_checkpointing:
            model.enable_input_require_grads()
    layers = [resolve_layer(layer_count(model), layer) for layer in student_layers(job.objective)]
    context = objective_context(job.config, job.prepared, job.teacher, model)
    objective = build_objective(job.objective, context)
    if job.projectors.exists():
        maps = load_file(job.projectors)
        unknown = objective.load_state_dict(maps, strict=False).unexpected_keys
        assert not unknown, unknown
    model.train()
    return DistillModule(
        model, objective, layers, len(context.shared_student_ids), attention=job.objective.weighted_pooling
    )
