"""The Dask cluster that ``config.dask`` names: where the shards of prepare and cache are made."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from sra_core.config import RunConfig
from sra_core.errors import ConfigError, StorageError

__all__ = ["shard_executor"]

_PATIENCE = 30
"""Seconds in which the scheduler has to answer and a worker has to be there."""


@contextmanager
def shard_executor(config: RunConfig, given: Executor | None = None) -> Iterator[Executor | None]:
    """The executor to make shards on: the caller's, the cluster of the config, or None for this process's own.

    Raises:
        ConfigError: The extra `dask` is not installed.
        StorageError: The scheduler does not answer or has no worker; a later try may succeed.
    """
    if given is not None or config.dask is None:
        yield given
        return
    try:
        import distributed
    except ImportError as error:
        raise ConfigError("dask is set, and the package is not installed", "pip install 'sra[dask]'") from error
    try:
        client = distributed.Client(config.dask, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise StorageError(f"no Dask scheduler answers at {config.dask}: {error}", "start it, or unset dask") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError as error:
            raise StorageError(f"the Dask scheduler at {config.dask} has no worker", "start `dask worker`") from error
        # Dask takes a task with equal arguments for one that it has done (`pure`); this one depends on the store.
        yield client.get_executor(pure=False)
