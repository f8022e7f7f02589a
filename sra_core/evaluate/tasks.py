"""Tasks of lm-eval, scored example by example, so that they get the same intervals and tests as every other metric."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

    shots = config.shots
    manager = _manager(config, shots)
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    # The model that is loaded already, in the type in which everything else is scored.
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=config.batch_size, device=str(model.device))
    rows: list[dict[str, Any]] = []
    # One call for each number of solved examples, which lm-eval takes for all tasks of a call.
    for count in dict.fromkeys(shots.values()):
        names = [name for name, asked in shots.items() if asked == count]
        try:
            made = simple_evaluate(
                wrapped,
                tasks=names,
                num_fewshot=count,
                task_manager=manager,
                limit=config.lm_eval_limit,
                apply_chat_template=config.lm_eval_chat and tokenizer.chat_template is not None,
                bootstrap_iters=0,  # intervals come from `compare`, over examples and seeds
            )
        except Exception as error:  # a task runs code and reads data of its own: whatever it raises, it is at fault
            raise EvaluationError(
                f"lm-eval tasks {', '.join(names)}: {type(error).__name__}: {error}",
                "check the task's data (it may need the network), or remove the task from evaluate.lm_eval",
            ) from error
        rows += _rows(made, names)
    if not rows:
        raise EvaluationError(
            f"lm-eval tasks {', '.join(config.lm_eval)} have no metric that is a mean over examples",
            "choose tasks with metrics such as acc or exact_match",
        )
    return pa.Table.from_pylist(rows, schema=TASK_SCHEMA)


def _manager(config: EvaluateConfig, names: Iterable[str]) -> Any:
    from lm_eval.tasks import TaskManager

    folder = Path(config.lm_eval_folder).expanduser() if config.lm_eval_folder else None
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"evaluate.lm_eval_folder: there is no folder {folder}", "name the folder of your task files")
    manager = TaskManager(include_path=str(folder) if folder else None)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise ConfigError(
            f"evaluate.lm_eval: lm-eval has no task {', '.join(unknown)}",
            "`lm-eval ls tasks` lists its tasks; your own go into evaluate.lm_eval_folder",
        )
    return manager


def _rows(made: Mapping[str, Any], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Scores by example of every metric whose mean over them is what lm-eval reports.

    A group (MMLU has 57 tasks) is one task where lm-eval reports the mean over all of its examples; else its tasks
    stand for themselves.
    """
    for name in names:
        tasks = list(_tasks_of(made.get("group_subtasks", {}), name))
        whole = list(_scored(made, name, tasks))
        yield from whole
        if not whole and tasks != [name]:
            for task in tasks:
                yield from _scored(made, task, [task])


def _tasks_of(groups: Mapping[str, Sequence[str]], name: str) -> Iterator[str]:
    if not groups.get(name):
        yield name
        return
    for part in groups[name]:
        yield from _tasks_of(groups, part)


def _scored(made: Mapping[str, Any], title: str, tasks: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The metrics of one task, or of a group's tasks together."""
    samples = [(task, sample) for task in tasks for sample in made["samples"][task]]
    for name, better in made["higher_is_better"][tasks[0]].items():
        # A task may read an answer by several filters (strict, flexible): it has each example once for each.
        for kind in dict.fromkeys(sample["filter"] for _, sample in samples):
            values = {
                (task, sample["doc_id"]): sample.get(name) for task, sample in samples if sample["filter"] == kind
            }
            if not _is_mean(list(values.values()), made["results"].get(title, {}).get(f"{name},{kind}")):
                continue
            metric = name if kind == "none" else f"{name} ({kind})"
            for (task, number), value in values.items():
                place = str(number) if task == title else f"{task}/{number}"
                yield {"task": title, "id": place, "metric": metric, "value": float(value), "higher": better}


def _is_mean(values: list[Any], reported: Any) -> bool:
    numbers = all(isinstance(value, int | float | np.number | np.bool_) for value in [*values, reported])
    return numbers and bool(values) and bool(np.isclose(np.mean(values), reported))
