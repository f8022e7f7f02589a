"""Small prepared examples with real tokenizers, made without the prepare stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sra_core.alignment import AlignedExample, PairEncoder
from sra_core.cache import identity
from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.corpus import Example
from sra_core.models import load_tokenizer
from sra_core.runs import Run
from sra_core.shards import PREPARED_SCHEMA, Manifest, StageFolder, prepared_batch
from sra_core.shards.prepared import STUDENT_TOKENIZER, TEACHER_TOKENIZER, prepared_row

TEXTS = (
    ("Name a colour.", "Blue, like the sea."),
    ("Add 2 and 3.", "5"),
    ("Write code.", "def add(a, b):\n    return a + b\n\nprint(add(2, 3))"),
    ("Sag etwas.", "Schöne Grüße aus Köln! 🦊"),
    ("Explain shards.", "A shard is a file that holds some of the rows; " * 3),
    ("Say nothing much.", "ok"),
    ("Count.", "one two three four five six seven eight nine ten"),
)


def make_config(store: Path, **changes: Any) -> RunConfig:
    """Recipe `smoke` on CPU with its store in ``store``."""
    return load_config("smoke", {"store": str(store), "tracking": {"enabled": False}, **changes})


def make_prepared(config: RunConfig, texts: Sequence[tuple[str, str]] = TEXTS, per_shard: int = 3) -> Manifest:
    """A prepared folder of these texts, training split."""
    teacher, student = load_tokenizer(config.teacher), load_tokenizer(config.student)
    encoder = PairEncoder(
        teacher,
        student,
        teacher_template="plain",
        student_template="plain",
        prompt=config.corpus.prompt,
        max_length=config.alignment.max_length,
        max_prompt=config.alignment.max_prompt,
    )
    examples = [Example(f"e{k}", question, answer) for k, (question, answer) in enumerate(texts)]
    rows = [prepared_row(item) for item in encoder(examples) if isinstance(item, AlignedExample)]
    folder = StageFolder(config.store, "prepare", {"texts": len(texts), "per_shard": per_shard})
    folder.path.mkdir(parents=True)
    teacher.save_pretrained(folder.path / TEACHER_TOKENIZER)
    student.save_pretrained(folder.path / STUDENT_TOKENIZER)
    parts = [rows[start : start + per_shard] for start in range(0, len(rows), per_shard)]
    shards = [
        folder.write_shard(f"train-{k:05d}.arrow", "train", [prepared_batch(part)], PREPARED_SCHEMA)
        for k, part in enumerate(parts)
    ]
    files = [*folder.entries(TEACHER_TOKENIZER), *folder.entries(STUDENT_TOKENIZER)]
    return folder.commit(shards=shards, files=files)


def cache_folder(config: RunConfig, prepared: Manifest) -> StageFolder:
    """Where the cache of ``config`` over ``prepared`` goes."""
    return StageFolder(config.store, "cache", identity(run_over(config, prepared.identity)))


def run_over(config: RunConfig, prepared: Mapping[str, Any]) -> Run:
    """A run whose prepared examples were made without the prepare stage and identify themselves like this."""
    run = Run(config)
    run._identities["prepare"] = dict(prepared)
    return run
