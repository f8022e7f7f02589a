"""The training loop: one optimizer step after another, validated, logged and checkpointed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sra_core.models import answer_ends, response_likelihood
from sra_core.models.structure import unwrap
from sra_core.objective import Batch, weighted_terms
from sra_core.shards import PreparedRow
from sra_core.training.checkpoints import Checkpoints, Progress, gather
from sra_core.training.data import DistillData, Order, prefetch, uploader
from sra_core.training.guards import SpikeWatch, held_out_error, non_finite_error
from sra_core.training.job import Job, Lines
from sra_core.training.meter import Meter, average, mean_terms, peak_memory
from sra_core.training.module import DistillModule
from sra_core.training.schedule import learning_rate, total_steps
from sra_core.training.weights import KeptWeights, readable

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
        self.config = config = job.training
        self.engine = engine
        self.module: DistillModule = engine.module
        self.job = job
        self.data = data
        self.validation = validation
        self.device = device
        self.rank = rank
        self._lengths = data.lengths()
        lengths = self._lengths if config.group_by_length else None
        self.order = Order(len(data.prepared), job.config.seed, job.micro, job.forwards, world, lengths)
        self.total = total_steps(config, len(data.prepared), self.order.step_size)
        self.events = Lines(job.events, silent=rank != 0)
        self.history = Lines(job.history, silent=rank != 0)
        self.checkpoints = Checkpoints(job.checkpoints, config.keep_checkpoints, rank)
        self.weights = KeptWeights(job.weights, rank)
        self.world = world
        self.progress = Progress(world=world, examples=self.order.step_size)
        self.spikes = SpikeWatch(config.spike)
        # Then every gradient is whole, in float32 and at hand: no optimizer of DeepSpeed's clips or drops it for us.
        self._plain = config.zero_stage == 0 and config.precision == "float32"
        self._meter = Meter()
        self._cross_entropy: float | None = None  # the last one reported; an annealed loss compares with no other
        self._measured: tuple[float, int | None] = (math.inf, None)  # held-out bits per byte, and after which step
        self._upload = uploader(device)

    def run(self) -> Progress:
        """Train to the end, resuming from the newest whole checkpoint.

        Raises:
            TrainingError: The loss or the gradient is not finite, or the checkpoint is another world size's.
            StorageError: A checkpoint cannot be written.
        """
        self._resume()
        # As if earlier sessions had ended just now: time is counted over all of them.
        started = time.monotonic() - self.progress.seconds
        if self.progress.step == 0:
            # Step 0 is the student as it starts; it is a candidate for the best weights like any other step.
            self._validate()
        self._tell()
        self._meter = Meter(self.progress.tokens)
        for micro_batches in prefetch(self._micro_batches, range(self.progress.step, self.total)):
            self._step(micro_batches)
            self.progress.seconds = time.monotonic() - started
            self._report()
            if self._between_steps():
                break
        self._keep_last()
        return self.progress

    def _between_steps(self) -> bool:
        """Validate, tell and save where it is due; true when patience has run out."""
        tired = self._due(self.config.validate_every) and self._validate()
        if tired or self._due(self.config.log_every):
            self._tell()  # after the validation, so that the last line has the one after the last step
        if tired:
            self.events.append(kind="message", text=f"stopped early at step {self.progress.step}: no progress")
        elif self._due(self.config.checkpoint_every):
            self.progress.spikes = (self.spikes.mean, self.spikes.variance, self.spikes.seen)
            self.checkpoints.save(self.engine, self.progress)
            # Only after the checkpoint: an earlier one names earlier best weights, and a kill would go back to it.
            self.weights.drop(keep=[self.progress.best_step])
        self._meter.pause()
        return tired

    def _resume(self) -> None:
        progress, damaged = self.checkpoints.load(self.engine)
        for line in damaged:
            self.events.append(kind="message", text=line)
        if progress:
            self.progress, progress.examples = progress, self.order.step_size
            self.spikes = SpikeWatch(self.config.spike, *progress.spikes)
            told = f"resumed at step {progress.step} of {self.total}"
            if progress.earlier and progress.earlier[-1][0] == progress.step:
                told += f", with {self.world} processes in place of {progress.earlier[-1][1]}"
            self.events.append(kind="message", text=told)
        self.history.rewind(progress.step if progress else -1)
        self.events.append(kind="start")  # the stage reads the history from now on, never rows that are taken back
        # Weights of steps that are taken again: what is the best of them is found again.
        self.weights.drop(keep=[], after=progress.step if progress else -1)

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.total

    def _micro_batches(self, step: int) -> list[Batch]:
        # DeepSpeed averages over forwards and processes: with these shares that is the mean over the step.s tokens.
        forwards = self.job.forwards * self.world
        supervised = self.data.supervised(self.order.step(step)) / forwards
        return [self._upload(self.data.batch(indices, supervised)) for indices in self.order.forwards(step, self.rank)]

    # One step.

    def _step(self, micro_batches: list[Batch]) -> None:
        self._meter.waited()
        # Set before each step from the step's number alone, so that a resumed run needs no scheduler's state.
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, group["peak"], self.progress.step, self.total)
        terms: list[dict[str, Tensor]] = []
        norm, applied = None, True
        losses: list[float] = []
        self.module.objective.progress = self.progress.step / self.total
        diagnosing = self._diagnoses()
        for place, batch in enumerate(micro_batches):
            # One forward shows enough: a look costs a backward pass for each term.
            self.module.diagnosing = diagnosing and place == 0
            batch.keep(self.device)
            result = self.engine(batch)
            self.engine.backward(result["loss"])
            terms.append({name: value.detach().float() for name, value in result.items()})
            # The last backward has summed the gradient over forwards and processes; `engine.step` would use it at once.
            if len(terms) == len(micro_batches) and self._plain:
                norm, losses, applied = self._clip(terms)
            self.engine.step()
        if not self._plain:
            norm, applied = self._stepped()
            losses = torch.stack([each["loss"] for each in terms]).tolist()
        # Of all processes, and exact: each knows the whole step, whoever reads its examples.
        self.progress.tokens += int(self._lengths[self.order.step(self.progress.step)].sum())
        self.progress.step += 1
        self._guard(losses, applied, micro_batches)
        means = mean_terms(terms)
        # Weights change from step to step: means over steps times the last ones would not sum to the mean loss.
        weighted = weighted_terms(self.module.objective, means)
        self._meter.add(means | {f"weighted/{name}": value for name, value in weighted.items()}, norm)
        if diagnosing:
            self._tell_findings()

    def _diagnoses(self) -> bool:
        """Whether the coming step is one to look into: the first, the last, and every so many."""
        every, step = self.config.diagnose_every, self.progress.step + 1
        return every > 0 and (step % every == 0 or step in (1, self.total))

    def _tell_findings(self) -> None:
        """What the step's first forward showed, before the weights moved; the mean over processes."""
        findings = self.module.findings
        if self.world > 1:
            findings = average(findings, self.device)
        self._publish({f"diagnose/{name}": value for name, value in findings.items()})

    def _clip(self, terms: list[dict[str, Tensor]]) -> tuple[float, list[float], bool]:
        """Clip the gradients of a plain optimizer; one that is not finite is dropped, so that no weight moves.

        Norm and losses are read from the device together: the one wait of a step.
        """
        with_gradient = [p for g in self.engine.optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient])
        value, *losses = torch.stack([norm.float(), *(each["loss"] for each in terms)]).tolist()
        if not math.isfinite(value):
            # DeepSpeed steps all the same, but AdamW passes over parameters without a gradient: moments stay as well.
            self.engine.zero_grad()
            return value, losses, False
        if self.config.clip:
            torch.nn.utils.clip_grads_with_norm_(with_gradient, self.config.clip, norm)
        return value, losses, True

    def _stepped(self) -> tuple[float | None, bool]:
        """DeepSpeed's own optimizers measure, clip and refuse a gradient that is not finite while stepping."""
        norm = self.engine.get_global_grad_norm()
        return (None if norm is None else float(norm)), self.engine.was_step_applied()

    def _guard(self, losses: list[float], applied: bool, micro_batches: list[Batch]) -> None:
        """Stop or count a step that is not finite; report a spike."""
        finite = all(math.isfinite(loss) for loss in losses)
        if finite and applied:
            loss = sum(losses) / len(losses)
            usual = self.spikes.mean
            if self.spikes.add(loss):
                self.progress.spiked += 1
                told = f"the loss of step {self.progress.step} is {loss:.4g}, far above the usual {usual:.4g}"
                ids = ", ".join(name for batch in micro_batches for name in batch.ids)
                self.events.append(kind="message", text=f"{told}; examples: {ids}")
            return
        if applied:  # only this process knows
            raise non_finite_error("loss", self.progress.step, _at_fault(losses, micro_batches), self.job.part)
        self._skipped(losses, finite, micro_batches)

    def _skipped(self, losses: list[float], finite: bool, micro_batches: list[Batch]) -> None:
        """No process has moved its weights; all of them come here together."""
        found = gather((finite, _at_fault(losses, micro_batches)))
        # Where all losses are finite and the gradient is not, nobody knows which text it was.
        guilty = [ids for good, ids in found if not good] or [ids for _, ids in found]
        what = "gradient" if all(good for good, _ in found) else "loss"
        error = non_finite_error(what, self.progress.step, [name for ids in guilty for name in ids], self.job.part)
        self.progress.skipped += 1
        scaling = self.config.precision == "float16" and what == "gradient"  # how the loss scale finds its size
        if not scaling and (self.config.non_finite == "stop" or self.progress.skipped > self.config.max_skipped):
            raise error
        self.events.append(kind="message", text=f"skipped: {error.problem} ({self.progress.skipped} skipped so far)")

    # What is told and kept.

    def _report(self) -> None:
        if not self._due(self.config.log_every):
            return
        values = self._meter.close(self.progress.tokens)
        values["learning_rate"] = float(self.engine.optimizer.param_groups[0]["lr"])
        if self.world > 1:
            values = average(values, self.device)
        values |= {"skipped_steps": self.progress.skipped, "loss_spikes": self.progress.spiked}
        values["peak_memory_bytes"] = peak_memory(self.device)
        self._publish({f"train/{name}": value for name, value in values.items()})
        self._cross_entropy = values["ce"]

    def _tell(self) -> None:
        """Say how far training is: the last cross-entropy, the last measurement and, where it is another, the best."""
        progress, parts = self.progress, []
        if self._cross_entropy is not None:
            parts.append(f"cross-entropy {self._cross_entropy:.4g} nats per token")
        value, step = self._measured
        if step is not None:
            parts.append(f"held out {value:.4g} bits per byte{'' if step == progress.step else _at(step)}")
        if math.isfinite(progress.best) and progress.best_step != step:
            parts.append(f"best {progress.best:.4g}{_at(progress.best_step)}")
        self.events.append(kind="progress", done=progress.step, total=self.total, note=", ".join(parts))

    def _publish(self, values: Mapping[str, float]) -> None:
        self.history.append(step=self.progress.step, **values)

    def _validate(self) -> bool:
        """Measure held-out bits per byte, keep the weights if they are the best; true when patience has run out."""
        if not self.validation:
            return False
        value = self._bits_per_byte()
        progress = self.progress
        if not math.isfinite(value):
            raise held_out_error(value, progress.step, self.job.part)
        self._measured = value, progress.step
        self._publish({"validation/bits_per_byte": value})
        if value < progress.best:
            progress.best, progress.best_step, progress.stale = value, progress.step, 0
            # All processes write together, though only the first has a file: under ZeRO 3 each holds a part.
            if self.config.keep_best:
                self.weights.write(progress.step, self.module.trainable())
            return False
        progress.stale += 1
        return self.config.patience is not None and progress.stale >= self.config.patience

    def _bits_per_byte(self) -> float:
        """Each process scores its share of the held-out examples; under ZeRO 3, where all run together, all of them."""
        world = self.world if self.config.zero_stage < 3 else 1
        rows = self.validation[self.rank % world :: world]
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        if rows:  # there may be fewer texts than processes
            with readable(self.module.student):
                student = self.module.student
                found = response_likelihood(student, rows, self.job.side, eos_token_id=answer_ends(unwrap(student)))
            sums += torch.tensor([found.nats.sum() / np.log(2), found.bytes.sum()], dtype=torch.float64)
        if world > 1:
            torch.distributed.all_reduce(sums)
        return float(sums[0] / sums[1])

    def _keep_last(self) -> None:
        """Keep the weights of the last step where they are exported."""
        progress = self.progress
        # Nothing was measured: the last step stands for the best one in what is reported.
        if not self.validation:
            progress.best_step = progress.step
        exported_best = self.config.keep_best and bool(self.validation)
        progress.exported = progress.best_step if exported_best else progress.step
        if not exported_best or getattr(self.config, "keep_last", False):
            self.weights.write(progress.step, self.module.trainable())


def _at(step: int) -> str:
    return f" at step {step}" if step else " before training"


def _at_fault(losses: list[float], micro_batches: list[Batch]) -> list[str]:
    """Examples of the forwards whose loss is not finite, or of all of them."""
    bad = [batch for loss, batch in zip(losses, micro_batches, strict=True) if not math.isfinite(loss)]
    return [name for batch in bad or micro_batches for name in batch.ids]
