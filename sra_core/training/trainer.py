"""The training loop: one optimizer step after another, validated, logged and checkpointed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sra_core.config import DistillConfig
from sra_core.errors import TrainingError
from sra_core.evaluation import bits_per_byte
from sra_core.objective import Batch
from sra_core.shards import PreparedRow, atomic_write
from sra_core.training.checkpoints import Checkpoints, Progress
from sra_core.training.data import DistillData, Order, prefetch
from sra_core.training.job import Events, History, Job
from sra_core.training.module import DistillModule
from sra_core.training.schedule import learning_rate, total_steps

__all__ = ["Trainer"]


class Trainer:
    """Trains a `DistillModule` under a DeepSpeed engine.

    Args:
        engine: The engine that owns the module.
        job: Config and folders.
        data: Training batches.
        validation: Held-out examples; may be empty.
        device: Where this process computes.
        rank: Number of this process.
        world: Number of processes.
    """

    def __init__(
        self,
        engine: Any,
        job: Job,
        data: DistillData,
        validation: list[PreparedRow],
        device: torch.device,
        rank: int,
        world: int,
    ) -> None:
        config = job.config.distill
        self.config: DistillConfig = config
        self.engine = engine
        self.module: DistillModule = engine.module
        self.job = job
        self.data = data
        self.validation = validation
        self.device = device
        self.rank = rank
        self.order = Order(len(data.prepared), job.config.seed, config.batch_size, config.accumulation, world)
        self.total = total_steps(config, len(data.prepared), self.order.step_size)
        self.events = Events(job.events, silent=rank != 0)
        self.history = History(job.history, silent=rank != 0)
        self.checkpoints = Checkpoints(job.checkpoints, config.keep_checkpoints, rank)
        self.progress = Progress(world=world)
        self._window = _Window()

    def run(self) -> Progress:
        """Train to the end, resuming from the newest whole checkpoint.

        Raises:
            TrainingError: The loss or the gradient is not finite.
            StorageError: A checkpoint cannot be written.
        """
        self._resume()
        started = time.monotonic() - self.progress.seconds
        if self.progress.step == 0:
            self._validate()
        for micro_batches in self._steps():
            self._step(micro_batches)
            self.progress.seconds = time.monotonic() - started
            self._report()
            if self._due(self.config.validate_every) and self._validate():
                self.events.send("message", text=f"stopped early at step {self.progress.step}: no progress")
                break
            if self._due(self.config.checkpoint_every):
                self.checkpoints.save(self.engine, self.progress)
        if not self._keeps_best():
            self._keep()
        return self.progress

    def _resume(self) -> None:
        progress, damaged = self.checkpoints.load(self.engine)
        for line in damaged:
            self.events.send("message", text=line)
        if progress:
            self.progress = progress
        self.history.rewind(self.progress.step if progress else -1)
        if progress:
            self.events.send("message", text=f"resumed at step {progress.step} of {self.total}")

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.total

    def _steps(self) -> Iterator[list[Batch]]:
        return prefetch(self._micro_batches, range(self.progress.step, self.total))

    def _micro_batches(self, step: int) -> list[Batch]:
        forwards = self.config.accumulation * self.progress.world
        supervised = self.data.supervised(self.order.step(step)) / forwards
        return [self.data.batch(indices, supervised) for indices in self.order.forwards(step, self.rank)]

    def _step(self, micro_batches: list[Batch]) -> None:
        self._window.waited()
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, group["peak"], self.progress.step, self.total)
        terms: list[dict[str, Tensor]] = []
        for batch in micro_batches:
            result = self.engine(batch.to(self.device))
            self.engine.backward(result["loss"])
            terms.append({name: value.detach().float() for name, value in result.items()})
            self.progress.tokens += int(batch.attention_mask.sum())
            if self.engine.is_gradient_accumulation_boundary():
                norm = self._gradient_norm()
            self.engine.step()
        mean = {name: torch.stack([each[name] for each in terms]).mean() for name in terms[0]}
        self._check(mean["loss"], norm, micro_batches)
        self.progress.step += 1
        self._window.add(mean, norm)

    def _gradient_norm(self) -> Tensor | None:
        if self.config.zero_stage or self.config.precision != "float32":
            return None  # DeepSpeed's optimizer measures it while stepping
        grads = [p.grad for group in self.engine.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads)

    def _check(self, loss: Tensor, norm: Tensor | None, micro_batches: list[Batch]) -> None:
        finite = torch.isfinite(loss) & (torch.isfinite(norm) if norm is not None else True)
        if not bool(finite):
            ids = [example for batch in micro_batches for example in batch.ids]
            what = "loss" if not math.isfinite(float(loss)) else "gradient"
            raise TrainingError(
                f"the {what} is not finite at step {self.progress.step + 1}; examples: {', '.join(ids)}",
                "lower distill.learning_rate or distill.clip, use bfloat16 or float32, or look at these examples; "
                "running again resumes from the last checkpoint",
            )

    def _report(self) -> None:
        step = self.progress.step
        if step % self.config.log_every and step != self.total:
            return
        values = self._window.close(self.progress.tokens)
        norm = values.pop("gradient_norm", None) or self.engine.get_global_grad_norm()
        if norm is not None:
            values["gradient_norm"] = float(norm)
        values["learning_rate"] = float(self.engine.optimizer.param_groups[0]["lr"])
        if self.progress.world > 1:
            values = average(values, self.device)
        self._publish({f"train/{name}": value for name, value in values.items()})
        note = f"loss {values['loss']:.4g}"
        if math.isfinite(self.progress.best):
            note += f", held out {self.progress.best:.4g} bits a byte"
        self.events.send("progress", done=step, total=self.total, note=note)

    def _publish(self, values: Mapping[str, float]) -> None:
        self.events.send("metrics", step=self.progress.step, values=dict(values))
        self.history.append(self.progress.step, values)

    def _validate(self) -> bool:
        """Measure held-out bits per byte, keep the weights if they are the best; true when patience has run out."""
        if not self.validation:
            return False
        with self._whole():
            value = bits_per_byte(self.module.student, self.validation, "student", eos_token_id=self._eos())
            progress = self.progress
            self._publish({"validation/bits_per_byte": value})
            if value < progress.best:
                progress.best, progress.best_step, progress.stale = value, progress.step, 0
                if self._keeps_best():
                    self._keep()
                return False
        progress.stale += 1
        return self.config.patience is not None and progress.stale >= self.config.patience

    def _eos(self) -> int | None:
        eos = self.module.student.config.eos_token_id
        return eos[0] if isinstance(eos, list) else eos

    def _keeps_best(self) -> bool:
        return self.config.keep_best and bool(self.validation)

    def _keep(self) -> None:
        """Write the trained parameters as they are now; they are what will be exported."""
        with self._whole():
            tensors = {name: p.detach().cpu().contiguous() for name, p in self.module.trainable()}
        if self.rank == 0:
            with atomic_write(self.job.best) as file:
                file.write(save(_without_shared_memory(tensors)))

    def _whole(self) -> AbstractContextManager[Any]:
        """Parameters in one piece on every process while the context lasts (ZeRO 3 keeps them in parts)."""
        if self.config.zero_stage < 3:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(self.module.student.parameters()))  # type: ignore[no-any-return]


def _without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def average(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Each value's mean over all processes."""
    stacked = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(stacked)
    return dict(zip(values, (stacked / torch.distributed.get_world_size()).tolist(), strict=True))


class _Window:
    """Means of the terms and rates since the last report."""

    def __init__(self) -> None:
        self._open(0)

    def _open(self, tokens: int) -> None:
        self._terms: list[dict[str, Tensor]] = []
        self._norms: list[Tensor] = []
        self._tokens = tokens
        self._started = self._mark = time.monotonic()
        self._wait = 0.0

    def waited(self) -> None:
        """The batch has arrived: what passed since the last step was waiting for data."""
        self._wait += time.monotonic() - self._mark

    def add(self, terms: dict[str, Tensor], norm: Tensor | None) -> None:
        """A step is done."""
        self._terms.append(terms)
        if norm is not None:
            self._norms.append(norm)
        self._mark = time.monotonic()

    def close(self, tokens: int) -> dict[str, float]:
        """The means, and a new window."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        values = {name: float(torch.stack([each[name] for each in self._terms]).mean()) for name in self._terms[0]}
        if self._norms:
            values["gradient_norm"] = float(torch.stack(self._norms).mean())
        values["seconds_per_step"] = seconds / len(self._terms)
        values["tokens_per_second"] = (tokens - self._tokens) / seconds
        values["data_wait_share"] = self._wait / seconds
        self._open(tokens)
        return values
