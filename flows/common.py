"""What all flows do: run stages as tasks, watched by MLflow and Prefect, and start as a script."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_UI_URL

from flows.recovery import remember_process
from flows.retries import is_passing, refuse_endless_starts, stage_task
from flows.summary import FlowSummary
from flows.watcher import PrefectWatcher
from sra_core.bench import Bench, Report, bench_report, run_cells
from sra_core.config import RunConfig
from sra_core.config.load import load_config, parse_overrides
from sra_core.doctor import check_datasets, check_devices, check_examples, check_layers, check_models, check_tools
from sra_core.errors import SraError, StorageError
from sra_core.plan import stage_seconds
from sra_core.processes import outlive_readers
from sra_core.runs import Run
from sra_core.shards import Manifest
from sra_core.stages import STAGES
from sra_core.watch import Watcher, Watchers, mask_logs, redact_text
from sra_core.watch.mlflow import MlflowWatcher, PipelineRun, benchmark_run, pipeline_run

__all__ = ["run_as_script", "run_grid", "run_pipeline", "run_stage"]


def run_stage(stage: str, config: RunConfig) -> Manifest:
    """Run one stage as a task of the current flow run.

    Raises:
        ConfigError: A layer that a model lacks, or a tool of evaluation that is not installed: told before it starts.
        ModelError: A model that cannot be used: likewise.
        TrainingError: The flow run was started too often: it crashes again and again.
    """
    with _started():
        return _run_stages([stage], Run(config), None)[stage]


def run_pipeline(config: RunConfig) -> dict[str, Manifest]:
    """Run the stages that the config needs one after the other, each as a task of the current flow run.

    Raises:
        ConfigError: A layer that a model lacks, or a tool that is not installed: told before the first stage.
        ModelError: A model that cannot be used: likewise.
        DataError: A data set of evaluation cannot be read: likewise.
        TrainingError: The flow run was started too often: it crashes again and again.
    """
    run = Run(config)
    with _started(), pipeline_run(config, _run_tags()) as parent:
        return _run_stages(run.stages, run, parent)


@contextmanager
def _started() -> Iterator[None]:
    """What holds for a whole flow run, whatever its body does."""
    outlive_readers()
    with _masked_errors():
        refuse_endless_starts()
        remember_process()
        yield


def _run_stages(stages: Iterable[str], run: Run, parent: PipelineRun | None) -> dict[str, Manifest]:
    _name_flow_run(run.config.title)
    stages, made = list(stages), {}
    with closing(FlowSummary(run.config.title, run.config, parent)) as summary:
        check_models(run.config)
        check_layers(run.config)
        check_devices(run.config)
        if "evaluate" in stages:
            check_tools(run.config)
            check_datasets(run.config)
        for stage in stages:
            made[stage] = stage_task(stage, _run_one)(stage, run, parent)
            summary.add(made[stage])
            if stage == "prepare" and "evaluate" in stages:
                check_examples(run.config, made[stage])
    return made


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
    bench, watch = Bench(config, variants, seeds), PrefectWatcher()
    watch.begin("benchmark", config.name, config, f"{len(bench.selected)} cells", reused=False)

    def run_one(stage: str, run: Run, parent: PipelineRun | None, name: str) -> Manifest:
        cell = name.removeprefix(stage).strip()
        manifest: Manifest = stage_task(stage, _run_one, name)(stage, run, parent, cell)
        return manifest

    with (
        _started(),
        benchmark_run(config, _run_tags()) as parent,
        closing(FlowSummary(config.grid_title, config, parent, grid=True)) as summary,
    ):
        run_cells(bench, run_one, parent, watch, stage_seconds)
        report = stage_task("report", _report_grid)(bench, parent)
        summary.add(report.manifest)
        summary.report((Path(report.manifest.folder) / "summary.md").read_text())
        watch.close()
        bench.require_all_ran()
    manifest: Manifest = report.manifest
    return manifest


def _name_flow_run(name: str) -> None:
    name = redact_text(name)
    if flow_run.id and flow_run.name != name:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, name=name)
        context = FlowRunContext.get()
        if context and context.flow_run:
            context.flow_run.name = name  # what tags of MLflow runs say


def _run_one(stage: str, run: Run, parent: PipelineRun | None, cell: str = "") -> Manifest:
    with _watching(run.config, parent, cell) as watch:
        return STAGES[stage](run, watch)


def _report_grid(bench: Bench, parent: PipelineRun | None) -> Report:
    with _watching(bench.config, parent) as watch:
        return bench_report(bench, watch, parent)


@contextmanager
def _watching(config: RunConfig, parent: PipelineRun | None, cell: str = "") -> Iterator[Watcher]:
    """MLflow and Prefect watch what the body does; what is left to tell Prefect is told at its end."""
    mlflow = MlflowWatcher(config, parent, _run_tags())
    prefect = PrefectWatcher(mlflow, cell)
    try:
        with _masked_errors():
            yield Watchers(mlflow, prefect)
    except Exception:
        prefect.close(patience=20.0)
        raise
    except BaseException:
        prefect.close(patience=2.0)
        raise
    prefect.close()


@contextmanager
def _masked_errors() -> Iterator[None]:
    """Errors that leave the body hold no secret, nor do log lines: Prefect keeps message and traceback."""
    mask_logs()
    try:
        yield
    except Exception as error:
        hidden = _without_secrets(error)
        if hidden is error:
            raise
        # With `from`, tracebacks leave out the error that was met first, whose message holds the secret.
        raise hidden from hidden.__cause__


def _without_secrets(error: Exception) -> Exception:
    """The error itself, or one like it if its message or that of a cause holds a secret; a passing cause stays one."""
    if all(redact_text(str(each)) == str(each) for each in _with_causes(error)):
        return error
    text = redact_text(str(error))
    hidden: Exception = RuntimeError(f"{type(error).__name__}: {text}")
    if isinstance(error, SraError):
        hidden = type(error)(redact_text(error.problem), redact_text(error.remedy))
    if is_passing(error) and not is_passing(hidden):
        hidden = hidden if isinstance(hidden, SraError) else StorageError(str(hidden), "try again")
        hidden.__cause__ = ConnectionError("its message held a secret")
    return hidden


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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
