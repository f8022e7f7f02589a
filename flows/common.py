"""What all flows share: parameters of the form, the task that runs a stage, what is worth a second try, the script."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_UI_URL
from prefect.states import State
from prefect.tasks import exponential_backoff
from pydantic import BaseModel, Field

from flows.watching import PrefectWatcher
from sra_core.config import RunConfig, merged, nested
from sra_core.errors import ShardError, SraError, StorageError, TrainingError
from sra_core.recipes import load_config, parse_overrides, recipe_names
from sra_core.redaction import redact_text
from sra_core.tracking import MlflowWatcher, PipelineRun, benchmark_run, pipeline_run
from sra_core.watching import Watcher, Watchers

if TYPE_CHECKING:
    from sra_core.shards import Manifest

__all__ = [
    "NO_RECIPE",
    "Overrides",
    "Recipe",
    "is_passing",
    "needed",
    "run_as_script",
    "run_grid",
    "run_stages",
    "settle",
    "stage_task",
]

NO_RECIPE = "none"
RETRIES = 3
MOST_STARTS = 6
"""Starts of one flow run: crashed runs are scheduled again (deploy/automations.yaml), but not for ever."""
Recipe = Annotated[
    str,
    Field(
        title="Recipe",
        description="Run config to start from; `none` starts from the defaults.",
        json_schema_extra={"enum": [NO_RECIPE, *recipe_names()]},
    ),
]
Overrides = Annotated[
    dict[str, Any],
    Field(
        title="Overrides",
        description='Dotted fields that win over everything else, such as {"distill.epochs": 2}; also the way to set a '
        "field of a recipe back to its default.",
    ),
]


def settle(recipe: str, config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """The run config that the form asks for: recipe < fields of ``config`` that differ from the defaults < overrides.

    A form sends every field of ``config``, touched or not; one that equals its default counts as untouched.

    Raises:
        ConfigError: Names the unknown recipe, or the field that is unknown or has a bad value.
    """
    wanted = merged(_touched(config, RunConfig()), nested(overrides))
    return load_config(None if recipe == NO_RECIPE else recipe, wanted, "form or overrides")


def _touched(config: BaseModel, default: BaseModel) -> dict[str, Any]:
    touched: dict[str, Any] = {}
    for name in type(config).model_fields:
        value, usual = getattr(config, name), getattr(default, name)
        if value == usual:
            continue
        both = isinstance(value, BaseModel) and isinstance(usual, BaseModel)
        touched[name] = _touched(value, usual) if both else config.model_dump(include={name})[name]
    return touched


def is_passing(error: BaseException | None) -> bool:
    """Whether a second try may succeed where the first one failed.

    Passing: damaged or missing shards (they are made again), a store that is full or locked, and the network or the
    system, also as the named cause of another error. Everything else a user must mend first.
    """
    if isinstance(error, (ShardError, StorageError)):
        return True
    if isinstance(error, SraError):
        return _is_outage(error.__cause__)
    return _is_outage(error) or (isinstance(error, OSError) and not isinstance(error, _LASTING))


_LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def _is_outage(error: BaseException | None) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError, ChildProcessError, httpx.TransportError))


def _worth_retrying(task: Any, task_run: Any, state: State) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_passing(error)


def _run_stage(stage: str, config: RunConfig, parent: PipelineRun | None) -> Manifest:
    function = getattr(importlib.import_module("sra_core.stages"), stage)
    with _watching(config, parent) as watch:
        manifest: Manifest = function(config, watch)
        return manifest


def _report_grid(bench: Any, parent: PipelineRun | None) -> Any:
    from sra_core.benchmarking import bench_report

    with _watching(bench.config, parent) as watch:
        return bench_report(bench, watch, parent)


@contextmanager
def _watching(config: RunConfig, parent: PipelineRun | None) -> Iterator[Watcher]:
    """MLflow and Prefect watch what the body does; what is left to tell Prefect is told at its end."""
    mlflow = MlflowWatcher(config, parent, _run_tags())
    prefect = PrefectWatcher(mlflow)
    try:
        yield Watchers(mlflow, prefect)
    except Exception as error:
        prefect.close(patience=20.0)
        hidden = _without_secrets(error)
        if hidden is error:
            raise
        raise hidden from hidden.__cause__  # Prefect keeps message and traceback
    except BaseException:
        prefect.close(patience=2.0)
        raise
    prefect.close()


def _without_secrets(error: Exception) -> Exception:
    """The error itself, or one like it whose message holds no secret; a passing cause stays one."""
    text = redact_text(str(error))
    if text == str(error):
        return error
    hidden: Exception = RuntimeError(f"{type(error).__name__}: {text}")
    if isinstance(error, SraError):
        hidden = type(error)(redact_text(error.problem), redact_text(error.remedy))
    if is_passing(error) and not is_passing(hidden):
        hidden = hidden if isinstance(hidden, SraError) else StorageError(str(hidden), "try again")
        hidden.__cause__ = ConnectionError("its message held a secret")
    return hidden


def stage_task(stage: str, name: str | None = None, work: Callable[..., Any] = _run_stage) -> Any:
    """The task that runs a stage. No result is kept by Prefect: a stage that is done returns at once by fingerprint.

    Args:
        stage: Name of the stage.
        name: What to call its run; unset takes the stage's name.
        work: What the task calls.
    """
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


def needed(config: RunConfig) -> list[str]:
    """Names of the stages that the config needs, in order."""
    names: list[str] = importlib.import_module("sra_core.stages").needed(config)
    return names


def run_stages(names: Iterable[str], config: RunConfig, parent: PipelineRun | None = None) -> dict[str, Manifest]:
    """Run stages one after the other, each as a task of the current flow run.

    Raises:
        ConfigError: A tool of evaluation is not installed: told before the first stage.
        TrainingError: The flow run was started too often: it crashes again and again.
    """
    _refuse_endless_starts()
    names = list(names)
    if "evaluate" in names:
        importlib.import_module("sra_core.stages").check_tools(config)
    return {name: stage_task(name)(name, config, parent) for name in names}


def run_grid(config: RunConfig, variants: Sequence[str] = (), seeds: Sequence[int] = ()) -> Manifest:
    """Run a benchmark, each stage of each cell as a task of the current flow run, and report what is done.

    Args:
        config: The benchmark.
        variants: Only these variants; empty takes all.
        seeds: Only these seeds; empty takes all.

    Returns:
        The report's manifest.

    Raises:
        TrainingError: A cell failed (the others were run and reported), or the flow run was started too often.
    """
    from sra_core import benchmarking

    _refuse_endless_starts()
    bench, watch = benchmarking.Bench(config, variants, seeds), PrefectWatcher()
    watch.begin("benchmark", config.name, config, f"{len(bench.selected)} cells", reused=False)

    def run_stage(stage: str, own: RunConfig, parent: PipelineRun | None, name: str) -> Manifest:
        manifest: Manifest = stage_task(stage, name)(stage, own, parent)
        return manifest

    with benchmark_run(config, _run_tags()) as parent:
        benchmarking.run_cells(bench, run_stage, parent, watch)
        report = stage_task("report", work=_report_grid)(bench, parent)
        watch.close()
        bench.require_all_ran()
    manifest: Manifest = report.manifest
    return manifest


def _refuse_endless_starts() -> None:
    if (flow_run.run_count or 0) > MOST_STARTS:
        raise TrainingError(
            f"this flow run was started {flow_run.run_count} times and never came to its end",
            "look for its crash in the worker's log (out of memory is the usual cause), mend it and trigger a new run; "
            "finished stages are not repeated",
        )


def _run_tags() -> dict[str, str]:
    """Where an MLflow run comes from in Prefect."""
    tags = {
        "prefect.flow_run_id": flow_run.id,
        "prefect.flow_run_name": flow_run.name,
        "prefect.flow_run_url": flow_run.ui_url if PREFECT_UI_URL.value() else None,
        "prefect.deployment": deployment.name,
    }
    return {name: str(value) for name, value in tags.items() if value}


@contextmanager
def tracked_pipeline(config: RunConfig) -> Any:
    """The MLflow parent run of the current pipeline flow run."""
    with pipeline_run(config, _run_tags()) as parent:
        yield parent


def run_as_script(flow: Callable[..., Any], arguments: list[str] | None = None) -> int:
    """Run a flow from the command line, without a server: ``python -m flows.pipeline smoke --set distill.epochs=1``.

    Returns:
        Exit status: 1 after an error that the message explains.
    """
    parser = argparse.ArgumentParser(description=(flow.__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", nargs="?", default="quickstart", help="recipe name or YAML file")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="FIELD=VALUE")
    options = parser.parse_args(arguments)
    try:
        overrides = parse_overrides(options.assignments)
        load_config(options.recipe, overrides)  # before anything is started
        sys.stdout.write(_outcome(flow(recipe=options.recipe, overrides=overrides)))
    except SraError as error:
        parser.exit(1, f"{error}\n")
    return 0


def _outcome(result: Any) -> str:
    """What a person wants to know at the end: scores and where the results are."""
    manifests = list(result.values()) if isinstance(result, Mapping) else [result]
    summaries = [
        Path(manifest.folder) / "summary.md" for manifest in manifests if manifest.stage in ("evaluate", "benchmark")
    ]
    places = [f"{manifest.stage:<9} {manifest.folder}" for manifest in manifests]
    students = [f"student   {manifest.folder}/student" for manifest in manifests if manifest.stage == "distill"]
    return "\n".join(["", *(path.read_text() for path in summaries), *places, *students, ""])
