"""The one artifact that says what a flow run came to: scores, where the results lie, the config that ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.watcher import ArtifactWriter
from sra_core.config import RunConfig
from sra_core.shards import Manifest
from sra_core.watch import fenced, redact_text
from sra_core.watch.mlflow import PipelineRun, config_text, ui_command

__all__ = ["FlowSummary"]

_SCORES = {"bits_per_byte": "bits per byte", "rougeL": "ROUGE-L", "top1": "agrees with teacher"}


class FlowSummary:
    """Artifact ``summary`` of the current flow run; it is there from the start and grows with each stage.

    Args:
        title: What runs.
        config: Its settled config.
        parent: Its run in MLflow.
        grid: Whether it is a benchmark.
    """

    def __init__(self, title: str, config: RunConfig, parent: PipelineRun | None, *, grid: bool = False) -> None:
        self._title, self._config, self._parent, self._grid = title, config, parent, grid
        self._artifacts = ArtifactWriter()
        self._results: dict[str, Manifest] = {}
        self._report = ""
        self._write()  # from the start: a run that fails shows its settled config too

    def add(self, manifest: Manifest) -> None:
        """Tell the result of a stage."""
        self._results[manifest.stage] = manifest
        self._write()

    def report(self, text: str) -> None:
        """Tell what a benchmark found, in Markdown."""
        self._report = text
        self._write()

    def close(self) -> None:
        """Deliver what is left."""
        self._write()  # MLflow may have named its run since
        self._artifacts.close()

    def _write(self) -> None:
        parts = [f"# {self._title}", self._report, *self._scores(), self._folders()]
        parts += ["## Config", fenced(config_text(self._config, grid=self._grid), "yaml")]
        clean = [redact_text(part) for part in parts]
        clean.insert(-3, self._links())  # redacted already; one of them ends in what looks like a key
        text = "\n\n".join(part for part in clean if part)
        self._artifacts.write("markdown", "summary", text, "What ran, and what came of it")

    def _scores(self) -> list[str]:
        evaluated = self._results.get("evaluate")
        return [] if evaluated is None else [_table_of_scores(evaluated.metrics)]

    def _links(self) -> str:
        if self._parent is None:
            return ""
        if self._parent.url:
            return f"[Run in MLflow]({self._parent.url}) · [scores of all runs]({self._parent.scores_url})"
        return f"MLflow: `{redact_text(' '.join(ui_command(self._config)))}`"

    def _folders(self) -> str:
        lines = [f"| {stage} | `{manifest.folder}` |" for stage, manifest in self._results.items()]
        if "distill" in self._results:
            lines.append(f"| student | `{self._results['distill'].folder}/student` |")
        return "\n".join(["| result | folder |", "|---|---|", *lines]) if lines else ""


def _table_of_scores(metrics: Mapping[str, float]) -> str:
    lines = ["| | student | before training | change | teacher | to the teacher |", "|---|---|---|---|---|---|"]
    for metric, title in _SCORES.items():
        student, initial, teacher = (
            metrics.get(f"evaluate/{model}/{metric}") for model in ("student", "initial", "teacher")
        )
        if student is not None:
            cells = [
                _number(student),
                _number(initial),
                _gap(student, initial),
                _number(teacher),
                _gap(student, teacher),
            ]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"


def _gap(value: float, other: float | None) -> str:
    return "" if other is None else f"{value - other:+.3g}"
