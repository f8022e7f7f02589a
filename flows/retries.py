"""When a task is tried again, how often, and how a flow run that only crashes comes to an end."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import httpx
from huggingface_hub import errors as hub
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import State
from prefect.tasks import exponential_backoff

from sra_core.errors import ShardError, SraError, StorageError, TrainingError

__all__ = ["is_outage", "is_passing", "refuse_endless_starts", "stage_task"]

RETRIES = 3
MOST_STARTS = 6
"""Starts of one flow run: crashed runs are scheduled again (deploy/automations.yaml), but not for ever."""


def is_passing(error: BaseException | None) -> bool:
    """Whether a second try may succeed where the first one failed.

    Passing: damaged or missing shards (they are made again), a store that is full or locked, and the network or the
    system, also as the named cause of another error. Everything else a user must mend first.
    """
    if isinstance(error, (ShardError, StorageError)):
        return True
    if isinstance(error, SraError):
        return is_outage(error.__cause__)
    return is_outage(error) or (isinstance(error, OSError) and not isinstance(error, _LASTING))


# The next try would meet these again: a wrong path or missing rights are for a person to mend.
_LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def is_outage(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is of the network, a disk, an overloaded server or a killed process."""
    while error:
        if isinstance(error, hub.OfflineModeIsEnabled):  # a kind of ConnectionError, but a person's own wish
            return False
        if isinstance(error, (ConnectionError, TimeoutError, ChildProcessError)):
            return True
        if isinstance(error, OSError) and error.errno == errno.EIO:
            return True
        if isinstance(error, (httpx.HTTPError, hub.HTTPError)):  # the hub's client need not be of the same library
            answer = getattr(error, "response", None)
            return answer is None or answer.status_code >= 500 or answer.status_code in (408, 429)
        error = error.__cause__
    return False


def _worth_retrying(task: Any, task_run: Any, state: State) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_passing(error)


def stage_task(stage: str, work: Callable[..., Any], name: str | None = None) -> Any:
    """The task that runs a stage. No result is kept by Prefect: a stage that is done returns at once by fingerprint.

    Args:
        stage: Name of the stage.
        work: What the task calls.
        name: What to call its run; unset takes the stage's name.
    """
    # No tags: a tag's slots are taken from the Prefect server, which may be away.
    return task(
        work,
        name=stage,
        task_run_name=name or stage,
        retries=RETRIES,
        retry_delay_seconds=exponential_backoff(5),
        retry_jitter_factor=0.3,
        retry_condition_fn=_worth_retrying,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


def refuse_endless_starts() -> None:
    if (flow_run.run_count or 0) > MOST_STARTS:
        raise TrainingError(
            f"this flow run was started {flow_run.run_count} times and never came to its end",
            "look for its crash in the worker's log (out of memory is the usual cause), mend it and trigger a new run; "
            "finished stages are not repeated",
        )
