"""The objective: what the student minimises."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, model_validator

from sra_core.config.part import Part, hashed, runtime, where_set

__all__ = ["ObjectiveConfig"]


class ObjectiveConfig(Part):
    """What the student minimises."""

    name: Literal[
        "sra",
        "sft",
        "uld",
        "mined",
        "dskd",
        "multilevel_ot",
        "alm",
        "strict_kl",
        "gold",
        "xtoken",
        "fkl",
        "rkl",
        "js",
        "skl",
    ] = Field(
        "sra",
        title="Objective",
        description="`sra` aligns spans with the teacher (arXiv 2605.01205), `sft` is cross-entropy alone (on a corpus that `sra generate` wrote it is sequence-level distillation, 1606.07947). Baselines across tokenizers: `uld` (2402.12030), `mined` (2401.10491), `dskd` (2406.17328), `multilevel_ot` (2412.14528), `alm` (2503.20083), `strict_kl` (2610.08448), `gold` (TRL) and `xtoken` (2605.21699). With the teacher's own tokenizer: `fkl`, `rkl`, `js` and `skl` (forward, reverse, Jensen-Shannon, skewed divergence).",
    )
    layers: list[tuple[int, int]] = Field(
        [(-1, -1)], min_length=1, description="Pairs of teacher and student layers, counted from 1; -1 is the last."
    )
    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Weight of cross-entropy at the start of training; the teacher's terms weigh 1 - alpha. See `annealing`.",
    )
    # Constant weights lost to plain fine-tuning where tokenizers fit badly: by 0.12 bits per byte on `quality-coarse`
    # after 100 of 120 steps. What annealing costs is closeness to the teacher.
    annealing: float = where_set(
        1.0,
        "By how much the weight of the teacher's terms falls over the training, evenly from step to step, in favour of cross-entropy: 1 fades them out by its end (teacher annealing, arXiv 1907.04829), 0 keeps `alpha` throughout, as the papers of SRA and of the baselines do: the student imitates the teacher more closely and predicts held-out text less well. Read by every objective with a teacher.",
        before=0.0,
        title="Annealing of the teacher's terms",
        ge=0,
        le=1,
    )
    # alpha 0.5, cosine 10, geometry 10 measured best on validation texts of `quality` (seed 0, constant weights):
    # 2.224 bits per byte; 2.243 with cosine 1. At alpha 0.7 geometry 10 has 2.229, the paper's 50 has 2.251.
    cosine: float | list[float] = Field(
        10.0,
        description="Weight lambda of the cosine term: one number, or one per layer pair; 1 in the paper.",
    )
    geometry: float = Field(10.0, ge=0, description="Weight gamma of the geometry term; 50 in the paper.")
    logit: float = Field(1.0, ge=0, description="Weight of the span-logit KL; 1 in the paper.")
    trajectory: float = Field(
        0.0, ge=0, description="Weight of the optional trajectory term over consecutive layer pairs."
    )
    # A random start costs a short run 0.04 bits per byte.
    projector_start: Literal["auto", "fit", "identity", "random"] = Field(
        "auto",
        title="Start of the projectors",
        description="Where the learned maps from the student's centres to the teacher's start: `fit` at the least-squares map from the untrained student's centres, `identity` where the widths are equal, `random` with orthonormal rows; `auto` fits, but takes the identity where the widths are equal and the fit carries held-out spans poorly (a student cut out of its teacher starts so). The three maps of `dskd` are fitted too, unless this is `identity` or `random`: then they start as in its paper.",
    )
    mass_power: float = Field(
        1.0, ge=0, description="Power p of the teacher's span mass in the loss weights, with `weighted_loss`."
    )
    # The paper's, but for one pair; 1 costs 0.034 [0.028, 0.040] bits per byte on `quality-coarse`.
    temperature: float = Field(
        2.0,
        gt=0,
        description="Temperature tau of the span-logit KL, and of the KL terms of `mined`, `dskd`, `strict_kl`, `xtoken`, `fkl`, `rkl`, `js` and `skl`; `gold` is at 1.",
    )
    skew: float = Field(
        0.1, ge=0, lt=1, description="Share of the teacher in the mixture that `skl` compares with the teacher."
    )
    # Spans of several tokens show no gain on our pairs: 0.008 [-0.006, 0.022] bits per byte on `quality-coarse`, where
    # they are half of all, and -0.004 on dialogues. With `weighted_loss` they are worth 0.019 on the first.
    spans: Literal["all", "one_to_one"] = where_set(
        "all",
        "Spans that the objective reads: `one_to_one` leaves out those of several tokens on either side.",
        title="Spans that are read",
    )
    direction: Literal["forward", "reverse"] = where_set(
        "forward",
        "KL of `strict_kl`: `forward` is KL(teacher || student).",
        title="Direction of the strict KL",
    )
    top_k: int | None = where_set(
        None,
        "Entries compared: with `strict_kl` the student's likeliest shared tokens, unset takes all; with `xtoken` the teacher's likeliest tokens of the batch, unset takes 8,192.",
        ge=1,
    )
    beta: float = where_set(
        0.5, "Divergence of `gold`: 0 is KL(teacher || student), 1 its reverse, between them a mixture.", ge=0, le=1
    )
    logit_reduction: Literal["sum", "mean"] = Field(
        "mean",
        title="Span-logit reduction",
        description="Over the spans of a text: the paper's `sum`, or `mean`, which long texts do not blow up.",
    )
    weighted_pooling: bool = Field(
        True, description="Weigh tokens by attention inside a span (WSP); off takes their plain mean."
    )
    # On, it costs 0.016 [0.010, 0.022] bits per byte on `quality-coarse` and 0.008 [0.004, 0.012] on `quality`; on
    # dialogues and between two pretrained models no difference is shown.
    weighted_loss: bool = Field(
        False,
        description="Weigh spans by the teacher's mass in the loss, as in the paper (WSL); off weighs all alike, which was not shown to be worse on any of our pairs.",
    )
    logit_chunk: int | None = runtime(
        None, "Spans per chunk of the logit term; unset picks one that bounds memory.", ge=1
    )

    @model_validator(mode="after")
    def _check(self) -> ObjectiveConfig:
        # How many layers there are only the models say: `doctor.check_layers` compares, before anything runs.
        for pair in self.layers:
            if 0 in pair or min(pair) < -1:
                raise ValueError(f"layers: {list(pair)} is not a pair of layers; count from 1, or -1 for the last")
        for (lower, _), (upper, own) in pairwise(self.layers):
            if lower == -1 < upper or 0 < upper < lower:
                raise ValueError(
                    f"layers: [{upper}, {own}] stands after a pair of the teacher's layer {lower}; list pairs from the lowest "
                    "up: geometry and logit terms read the last one"
                )
        if isinstance(self.cosine, list) and len(self.cosine) != len(self.layers):
            raise ValueError(
                f"cosine: {len(self.cosine)} weights for {len(self.layers)} layer pairs; give one number or one per pair"
            )
        if self.mass_power != 1 and not self.weighted_loss:
            raise ValueError("mass_power: spans are weighed by no mass; set objective.weighted_loss or leave it out")
        if self.trajectory and len(self.layers) < 2:
            raise ValueError(
                "trajectory: needs at least two layer pairs; add a pair to objective.layers or set it to 0"
            )
        return self


def hashed_objective(config: ObjectiveConfig) -> dict[str, Any]:
    """`hashed`, with what another default was when results were made, so that they keep their names.

    Plain fine-tuning has no teacher to fade out, and only SRA weighs spans: by mass, when that was the default.
    """
    found = hashed(config)
    if config.name != "sra":
        found["weighted_loss"] = True
    if config.name == "sft":
        found.pop("annealing", None)
    return found
