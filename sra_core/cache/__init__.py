"""`sra cache`: one forward of the teacher over every text, kept as span centres, masses and token states."""

from sra_core.cache.fidelity import row_errors, sample_rows, state_errors, within_bounds
from sra_core.cache.holdings import Holdings, find_cache, holdings, identity
from sra_core.cache.stage import capture_teacher
from sra_core.cache.teacher import load_teacher, make_capture
from sra_core.cache.writer import capture_shards

__all__ = [
    "Holdings",
    "capture_shards",
    "capture_teacher",
    "find_cache",
    "holdings",
    "identity",
    "load_teacher",
    "make_capture",
    "row_errors",
    "sample_rows",
    "state_errors",
    "within_bounds",
]
