"""The teacher cache: one forward of the teacher over every text, kept as span centres, masses and token states."""

from sra_core.capture.batches import token_batches
from sra_core.capture.fidelity import row_errors, sample_rows, state_errors, within_bounds
from sra_core.capture.heads import TeacherHead, load_head, save_head
from sra_core.capture.holdings import Holdings, cache_identity, find_cache, holdings
from sra_core.capture.stage import capture_teacher, load_teacher, make_capture
from sra_core.capture.teacher import TeacherCapture, predicting
from sra_core.capture.writer import capture_shards

__all__ = [
    "Holdings",
    "TeacherCapture",
    "TeacherHead",
    "cache_identity",
    "capture_shards",
    "capture_teacher",
    "find_cache",
    "holdings",
    "load_head",
    "load_teacher",
    "make_capture",
    "predicting",
    "row_errors",
    "sample_rows",
    "save_head",
    "state_errors",
    "token_batches",
    "within_bounds",
]
