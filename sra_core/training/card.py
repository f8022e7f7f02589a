"""The model card: what a student was made from, written from the run that made it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sra_core.config import RunConfig, hashed
from sra_core.config.yaml_1_2 import write_yaml
from sra_core.models import MADE_HERE, licence_of
from sra_core.shards import Manifest
from sra_core.watch import redact, redact_text

__all__ = ["LICENCE_NOTE", "licences_of", "model_card"]

LICENCE_NOTE = "licence of the "
"""Begin of the notes of a student's manifest that keep what `licences_of` found."""


def model_card(
    config: RunConfig,
    upstream: Sequence[Manifest],
    result: Mapping[str, float | None],
    history: Sequence[Mapping[str, Any]],
    licences: Mapping[str, str],
) -> str:
    """A Hugging Face model card in Markdown.

    Args:
        config: The run config.
        upstream: Manifests of the results that training read.
        result: What training reported: steps, tokens, best held-out bits per byte and its step.
        history: Metrics by step.
        licences: Of the models that the student is made from, see `licences_of`.
    """
    sections = [
        _header(config),
        f"# {config.name}\n",
        _summary(config, result, licences),
        _table("Data", _data(config, upstream)),
        _table("Training", _training(config, result)),
        _table("Scores", _scores(result, history)),
        _table(
            "Lineage", [(f"`{made.stage}`", f"`{made.fingerprint}`, content `{made.content}`") for made in upstream]
        ),
        "## Settings\n\n```yaml\n" + write_yaml(json.loads(_settings(config)), width=100) + "```",
        _usage(config),
    ]
    return redact_text("\n".join(sections)) + "\n"


def _header(config: RunConfig) -> str:
    fields = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["knowledge-distillation", "span-representation-alignment", f"objective:{config.objective.name}"],
    }
    return f"---\n{write_yaml(fields)}---\n"


def _summary(config: RunConfig, result: Mapping[str, float | None], licences: Mapping[str, str]) -> str:
    source = "layers of the teacher" if config.student.source == "teacher" else f"`{config.student.source}`"
    if config.objective.name == "sft":
        how = "fine-tuned on the corpus alone (objective `sft`)"
    else:
        adapted = ", adapted to the corpus first" if config.adapt.enabled else ""
        how = f"distilled from `{config.teacher.source}`{adapted} with objective `{config.objective.name}`"
    text = f"A student that started from {source} and was {how}, in {_number(result['steps'])} steps.\n"
    for which, licence in licences.items():
        if licence not in ("", MADE_HERE):
            text += f"\nLicence of the {which}: {licence}\n"
    models = (("teacher", config.teacher), ("student's source", config.student))
    return text + "".join(f"\nTerms of the {which}: {ref.terms}\n" for which, ref in models if ref.terms)


def licences_of(config: RunConfig) -> dict[str, str]:
    """The licences of the models that a student is made from, by what they are to it; empty where none is named.

    Raises:
        ModelError: A model cannot be found.
    """
    found = {}
    if config.objective.name != "sft" or config.student.source == "teacher":
        found["teacher"] = licence_of(config.teacher)
    if config.student.source != "teacher":
        found["student's source"] = licence_of(config.student)
    return found


def _data(config: RunConfig, upstream: Sequence[Manifest]) -> Iterator[tuple[str, str]]:
    yield "corpus", f"`{config.corpus.source}`"
    if config.corpus.revision:
        yield "revision", f"`{config.corpus.revision}`"
    for made in upstream:
        if made.stage == "prepare":
            for split in ("train", "validation", "test"):
                yield f"{split} examples", str(made.rows(split))


def _training(config: RunConfig, result: Mapping[str, float | None]) -> Iterator[tuple[str, str]]:
    training = config.distill
    yield "student tokens seen", _number(result["tokens"])
    yield "batch", f"{training.batch_size} x {training.accumulation} x {training.processes} processes"
    yield (
        "learning rate",
        f"{training.learning_rate:g}, warm-up {training.warmup:g}, cosine to {training.min_learning_rate:g}",
    )
    yield "precision", training.precision
    yield "adapters", "none" if training.lora is None else f"LoRA, rank {training.lora.rank}, merged"
    yield "training seconds", _number(result["seconds"])
    if result.get("skipped"):
        yield "steps skipped (not finite)", _number(result["skipped"])


def _scores(result: Mapping[str, float | None], history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    measured = [
        (line["step"], line["validation/bits_per_byte"]) for line in history if "validation/bits_per_byte" in line
    ]
    if measured:
        yield "held-out bits per byte before training", f"{measured[0][1]:.4f}" if measured[0][0] == 0 else "unknown"
    if result.get("best_bits_per_byte") is not None:
        yield (
            "best held-out bits per byte",
            f"{result['best_bits_per_byte']:.4f} at step {_number(result['best_step'])}",
        )
    yield "weights", f"of step {_number(result['exported_step'])}"
    losses = [line["train/loss"] for line in history if "train/loss" in line]
    if losses:
        yield "training loss, first and last", f"{losses[0]:.4f}, {losses[-1]:.4f}"


def _settings(config: RunConfig) -> str:
    parts = ("student", "corpus", "alignment", "adapt", "cache", "objective", "distill")
    # What only says how a stage ran (devices, batches of inference) is left out, as it is of a fingerprint.
    settings = {name: hashed(getattr(config, name)) for name in parts if name != "adapt" or config.adapt.enabled}
    return json.dumps(redact({"seed": config.seed, "teacher": hashed(config.teacher), **settings}), default=str)


def _usage(config: RunConfig) -> str:
    template = "its chat template" if config.student.template == "chat" else "the prompt of `corpus.prompt` above"
    return (
        "\n## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n```\n\n'
        f"It was trained on {template}; ask it in the same form."
    )


def _table(title: str, rows: Any) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join([f"## {title}\n", "| | |", "| --- | --- |", *lines, ""])


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
