"""The teacher's LM head rows of the shared vocabulary: all that training needs of the teacher beside its centres."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from sra_core.alignment import SharedVocabulary
from sra_core.objective import Head
from sra_core.shards import atomic_write

__all__ = ["HEAD_FILE", "META_FILE", "TeacherHead", "load_head", "save_head"]

HEAD_FILE = "lm_head.safetensors"
META_FILE = "teacher.json"


@dataclass(frozen=True, slots=True)
class TeacherHead:
    """What the cache knows of the teacher itself.

    Attributes:
        head: Rows of the shared vocabulary V, in shared order: weight (V, d).
        teacher_ids, student_ids: (V,) the same tokens on either side.
        layers: Number of the teacher's layers.
        width: d.
    """

    head: Head
    teacher_ids: Tensor
    student_ids: Tensor
    layers: int
    width: int


def save_head(folder: Path, head: Head, shared: SharedVocabulary, layers: int) -> None:
    """Keep the shared rows of a teacher's LM head in a cache folder."""
    rows = torch.from_numpy(shared.teacher_ids).long()
    kept = head.constant().rows(rows.to(head.weight.device)).to("cpu")
    tensors = {
        "weight": kept.weight.contiguous(),
        "teacher_ids": rows,
        "student_ids": torch.from_numpy(shared.student_ids).long(),
    }
    if kept.bias is not None:
        tensors["bias"] = kept.bias.contiguous()
    with atomic_write(folder / HEAD_FILE) as file:
        file.write(save(tensors))
    meta = {"layers": layers, "width": int(head.weight.shape[1]), "softcap": head.softcap}
    with atomic_write(folder / META_FILE) as file:
        file.write(json.dumps(meta).encode())


def load_head(folder: Path) -> TeacherHead:
    """Read what `save_head` kept."""
    tensors = load_file(folder / HEAD_FILE)
    meta = json.loads((folder / META_FILE).read_bytes())
    head = Head(tensors["weight"].float(), tensors.get("bias"), meta["softcap"])
    return TeacherHead(head, tensors["teacher_ids"], tensors["student_ids"], meta["layers"], meta["width"])
