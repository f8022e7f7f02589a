"""What training needs of the teacher itself: its LM head rows of the shared vocabulary, or the whole head."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from sra_core.alignment import SharedVocabulary
from sra_core.objective import Head
from sra_core.shards import atomic_write

__all__ = ["TeacherHead", "load_head", "save_head"]

_SHARED = "lm_head.safetensors"
_FULL = "teacher_tables.safetensors"
_META = "teacher.json"


@dataclass(frozen=True, slots=True)
class TeacherHead:
    """What the cache knows of the teacher itself.

    Attributes:
        head: Rows of the shared vocabulary V, in shared order: weight (V, d).
        teacher_ids, student_ids: (V,) the same tokens on either side.
        layers: Number of the teacher's layers.
        width: d.
        full: The whole head, where token states are kept.
        embedding: (V_T, d) input embeddings, likewise.
    """

    head: Head
    teacher_ids: Tensor
    student_ids: Tensor
    layers: int
    width: int
    full: Head | None = None
    embedding: Tensor | None = None


def save_head(
    folder: Path, head: Head, shared: SharedVocabulary, layers: int, embedding: Tensor | None = None
) -> list[str]:
    """Keep a teacher's head in a cache folder.

    Args:
        folder: The cache folder.
        head: The whole head.
        shared: Which rows of it to keep.
        layers: Number of the teacher's layers.
        embedding: The teacher's input embeddings: given, they and the whole head are kept too.

    Returns:
        Names of the files.
    """
    rows = torch.from_numpy(shared.teacher_ids).long()
    kept = head.constant().rows(rows.to(head.weight.device))
    ids = {"teacher_ids": rows, "student_ids": torch.from_numpy(shared.student_ids).long()}
    _write(folder / _SHARED, {**dict(_tensors(kept)), **ids})
    # Tied, the head is the embedding: one table is written.
    tied = embedding is not None and _same(embedding, head.weight)
    if embedding is not None:
        table = {} if tied else {"embedding": embedding.detach().cpu().contiguous()}
        _write(folder / _FULL, {**dict(_tensors(head.constant())), **table})
    meta = {"layers": layers, "width": int(head.weight.shape[1]), "softcap": head.softcap, "tied": tied}
    with atomic_write(folder / _META) as file:
        file.write(json.dumps(meta).encode())
    return [_SHARED, _META, *([] if embedding is None else [_FULL])]


def load_head(folder: Path) -> TeacherHead:
    """Read what `save_head` kept, in float32."""
    meta = json.loads((folder / _META).read_bytes())
    tensors = load_file(folder / _SHARED)
    full, embedding = None, None
    if (folder / _FULL).exists():
        tables = {name: tensor.float() for name, tensor in load_file(folder / _FULL).items()}
        full = Head(tables["weight"], tables.get("bias"), meta["softcap"])
        embedding = tables["weight" if meta["tied"] else "embedding"]
    bias = tensors.get("bias")
    head = Head(tensors["weight"].float(), None if bias is None else bias.float(), meta["softcap"])
    ids = tensors["teacher_ids"], tensors["student_ids"]
    return TeacherHead(head, *ids, meta["layers"], meta["width"], full, embedding)


def _same(embedding: Tensor, head: Tensor) -> bool:
    """Whether the two are tied; of a model that is partly on disk each is a copy."""
    return embedding.shape == head.shape and embedding.device == head.device and torch.equal(embedding, head)


def _tensors(head: Head) -> Iterator[tuple[str, Tensor]]:
    yield "weight", head.weight.cpu().contiguous()  # safetensors refuses other tensors
    if head.bias is not None:
        yield "bias", head.bias.cpu().contiguous()


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with atomic_write(path) as file:
        file.write(save(tensors))
