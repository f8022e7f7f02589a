"""Other processes: a pool of them, a Dask cluster, and children that never outlive their parent."""

from sra_core.processes.children import STARTER, die_with_parent, free_port, outlive_readers, start, stop
from sra_core.processes.cluster import shard_executor
from sra_core.processes.devices import is_cuda, native_dtype
from sra_core.processes.pool import Pool

__all__ = [
    "STARTER",
    "Pool",
    "die_with_parent",
    "free_port",
    "is_cuda",
    "native_dtype",
    "outlive_readers",
    "shard_executor",
    "start",
    "stop",
]
