"""What all flows do: run stages as tasks, watched by MLflow and Prefect, and start as a script."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_UI_URL

from flows.retries import is_passing, refuse_endless_starts, stage_task
from flows.watcher import PrefectWatcher
from sra_core.bench import Bench, Report, bench_report, run_cells
from sra_core.config import RunConfig
from sra_core.config.load import load_config, parse_overrides
from sra_core.doctor import check_datasets, check_tools
from sra_core.errors import SraError, StorageError
from sra_core.run import Run
from sra_core.shards import Manifest
from sra_core.stages import STAGES
from sra_core.watch import Watcher, Watchers, redact_text
from sra_core.watch.mlflow import MlflowWatcher, PipelineRun, benchmark_run, pipeline_run

__all__ = ["run_as_script", "run_grid", "run_pipeline", "run_stage"]


def run_stage(stage: str, config: RunConfig) -> Manifest:
    """Run one stage as a task of the current flow run.

    Raises:
        ConfigError: A tool of evaluation is not installed: told before it starts.
        TrainingError: The flow run was started too often: it crashes again and again.
    """
    _name_flow_run(config.title)
    return _run_stages([stage], Run(config), None)[stage]


def run_pipeline(config: RunConfig) -> dict[str, Manifest]:
    """Run the stages that the config needs one after the other, each as a task of the current flow run.

    Raises:
        ConfigError: A tool of evaluation is not installed: told before the first stage.
        DataError: A data set of evaluation cannot be read: likewise.
        TrainingError: The flow run was started too often: it crashes again and again.
    """
    _name_flow_run(config.title)
    run = Run(config)
    with pipeline_run(config, _run_tags()) as parent:
        return _run_stages(run.stages, run, parent)


def _run_stages(stages: Iterable[str], run: Run, parent: PipelineRun | None) -> dict[str, Manifest]:
    refuse_endless_starts()
    stages = list(stages)
    if "evaluate" in stages:
        check_tools(run.config)
        check_datasets(run.config)
    return {stage: stage_task(stage, _run_one)(stage, run, parent) for stage in stages}


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
    _name_flow_run(config.grid_title)
    refuse_endless_starts()
    bench, watch = Bench(config, variants, seeds), PrefectWatcher()
    watch.begin("benchmark", config.name, config, f"{len(bench.selected)} cells", reused=False)

    def run_one(stage: str, run: Run, parent: PipelineRun | None, name: str) -> Manifest:
        manifest: Manifest = stage_task(stage, _run_one, name)(stage, run, parent)
        return manifest

    with benchmark_run(config, _run_tags()) as parent:
        run_cells(bench, run_one, parent, watch)
        report = stage_task("report", _report_grid)(bench, parent)
        watch.close()
        bench.require_all_ran()
    manifest: Manifest = report.manifest
    return manifest


def _name_flow_run(name: str) -> None:
    if flow_run.id and flow_run.name != name:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, name=name)
        context = FlowRunContext.get()
        if context and context.flow_run:
            context.flow_run.name = name  # what tags of MLflow runs say


def _run_one(stage: str, run: Run, parent: PipelineRun | None) -> Manifest:
    with _watching(run.config, parent) as watch:
        return STAGES[stage](run, watch)


def _report_grid(bench: Bench, parent: PipelineRun | None) -> Report:
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


def _run_tags() -> dict[str, str]:
    """Where an MLflow run comes from in Prefect."""
    tags = {
        "prefect.flow_run_id": flow_run.id,
        "prefect.flow_run_name": flow_run.name,
        "prefect.flow_run_url": flow_run.ui_url if PREFECT_UI_URL.value() else None,
        "prefect.deployment": deployment.name,
    }
    return {name: str(value) for name, value in tags.items() if value}


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
