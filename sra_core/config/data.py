"""The data: which examples there are, and how they are tokenized and aligned."""

from __future__ import annotations

import string
from typing import Literal

from pydantic import Field, field_validator, model_validator

from sra_core.config.part import Part, runtime, where_set

__all__ = ["PAPER_PROMPT", "AlignmentConfig", "AuditThresholds", "ColumnField", "CorpusConfig"]


PAPER_PROMPT = (
    "Below is an instruction that describes a task.\n\n"
    "### Instruction:\n{instruction}\n\n{context_block}### Response:\n"
)
ColumnField = Literal["instruction", "context", "response", "system", "history", "tools", "messages", "id", "source"]
PLACEHOLDERS = ("instruction", "context", "system", "context_block")


class CorpusConfig(Part):
    """Examples: an instruction, an optional context and a response."""

    source: str = Field(
        "python-docs",
        description="`python-docs` (documentation of the running interpreter's standard library), a file or folder of JSONL, Parquet or CSV, or a hub data set id.",
    )
    revision: str | None = Field(None, description="Revision of a hub data set.")
    subset: str | None = Field(None, description="Configuration name of a hub data set.")
    hub_split: str = Field("train", description="Split of a hub data set to read.")
    streaming: bool = runtime(False, "Read a hub data set as a stream instead of downloading all of it first.")
    layout: Literal["auto", "instruction", "dolly", "alpaca", "messages", "text"] = Field(
        "auto",
        title="Columns",
        description="Names of the columns: a known layout, or `auto` to recognise it from the first row.",
    )
    columns: dict[ColumnField, str] = Field(
        {},
        description="Own names for the columns instruction, context, response, system, history, tools, messages, id or source (by which the audit is broken down); overrides the layout.",
    )
    ignore: list[str] = Field(
        [],
        description="Columns to leave out. A column that some layout gives a meaning to is read, or refused where it fits no field; this says that its words are not wanted.",
    )
    splits: dict[Literal["train", "validation", "test"], str | list[str]] = Field(
        {},
        title="Own splits",
        description="Which split of a hub data set, or which files of a folder (names or patterns such as `held_out/*.jsonl`), are train, validation and test; what is not named is not read. Unset, splits that the data brings by name are taken, and what it does not bring is chosen by hash.",
    )
    turns: Literal["last", "all"] = Field(
        "last",
        title="Conversation turns",
        description="Train on the last assistant turn of a conversation or on each of them.",
    )
    prompt: str = Field(
        PAPER_PROMPT,
        description="Plain prompt; {instruction}, {context}, {system} and {context_block} (the context under its own heading, empty without one) are filled in. A system prompt or a context that it has no place for goes before it or after the instruction.",
    )
    system: str = Field("", description="System prompt for examples that bring none.")
    validation_share: float = Field(
        0.05, ge=0, lt=1, description="Share of examples held out for validation while training, chosen by hash."
    )
    test_share: float = Field(
        0.05, ge=0, lt=1, description="Share of examples held out for evaluation, chosen by hash."
    )
    max_train: int | None = Field(None, ge=1, description="Use at most this many training examples, chosen by hash.")
    max_validation: int | None = Field(200, ge=1, description="Use at most this many validation examples.")
    max_test: int | None = Field(500, ge=1, description="Use at most this many test examples.")
    min_response: int = Field(1, ge=1, description="Shortest response kept, in characters.")
    max_response: int | None = Field(
        None, ge=1, description="Longest response kept, in characters; longer ones are dropped and counted, not cut."
    )
    deduplicate: bool = Field(
        True,
        description="Drop examples whose whole content (system prompt, history, instruction, context, response) was seen before.",
    )
    max_malformed: int = Field(
        0, ge=0, description="Malformed rows to put aside in a quarantine file before the run stops."
    )

    @field_validator("prompt")
    @classmethod
    def _known_placeholders(cls, prompt: str) -> str:
        try:
            parts = list(string.Formatter().parse(prompt))
        except ValueError as error:
            raise ValueError(f"prompt: {error}; write literal braces as {{{{ and }}}}") from error
        for _, name, spec, conversion in parts:
            if name is not None and (name not in PLACEHOLDERS or spec or conversion):
                raise ValueError(f"prompt: unknown placeholder {{{name}}}; known are {', '.join(PLACEHOLDERS)}")
        if not any(name == "instruction" for _, name, _, _ in parts):
            raise ValueError("prompt: has no {instruction}, so that all examples would ask the same")
        return prompt

    @model_validator(mode="after")
    def _columns_belong_to_layout(self) -> CorpusConfig:
        pair = {"instruction", "context", "response"} & set(self.columns)
        if "messages" in self.columns and (pair or self.layout not in ("auto", "messages")):
            raise ValueError("columns: messages goes with layout messages and without instruction, context, response")
        if self.layout == "messages" and pair:
            raise ValueError(f"columns: layout messages has no {', '.join(sorted(pair))}; name its messages instead")
        if self.layout == "text" and pair - {"response"}:
            raise ValueError("columns: layout text has a response only; choose layout instruction")
        return self

    @model_validator(mode="after")
    def _lengths_agree(self) -> CorpusConfig:
        if self.max_response is not None and self.max_response < self.min_response:
            raise ValueError("max_response is below min_response, so that no example is left; raise it")
        return self

    @model_validator(mode="after")
    def _shares_leave_training_data(self) -> CorpusConfig:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share leave nothing to train on; lower one of them")
        return self


class AuditThresholds(Part):
    """Bounds that the alignment must meet before the teacher runs."""

    min_coverage: float = runtime(0.5, "Smallest share of response bytes inside spans.", ge=0, le=1)
    max_tokens_per_span: float = runtime(8.0, "Largest mean number of tokens per span, on either side.", gt=0)
    max_dropped: float = runtime(0.5, "Largest share of examples dropped, whatever the reason.", ge=0, le=1)


class AlignmentConfig(Part):
    """Tokenization with both tokenizers and the span map."""

    max_length: int = Field(
        320,
        ge=8,
        description="Most tokens per example on either side; both sides are cut at the same place in the text.",
    )
    max_prompt: int = Field(
        256, ge=1, description="Most prompt tokens on either side; longer prompts lose whole tokens from the left."
    )
    truncate: Literal["end", "start", "drop"] = where_set(
        "end",
        "What goes where prompt and response have more than `max_length` tokens: the `end` of the response, its `start` (so that the model learns how answers end), or the whole example (`drop`). Counted as truncated or dropped.",
        title="Responses that are too long",
    )
    # On, SRA gets worse by 0.017 bits per byte on the pair of `quality`, in both seeds that were run (geometry 50).
    first_tokens: bool = Field(
        False,
        description="Let a student token that matches no teacher token learn from the first teacher token of the same bytes, instead of leaving it out of the shared vocabulary.",
    )
    examples_per_shard: int = Field(
        256, ge=1, description="Examples in one shard: the unit of work, of resuming and of memory."
    )
    gate: AuditThresholds = Field(
        AuditThresholds(), description="Thresholds that stop the run before the teacher is loaded."
    )
    workers: int = runtime(1, "Processes that tokenize; the result does not depend on it.", ge=1)

    @model_validator(mode="after")
    def _prompts_leave_room(self) -> AlignmentConfig:
        # One that nobody chose is a bound that short texts never meet; a run's config has all fields set.
        if "max_prompt" in self.model_fields_set and self.max_prompt + 2 > self.max_length:
            raise ValueError(
                f"max_prompt {self.max_prompt} leaves no room for a response in max_length {self.max_length}; "
                "lower max_prompt or raise max_length"
            )
        return self
