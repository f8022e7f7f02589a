"""The teacher cache: one forward of the teacher over every text, kept as span centres and masses."""

from sra_core.capture.batches import token_batches
from sra_core.capture.heads import TeacherHead, load_head, save_head
from sra_core.capture.stage import cache_identity, capture_teacher
from sra_core.capture.teacher import TeacherCapture

__all__ = [
    "TeacherCapture",
    "TeacherHead",
    "cache_identity",
    "capture_teacher",
    "load_head",
    "save_head",
    "token_batches",
]
