"""The models: the teacher, and the student as it starts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sra_core.config.part import Part, runtime

__all__ = ["ModelRef", "StudentConfig", "TeacherConfig"]


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
    trust_remote_code: bool = Field(
        False, description="Run Python code that the model's repository ships. Off unless you have read that code."
    )


class TeacherConfig(ModelRef):
    """The model that is imitated."""

    source: str = Field("HuggingFaceTB/SmolLM2-135M-Instruct", description=ModelRef.model_fields["source"].description)
    template: Literal["plain", "chat"] = Field(
        "plain",
        title="Teacher prompt",
        description="`plain` fills `corpus.prompt`; `chat` uses the model's own chat template.",
    )


class StudentConfig(ModelRef):
    """The model that learns."""

    source: str = Field(
        "teacher",
        description="`teacher` prunes the teacher itself; anything else is a model reference as for the teacher.",
    )
    template: Literal["plain", "chat"] = Field(
        "plain",
        title="Student prompt",
        description="`plain` fills `corpus.prompt`; `chat` uses the model's own chat template.",
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
