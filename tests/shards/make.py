"""Random rows for shard tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sra_core.shards import PreparedRow, StageFolder, TeacherRow, teacher_batches, teacher_schema

WIDTH = 8


def teacher_rows(
    count: int, layers: Sequence[int] = (2, 5), states: bool = False, seed: int = 0, spread: float = 1.0
) -> list[TeacherRow]:
    """Rows with 0 to 6 spans; every third one has no span."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        spans = 0 if number % 3 == 2 else int(rng.integers(1, 7))
        tokens = int(rng.integers(1, 9))
        rows.append(
            TeacherRow(
                id=f"row-{number}",
                centers={k: (rng.normal(size=(spans, WIDTH)) * spread).astype(np.float32) for k in layers},
                mass={k: rng.random(spans).astype(np.float32) for k in layers},
                states=rng.normal(size=(tokens, WIDTH)).astype(np.float32) if states else None,
            )
        )
    return rows


def prepared_rows(count: int, seed: int = 0) -> list[PreparedRow]:
    rng = np.random.default_rng(seed)

    def tokens(number: int) -> np.ndarray:
        return rng.integers(0, 1000, number).astype(np.int32)

    def spans(number: int) -> np.ndarray:
        return np.sort(rng.integers(0, 40, (number, 2)).astype(np.int32), axis=1)

    return [
        PreparedRow(
            id=f"übung-{number}",
            teacher_ids=tokens(5 + number),
            student_ids=tokens(9),
            teacher_spans=spans(number),
            student_spans=spans(number),
            teacher_response=2,
            student_response=3,
            prompt="Was?\n",
            response="🦊 ja" * number,
            source="tests",
        )
        for number in range(count)
    ]


def write_teacher(
    folder: StageFolder,
    shards: Sequence[Sequence[TeacherRow]],
    dtype: str = "float32",
    compression: str | None = None,
    states: bool = False,
    layers: Sequence[int] = (2, 5),
):
    """A committed teacher folder with one shard for each list of rows."""
    folder.path.mkdir(parents=True, exist_ok=True)
    schema = teacher_schema(layers, dtype, WIDTH, states=states, compressed=compression is not None)
    entries = [
        folder.write_shard(
            f"train-{number}.arrow", "train", teacher_batches(rows, schema), schema, compression=compression
        )
        for number, rows in enumerate(shards)
    ]
    return folder.commit(shards=entries)
