"""Evaluation: on which data, by which protocol."""

from __future__ import annotations

import copy
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sra_core.config.data import ColumnField
from sra_core.config.part import Part, Seed, runtime, where_set

__all__ = ["DatasetConfig", "EvaluateConfig"]


PAPER_PROTOCOL: dict[str, Any] = {
    "generate": None,
    "max_new_tokens": 512,
    "max_prompt": 256,
    "temperature": 1.0,
    "top_p": 1.0,
    "seeds": [10, 20, 30, 40, 50],
}


class DatasetConfig(Part):
    """A data set to evaluate on, beside the corpus's own test split."""

    name: str = Field(description="Name in tables and metrics, such as `dialogsum`.", pattern="^[a-z][a-z0-9_]*$")
    source: str = Field(
        description="A file or folder of JSONL, Parquet or CSV, an fsspec URL (`hf://datasets/ID/FILE` is one), or a hub data set id."
    )
    revision: str | None = Field(None, description="Revision of a hub data set.")
    subset: str | None = Field(None, description="Configuration name of a hub data set.")
    split: str = Field(
        "train",
        description="Split of a hub data set to read. Of a folder that brings splits by name, its test files are read, or else its validation files.",
    )
    layout: Literal["auto", "instruction", "dolly", "alpaca", "messages", "text"] = Field(
        "auto", title="Columns", description="Names of the columns, as `corpus.layout`."
    )
    columns: dict[ColumnField, str] = Field({}, description="Own names for the columns, as `corpus.columns`.")
    ignore: list[str] = Field([], description="Columns to leave out, as `corpus.ignore`.")
    instruction: str = Field(
        "",
        description="Instruction for data that has none, such as dialogues with summaries; what was read as instruction is then the context.",
    )
    max_malformed: int = Field(0, ge=0, description="Malformed rows to put aside before the run stops.")


class EvaluateConfig(Part):
    """Scores on the held-out test examples."""

    examples: int | None = Field(
        None, ge=1, description="Evaluate at most this many examples of each data set; unset takes all of them."
    )
    generate: int | None = Field(
        100, ge=0, description="Generate answers for at most this many of them (for ROUGE); unset takes all, 0 none."
    )
    test_name: str = Field(
        "test",
        pattern="^[a-z][a-z0-9_]*$",
        description="Name of the corpus's own test split in tables and metrics, beside those of `datasets`.",
    )
    datasets: list[DatasetConfig] = Field(
        [],
        description="Data sets to evaluate on beside the corpus's own test split; each is scored by itself, and their average is reported.",
    )
    lm_eval: list[str] = Field(
        [],
        description="Tasks and groups of lm-eval to score each model on, such as `arc_easy`; `mmlu@5` shows it five solved examples first, a bare name as many as the task says. Needs the extra `lm-eval`.",
    )
    lm_eval_chat: bool = where_set(
        False, "Put prompts of lm-eval into the model's chat template, where its tokenizer has one."
    )
    lm_eval_folder: str | None = Field(None, description="Folder with lm-eval task files (YAML) of your own.")
    lm_eval_limit: int | None = Field(None, ge=1, description="At most this many examples of each lm-eval task.")
    backend: Literal["auto", "transformers", "vllm"] = Field(
        "auto",
        title="Generation",
        description="What generates answers: `transformers` is the project's own loop, `vllm` needs the extra of that name and CUDA; `auto` takes vllm where both are there.",
    )
    protocol: Literal["custom", "paper"] = Field(
        "custom",
        title="Protocol",
        description="`paper` samples at temperature 1 and top-p 1, at most 512 new tokens, prompts cut at 256, seeds 10 20 30 40 50, all test examples; `custom` takes the fields below.",
    )
    max_new_tokens: int = Field(128, ge=1, description="Longest generated answer in tokens.")
    max_prompt: int = Field(
        256, ge=1, description="Longest prompt to answer in tokens; longer ones lose whole tokens from the left."
    )
    temperature: float = Field(0.0, ge=0, description="0 decodes greedily; 1 with top_p 1 is the paper's sampling.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling: smallest set of tokens with this probability.")
    seeds: list[Seed] = Field([10], min_length=1, description="Seeds to sample with; greedy decoding uses one.")
    leaks: Literal["exclude", "report", "off"] = Field(
        "exclude",
        title="Leak check",
        description="Test examples that occur in the training data: `exclude` leaves them out of the scores, `report` only counts them, `off` does not look.",
    )
    leak_ngram: int = Field(13, ge=3, description="Words in the n-grams by which near copies are found.")
    leak_overlap: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of a prompt's or a response's n-grams, found in one training example, that makes it a near copy.",
    )
    teacher: bool = Field(True, description="Score the teacher on the same examples, as the ceiling.")
    agreement: bool = where_set(
        False,
        "Measure how closely the student says what the teacher says where the teacher itself is not scored, as in most cells of a grid; where it is scored, this is measured anyway.",
    )
    initial: bool = Field(True, description="Score the student before training, as the floor.")
    samples: int = Field(3, ge=0, description="Answers shown side by side in the summary.")
    batch_size: int = runtime(16, "Examples in one forward.", ge=1)
    device: str = runtime("auto", "`auto`, `cpu` or `cuda`.")

    @field_validator("leaks", mode="before")
    @classmethod
    def _off_is_no_boolean(cls, leaks: Any) -> Any:
        """A form or an older YAML writer hands `off` on as false."""
        return "off" if leaks is False else leaks

    @property
    def shots(self) -> dict[str, int | None]:
        """Solved examples that each task of ``lm_eval`` shows first; None leaves their number to the task."""
        parts = [task.partition("@") for task in self.lm_eval]
        return {name: int(count) if at else None for name, at, count in parts}

    @field_validator("lm_eval")
    @classmethod
    def _tasks_are_named_once(cls, tasks: list[str]) -> list[str]:
        names = [task.partition("@") for task in tasks]
        if odd := [task for task, (_, at, count) in zip(tasks, names, strict=True) if at and not count.isdecimal()]:
            raise ValueError(f"{odd[0]!r} has no number of solved examples after @; write it as `mmlu@5`, or `mmlu`")
        if len({name for name, _, _ in names}) < len(names):
            raise ValueError("a task is named twice; name it once, with one number of solved examples")
        return tasks

    @model_validator(mode="after")
    def _protocol_fixes_fields(self) -> EvaluateConfig:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one occurs twice; its answers would count twice")
        names = [self.test_name, *(each.name for each in self.datasets)]
        if len(set(names)) < len(names) or {"average", "teacher", "initial", "student"} & set(names):
            raise ValueError(
                f"datasets: the names {', '.join(names)} must differ from each other and from average, teacher, "
                "initial and student; rename one (test_name is that of the corpus's own test split)"
            )
        if self.protocol == "paper":
            for name, value in PAPER_PROTOCOL.items():
                own, default = getattr(self, name), type(self).model_fields[name].default
                if own not in (value, default) and name != "generate":
                    raise ValueError(
                        f"{name}: protocol `paper` fixes it at {value}; set protocol to `custom` to choose"
                    )
                if own == default:
                    # Past validate_assignment, which would run this validator again.
                    self.__dict__[name] = copy.copy(value)
        return self
