from .fidelity import row_errors, sample_rows, state_errors, within_bounds
from .holdings import Holdings, find_cache, identity
from .stage import capture_teacher
from .teacher import capture_of, load_teacher, make_capture
from .writer import capture_shards

__all__ = [
    "Holdings",
    "capture_of",
    "capture_shards",
    "capture_teacher",
    "find_cache",
    "identity",
    "load_teacher",
    "make_capture",
    "row_errors",
    "sample_rows",
    "state_errors",
    "within_bounds",
]
