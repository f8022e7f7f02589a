"""Answers on disk: one Parquet file a seed and shard, each whole or absent, so that a restart does only the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from sra_core.compare import ANSWER_SCHEMA, SCORING, answer_scores
from sra_core.evaluate.settings import AnswerSettings, Backend
from sra_core.evaluate.tables import is_made_from, write_table
from sra_core.shards import fingerprint

__all__ = ["AnswerSet"]

GENERATORS: dict[Backend, str] = {"transformers": "generation", "vllm": "vllm_backend"}
"""Module whose `generate` answers, by backend; imported when it is needed."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """The answers of one model to a set of rows under some settings.

    Attributes:
        folder: Where the files are.
        name: Name of the model: ``teacher``, ``initial`` or ``student``.
        side: Whose tokens it reads.
        settings: Sampling, seeds and limits.
        dataset: Name of the data set.
        backend: What generates; answers of the other one are not reused.
        model: Digest or fingerprint of the model; answers of another one are not reused.
        shard_size: Answers in one file.
    """

    folder: Path
    name: str
    side: Any
    settings: AnswerSettings
    dataset: str = "test"
    backend: Backend = "transformers"
    model: str = ""
    shard_size: int = 64

    def make(
        self,
        load: Callable[[], tuple[Any, Any]],
        rows: Sequence[Any],
        references: Sequence[Sequence[str]] | None = None,
        *,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> list[Path]:
        """Write the shards that are missing, generated for other rows or damaged; returns all paths in order.

        Args:
            load: Gives the model (for vLLM its engine) and its tokenizer; called only when something is missing.
            rows: Prepared rows.
            references: What each answer is scored against, one or several; unset takes the rows' responses.
            batch_size: Texts in one forward; the answers do not depend on it in float32.
            progress: Called with (answers there, answers in all).
        """
        references = [[row.response] for row in rows] if references is None else references
        shards = list(self._shards(rows, references))
        missing = [shard for shard in shards if not is_made_from(shard.path, shard.key)]
        there = sum(len(shard.rows) for shard in shards) - sum(len(shard.rows) for shard in missing)
        loaded = load() if missing else None
        for shard in missing:
            assert loaded is not None
            self._write(
                shard, *loaded, batch_size, _shifted(progress, there, len(rows) * len(self.settings.used_seeds))
            )
            there += len(shard.rows)
        return [shard.path for shard in shards]

    def _shards(self, rows: Sequence[Any], references: Sequence[Sequence[str]]) -> Iterator[_Shard]:
        for seed in self.settings.used_seeds:
            for number, start in enumerate(range(0, len(rows), self.shard_size)):
                part = slice(start, start + self.shard_size)
                path = self.folder / f"answers-{self.dataset}-{self.name}-{seed}-{number:05d}.parquet"
                # A file is known by all that went into it: it is made again where any of it is another.
                made = {
                    "model": self.model,
                    "backend": self.backend,
                    # Its own seed alone: one more seed leaves the files of the others as they are.
                    "settings": {**asdict(self.settings), "seeds": [seed]},
                    # As tokens: another tokenizer or template is another prompt, whatever its text.
                    "prompts": [_prompt_ids(row, self.side) for row in rows[part]],
                    "references": [list(each) for each in references[part]],
                    "scores": SCORING,
                }
                yield _Shard(path, seed, rows[part], references[part], fingerprint(made))

    def _write(self, shard: _Shard, model: Any, tokenizer: Any, batch_size: int, progress: Progress | None) -> None:
        generate = import_module(f"sra_core.evaluate.{GENERATORS[self.backend]}").generate
        settings = self.settings
        answers = generate(
            model,
            tokenizer,
            shard.rows,
            self.side,
            seed=shard.seed,
            sampling=settings.sampling,
            max_new_tokens=settings.max_new_tokens,
            max_prompt=settings.max_prompt,
            batch_size=batch_size,
            progress=progress,
        )
        texts = [answer.text.strip() for answer in answers]
        columns = {
            "dataset": [self.dataset] * len(answers),
            "id": [row.id for row in shard.rows],
            "source": [row.source for row in shard.rows],
            "seed": [shard.seed] * len(answers),
            "prompt": [row.prompt for row in shard.rows],
            "reference": [first for first, *_ in shard.references],
            "other_references": [others for _, *others in shard.references],
            "answer": texts,
            "tokens": [answer.tokens for answer in answers],
            "finish_reason": [answer.finish_reason for answer in answers],
            "prompt_tokens": [answer.prompt_tokens for answer in answers],
            "prompt_cut": [answer.prompt_cut for answer in answers],
            **answer_scores(shard.references, texts),
        }
        write_table(shard.path, pa.table(columns, schema=ANSWER_SCHEMA), shard.key)


@dataclass(frozen=True, slots=True)
class _Shard:
    path: Path
    seed: int
    rows: Sequence[Any]
    references: Sequence[Sequence[str]]
    key: str


def _prompt_ids(row: Any, side: str) -> list[int]:
    ids, first = (
        (row.teacher_ids, row.teacher_response) if side == "teacher" else (row.student_ids, row.student_response)
    )
    return [int(token) for token in ids[:first]]


def _shifted(progress: Progress | None, there: int, total: int) -> Progress | None:
    return None if progress is None else lambda done, _: progress(there + done, total)
