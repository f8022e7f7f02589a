"""Where the objective's projectors start: a pass of the untrained student over some of the training texts.

It runs once, in the process of the stage, before any training process is started: they all read the same file, and a
run that is resumed finds it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from sra_core.models import evaluating, load_head, pick_device
from sra_core.objective.fit import Fit, RidgeFit, ToFit
from sra_core.shards import PreparedSet, TeacherSet, atomic_write, read_manifest
from sra_core.training.build import build_module
from sra_core.training.context import distill_data
from sra_core.training.job import Job
from sra_core.training.module import DistillModule
from sra_core.training.schedule import total_steps
from sra_core.watch import Watcher

__all__ = ["FITTED", "Starts", "start_projectors"]

FITTED = {"sra": "spans", "dskd": "tokens"}
"""Objectives with learned maps, and what these carry."""
MOST_TEXTS, FEWEST_TEXTS = 2000, 48
_SHARE = 0.15
"""Texts of the fit, as a share of those that training reads. A forward is a third of a step: it costs 5 % of a run."""
_HELD_OUT = 5  # every fifth part
WELL_CARRIED = 0.87
"""Cosine of held-out spans from which a fitted map says something of the student. Where a student was cut out of its
teacher and starts poor, the fit carries 0.79 or 0.80 and the identity learns better (recipes quickstart and quality; of
quality-coarse only the identity was tried); on two pairs of pretrained families it carries 0.90 and 0.92, and 0.04 bits
a byte are gained. Nothing was measured between."""


@dataclass(frozen=True, slots=True)
class Starts:
    """What was found: for the manifest, by layer pair."""

    metrics: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def start_projectors(job: Job, watch: Watcher) -> Starts:
    """Fit the projectors, where the objective has some and the config does not fix where they start.

    Args:
        job: The training that is about to start; the maps go into its folder, unless they are there already.
        watch: Told of progress and of what was found.
    """
    config = job.objective
    if config.name not in FITTED or config.projector_start in ("identity", "random"):
        return Starts()
    if job.projectors.exists():
        with safe_open(job.projectors, "pt") as file:
            return Starts(**json.loads(file.metadata()["starts"]))
    maps, metrics, notes = {}, {}, []
    for name, (title, fit) in _fit(job, build_module(job), watch).items():
        poor = fit.cosine < WELL_CARRIED and fit.identity is not None
        identity = config.name == "sra" and config.projector_start == "auto" and poor
        maps[name] = torch.eye(len(fit.weight)) if identity else fit.weight
        metrics[f"projector_fit_{title}"] = fit.cosine
        if fit.identity is not None:
            metrics[f"projector_identity_{title}"] = fit.identity
        found = f"a fit carries held-out {FITTED[config.name]} with cosine {fit.cosine:.2f}, ridge {fit.ridge:g}"
        notes.append(f"{title.replace('_', '-')} {'identity' if identity else 'fit'} ({found})")
    if not maps:
        return Starts()
    starts = Starts(metrics, {"projectors": ", ".join(notes)})
    with atomic_write(job.projectors) as file:
        file.write(save(maps, metadata={"starts": json.dumps(asdict(starts))}))
    watch.message(f"projectors start at: {', '.join(notes)}")
    return starts


@torch.no_grad()
def _fit(job: Job, module: DistillModule, watch: Watcher) -> dict[str, tuple[str, Fit]]:
    """What people call each map and its fit, by parameter name, from texts drawn by the run's seed."""
    training, objective = job.training, module.objective
    device = torch.device(pick_device(training.device))
    prepared = PreparedSet(read_manifest(job.prepared), "train")
    teacher = TeacherSet(read_manifest(job.teacher), "train") if job.teacher else None
    layers = load_head(job.teacher).layers if job.teacher else 0
    data = distill_data(job.config, prepared, teacher, layers, job.side)
    size = training.batch_size * training.accumulation * training.processes
    # Of what training will read, epochs counted again, not of the corpus: short runs fit on little.
    seen = total_steps(training, len(prepared), size) * size
    count = min(len(prepared), MOST_TEXTS, max(FEWEST_TEXTS, round(_SHARE * seen)))
    if count < 2:  # one to fit to and one held out
        return {}
    order = np.random.default_rng(job.config.seed).permutation(len(prepared))[:count]
    # By what a step takes, not by who shares it: which texts are held out must not depend on that.
    parts = np.array_split(order, max(2, -(-count // size)))
    fits: dict[str, tuple[str, RidgeFit]] = {}
    module.to(device)
    # Without dropout: the map is of what the student says, and must not depend on what is drawn.
    with evaluating(module.student):
        for number, part in enumerate(parts):
            for places in np.array_split(part, -(-len(part) // job.micro)):
                # 0 in place of the supervised tokens: no loss is taken of it.
                batch = data.batch(places, 0).to(device)
                found: list[ToFit] = objective.to_fit(batch, module.read(batch))
                if not found:
                    return {}
                for each in found:
                    fit = fits.setdefault(each.weight, (each.title, RidgeFit(each.unit)))[1]
                    # There are two parts at least, so one is always held out and one always fitted to.
                    take = fit.hold_out if number % _HELD_OUT == 0 else fit.add
                    take(each.inputs, each.targets)
            watch.progress(number + 1, len(parts), "batches", "fitting where the projectors start")
    return {name: (title, fit.solve()) for name, (title, fit) in fits.items()}
