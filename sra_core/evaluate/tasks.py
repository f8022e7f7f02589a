"""Tasks of lm-eval, scored example by example, so that they get the same intervals and tests as every other metric."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sra_core.errors import ConfigError, EvaluationError
from sra_core.evaluate.settings import require_lm_eval

if TYPE_CHECKING:
    from sra_core.config import EvaluateConfig

__all__ = ["TASK_SCHEMA", "score_tasks"]

TASK_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("id", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("higher", pa.bool_()),
    ]
)


def score_tasks(model: Any, tokenizer: Any, config: EvaluateConfig) -> pa.Table:
    """Score a model on the tasks of ``lm_eval``.

    Args:
        model: A Hugging Face causal language model.
        tokenizer: Its tokenizer.
        config: Names the tasks, a folder with further ones, and a limit.

    Returns:
        A row an example and metric, with `TASK_SCHEMA`. Metrics that are no mean over examples are left out.

    Raises:
        ConfigError: lm-eval is not installed, or there is no such task.
        EvaluationError: A task cannot be scored.
    """
    require_lm_eval(config.lm_eval)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager = _manager(config)
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=config.batch_size, device=str(model.device))
    try:
        made = simple_evaluate(
            wrapped, tasks=list(config.lm_eval), task_manager=manager, limit=config.lm_eval_limit, bootstrap_iters=0
        )
    except Exception as error:  # a task runs code and reads data of its own: whatever it raises, the task is at fault
        raise EvaluationError(
            f"lm-eval tasks {', '.join(config.lm_eval)}: {type(error).__name__}: {error}",
            "check the task's data (it may need the network), or remove the task from evaluate.lm_eval",
        ) from error
    rows = list(_rows(made))
    if not rows:
        raise EvaluationError(
            f"lm-eval tasks {', '.join(config.lm_eval)} have no metric that is a mean over examples",
            "choose tasks with metrics such as acc or exact_match",
        )
    return pa.Table.from_pylist(rows, schema=TASK_SCHEMA)


def _manager(config: EvaluateConfig) -> Any:
    from lm_eval.tasks import TaskManager

    folder = Path(config.lm_eval_folder).expanduser() if config.lm_eval_folder else None
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"evaluate.lm_eval_folder: there is no folder {folder}", "name the folder of your task files")
    manager = TaskManager(include_path=str(folder) if folder else None)
    unknown = [name for name in config.lm_eval if name not in manager.all_tasks]
    if unknown:
        raise ConfigError(
            f"evaluate.lm_eval: lm-eval has no task {', '.join(unknown)}",
            "`lm-eval ls tasks` lists its tasks; your own go into evaluate.lm_eval_folder",
        )
    return manager


def _rows(made: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Scores by example of every metric whose mean over them is what lm-eval reports."""
    for task, samples in made["samples"].items():
        for name, better in made["higher_is_better"][task].items():
            scored = [(sample["doc_id"], sample["filter"], sample.get(name)) for sample in samples]
            for kind in dict.fromkeys(which for _, which, _ in scored):
                values = {number: value for number, which, value in scored if which == kind}
                reported = made["results"][task].get(f"{name},{kind}")
                if not _is_mean(list(values.values()), reported):
                    continue
                title = name if kind == "none" else f"{name} ({kind})"
                for number, value in values.items():
                    yield {"task": task, "id": str(number), "metric": title, "value": value, "higher": better}


def _is_mean(values: list[Any], reported: Any) -> bool:
    numbers = all(isinstance(value, int | float | np.number | np.bool_) for value in [*values, reported])
    return numbers and bool(values) and bool(np.isclose(np.mean(values), reported))
