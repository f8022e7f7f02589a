"""Learned maps between widths and where they start.  Legend: N rows, d_S and d_T widths."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sra_core.errors import ConfigError
from sra_core.objective.head import accurate

__all__ = ["Projector", "orthogonal"]


class Projector(nn.Linear):
    """The learned linear map W from the student's width to the teacher's, computed in float32 or wider.

    It starts as the identity where the widths are equal, else (or where ``start`` is ``random``) as a random map with
    orthonormal rows or columns, which keeps the cosines between centres; it depends on the widths and the seed alone,
    not on the global random state.  What `sra_core.training.start` fits to the data is put in its place.

    Raises:
        ConfigError: ``start`` is ``identity``, and the widths differ.
    """

    def __init__(self, student_width: int, teacher_width: int, seed: int = 0, start: str = "auto") -> None:
        # On `meta` nothing is drawn: nn.Linear's own start would move the global random state.
        super().__init__(student_width, teacher_width, bias=False, device="meta")
        same = student_width == teacher_width
        if start == "identity" and not same:
            raise ConfigError(
                f"objective.projector_start is `identity`, and the widths {student_width} and {teacher_width} differ",
                "set it to `auto` or `fit`",
            )
        identity = same and start != "random"
        first = torch.eye(teacher_width) if identity else orthogonal(student_width, teacher_width, seed)
        self.weight = nn.Parameter(first)

    def forward(self, centers: Tensor) -> Tensor:
        """(K, d_S) to (K, d_T)."""
        centers = accurate(centers)
        # Widened as well: W is in half precision where the training is.
        return functional.linear(centers, self.weight.to(centers.dtype))


def orthogonal(inputs: int, outputs: int, seed: int) -> Tensor:
    """(outputs, inputs) random matrix with orthonormal columns, or rows where it is wide; its own random state."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(max(inputs, outputs), min(inputs, outputs), generator=generator))
    return (basis if outputs >= inputs else basis.T).contiguous()  # DeepSpeed broadcasts contiguous parameters only
