"""The run config: the one source of the CLI's flags, the YAML recipes and the form in the Prefect UI.

Every field says what it is for. A field marked ``runtime`` changes how a stage runs but never what it writes, so it
stays out of the stage's fingerprint. Values that contradict each other are refused when the config is built.
"""

from __future__ import annotations

import copy
import string
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "AdaptConfig",
    "AlignmentConfig",
    "AuditGate",
    "BenchConfig",
    "CacheConfig",
    "CorpusConfig",
    "DatasetConfig",
    "DistillConfig",
    "EvaluateConfig",
    "LoraConfig",
    "ModelRef",
    "ObjectiveConfig",
    "RunConfig",
    "StudentConfig",
    "TrackingConfig",
    "TrainingConfig",
    "Variant",
    "identity",
    "merged",
    "nested",
]

DType = Literal["float32", "bfloat16", "float16"]
PAPER_PROMPT = (
    "Below is an instruction that describes a task.\n\n"
    "### Instruction:\n{instruction}\n\n{context_block}### Response:\n"
)


PAPER_PROTOCOL: dict[str, Any] = {
    "generate": None,
    "max_new_tokens": 512,
    "max_prompt": 256,
    "temperature": 1.0,
    "top_p": 1.0,
    "seeds": [10, 20, 30, 40, 50],
}
PLACEHOLDERS = ("instruction", "context", "system", "context_block")


def runtime(default: Any, description: str, **constraints: Any) -> Any:
    """A field that changes how a stage runs, never the bytes that it writes."""
    return Field(default, description=description, json_schema_extra={"fingerprint": False}, **constraints)


class Part(BaseModel):
    """A section of the run config: unknown keys are refused, values are checked when built."""

    model_config = ConfigDict(extra="forbid", validate_default=True, validate_assignment=True)


class ModelRef(Part):
    """Where a model comes from."""

    source: str = Field(
        description="Hub id, local folder, GGUF file, `package:NAME==VERSION/MEMBER.gguf` (a model that a Python package "
        "ships) or `random:ARCHITECTURE?layers=2&width=32` (a tiny untrained model made on the spot)."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub; unset takes the default branch.")
    sha256: str | None = Field(
        None, description="Checksum that a packaged or GGUF weights file must have.", pattern="^[0-9a-f]{64}$"
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
    columns: dict[Literal["instruction", "context", "response", "system", "messages", "id", "source"], str] = Field(
        {},
        description="Own names for the columns instruction, context, response, system, messages, id or source (by which the audit is broken down); overrides the layout.",
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


class AuditGate(Part):
    """Bounds that the alignment must meet before the teacher runs."""

    min_coverage: float = Field(0.5, ge=0, le=1, description="Smallest share of response bytes inside spans.")
    max_tokens_per_span: float = Field(8.0, gt=0, description="Largest mean number of tokens a span, on either side.")
    max_dropped: float = Field(0.5, ge=0, le=1, description="Largest share of examples dropped, whatever the reason.")


class AlignmentConfig(Part):
    """Tokenization with both tokenizers and the span map."""

    max_length: int = Field(
        320,
        ge=8,
        description="Most tokens an example on either side; both sides are cut at their last common cut that fits.",
    )
    max_prompt: int = Field(
        256, ge=1, description="Most prompt tokens on either side; longer prompts lose whole tokens from the left."
    )
    first_tokens: bool = Field(
        False,
        description="Let a student token that matches no teacher token learn from the first teacher token of the same bytes, instead of leaving it out of the shared vocabulary.",
    )
    examples_per_shard: int = Field(
        256, ge=1, description="Examples in one shard: the unit of work, of resuming and of memory."
    )
    gate: AuditGate = Field(AuditGate(), description="Bounds that fail the run before the teacher is loaded.")
    workers: int = runtime(1, "Processes that tokenize; the result does not depend on it.", ge=1)


class CacheConfig(Part):
    """Capture of the teacher's span centres."""

    dtype: Literal["bfloat16", "float32", "int8"] = Field(
        "bfloat16", title="Stored type", description="How centres are stored; int8 keeps one float16 scale a span."
    )
    compression: Literal["none", "zstd"] = Field(
        "none", title="Compression", description="zstd is smaller; none can be memory-mapped without a copy."
    )
    compute_dtype: DType = Field(
        "float32",
        title="Teacher precision",
        description="Type of the teacher's weights and activations while capturing.",
    )
    layers: list[int] = Field(
        [],
        description="Teacher layers to keep besides those of `objective.layers`, so that one cache serves students mapped otherwise.",
    )
    token_states: bool = Field(
        False,
        description="Keep the last layer's token states, the whole LM head and the embeddings whatever the objective, so that one cache serves the token-level objectives too.",
    )
    check: int = runtime(
        8, "Examples of a new cache that the teacher computes again, to measure what storing them changed.", ge=0
    )
    max_center_error: float = runtime(
        0.05, "Largest relative error of a stored centre or token state; past it the stage fails.", gt=0
    )
    max_mass_error: float = runtime(
        0.02, "Largest error of a stored mass (all spans of a text weigh at most 1); past it the stage fails.", gt=0
    )
    max_loss_error: float = runtime(
        0.05, "Largest relative error that the cache causes in a loss term; past it `sra cache --check` fails.", gt=0
    )
    workers: int = runtime(1, "Processes that capture; on a machine with several GPUs, each takes the next one.", ge=1)
    compile: bool = runtime(False, "Compile the teacher's layers with torch.compile before capturing.")
    device: str = runtime("auto", "`auto`, `cpu`, `cuda` or `cuda:N`.")
    tokens_per_batch: int = runtime(4096, "Most teacher tokens (padding included) in one forward.", ge=1)


class ObjectiveConfig(Part):
    """What the student minimises."""

    name: Literal["sra", "sft", "uld", "mined", "dskd", "multilevel_ot", "alm", "fkl", "rkl", "js", "skl"] = Field(
        "sra",
        title="Objective",
        description="`sra` aligns spans with the teacher, `sft` is cross-entropy alone; `uld`, `mined`, `dskd`, "
        "`multilevel_ot` and `alm` are rivals across tokenizers, `fkl`, `rkl`, `js` and `skl` (forward, reverse, "
        "Jensen-Shannon, skewed divergence) need the teacher's own tokenizer.",
    )
    layers: list[tuple[int, int]] = Field(
        [(-1, -1)], min_length=1, description="Pairs of teacher and student layers, counted from 1; -1 is the last."
    )
    alpha: float = Field(0.5, ge=0, le=1, description="Weight of cross-entropy; the teacher's terms weigh 1 - alpha.")
    cosine: float | list[float] = Field(
        1.0, description="Weight lambda of the cosine term: one number, or one a layer pair."
    )
    geometry: float = Field(50.0, ge=0, description="Weight gamma of the geometry term.")
    logit: float = Field(1.0, ge=0, description="Weight of the span-logit KL; 1 in the paper.")
    trajectory: float = Field(
        0.0, ge=0, description="Weight of the optional trajectory term over consecutive layer pairs."
    )
    mass_power: float = Field(1.0, ge=0, description="Power p of the teacher's span mass in the loss weights.")
    temperature: float = Field(
        2.0,
        gt=0,
        description="Temperature tau of the span-logit KL, and of the KL terms of `mined`, `dskd`, `fkl`, "
        "`rkl`, `js` and `skl`.",
    )
    skew: float = Field(
        0.1, ge=0, lt=1, description="Share of the teacher in the mixture that `skl` compares with the teacher."
    )
    logit_reduction: Literal["sum", "mean"] = Field(
        "mean",
        title="Span-logit reduction",
        description="Over the spans of a text: the paper's `sum`, or `mean`, which long texts do not blow up.",
    )
    weighted_pooling: bool = Field(
        True, description="Weigh tokens by attention inside a span (WSP); off takes their plain mean."
    )
    weighted_loss: bool = Field(
        True, description="Weigh spans by the teacher's mass in the loss (WSL); off weighs all alike."
    )
    logit_chunk: int | None = runtime(
        None, "Spans a chunk of the logit term; unset picks one that bounds memory.", ge=1
    )

    @model_validator(mode="after")
    def _check(self) -> ObjectiveConfig:
        for pair in self.layers:
            if 0 in pair or min(pair) < -1:
                raise ValueError(f"layers: {list(pair)} is not a pair of layers; count from 1, or -1 for the last")
        if isinstance(self.cosine, list) and len(self.cosine) != len(self.layers):
            raise ValueError(
                f"cosine: {len(self.cosine)} weights for {len(self.layers)} layer pairs; give one number or one a pair"
            )
        if self.trajectory and len(self.layers) < 2:
            raise ValueError(
                "trajectory: needs at least two layer pairs; add a pair to objective.layers or set it to 0"
            )
        return self


class LoraConfig(Part):
    """Low-rank adapters in place of full fine-tuning."""

    rank: int = Field(16, ge=1, description="Rank of the adapters.")
    alpha: int = Field(64, ge=1, description="Scale of the adapters.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout on the adapters' input.")
    targets: list[str] | None = Field(
        None,
        description="Module names to adapt; unset takes the attention projections that the paper adapts for the architecture.",
    )


class TrainingConfig(Part):
    """Training of one model with DeepSpeed."""

    epochs: float = Field(10.0, gt=0, description="Passes over the training examples.")
    max_steps: int | None = Field(
        None, ge=1, description="At most this many optimizer steps; the epochs may end earlier. Unset runs all epochs."
    )
    batch_size: int = Field(16, ge=1, description="Examples a process takes at once.")
    group_by_length: bool = Field(
        False,
        description="Put examples of similar length into the same step. Saves most of the padding, but steps teach less: on the quickstart, half the time a step for 0.07 bits a byte after as many steps.",
    )
    accumulation: int = Field(1, ge=1, description="Batches in one optimizer step.")
    micro_batch: int | Literal["auto"] | None = Field(
        None,
        title="Examples in one forward",
        description="Unset takes the whole batch. A divisor of `batch_size` takes it in parts, `auto` halves it until memory suffices; the examples of a step stay the same.",
    )
    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate of the model.")
    min_learning_rate: float = Field(5e-6, ge=0, description="Floor of the cosine schedule.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps that warm up.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay; norms and biases are exempt.")
    clip: float = Field(1.0, ge=0, description="Largest gradient norm; 0 turns clipping off.")
    precision: DType = Field(
        "float32", title="Precision", description="Type of the model's weights and activations while training."
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0,
        title="ZeRO stage",
        description="What DeepSpeed partitions over the processes: 0 nothing, 1 optimizer, 2 gradients, 3 parameters.",
    )
    offload: bool = Field(
        False,
        description="Keep the optimizer (under ZeRO 3 the parameters too) in the memory of the CPU; needs ZeRO 1 to 3.",
    )
    processes: int = Field(1, ge=1, description="Training processes on each machine; one a GPU.")
    launcher: Literal["auto", "local", "hostfile", "slurm", "torchrun"] = runtime(
        "auto",
        "`local` starts processes on this machine, `hostfile` on those of `hostfile` by ssh, `slurm` one task a machine of the current allocation by srun, `torchrun` joins the processes that torchrun has started; `auto` tells from `hostfile` and the environment.",
        title="Launcher",
    )
    hostfile: str | None = runtime(
        None, "File that lists machines, one a line (`name slots=N`); the store must be shared by all."
    )
    lora: LoraConfig | None = Field(None, description="Train adapters instead of all weights.")
    deepspeed: dict[str, Any] = Field({}, description="DeepSpeed settings merged over the ones made from this config.")
    validate_every: int = Field(50, ge=1, description="Steps between measurements of held-out bits per byte.")
    patience: int | None = Field(
        None, ge=1, description="Stop after this many measurements without a better one; unset never stops early."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    non_finite: Literal["stop", "skip"] = Field(
        "stop",
        title="Non-finite loss or gradient",
        description="`stop` ends the run with the examples at fault; `skip` leaves the weights as they are and counts the step.",
    )
    max_skipped: int = Field(20, ge=0, description="Skipped steps after which the run stops all the same.")
    keep_best: bool = Field(
        True, description="Export the weights with the best held-out bits per byte instead of the last ones."
    )
    checkpoint_every: int = Field(50, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = runtime(2, "Checkpoints kept on disk.", ge=1)
    log_every: int = runtime(5, "Steps between logged metrics.", ge=1)
    diagnose_every: int = runtime(
        0,
        "Steps between looks at why training goes as it does: gradient norm of each term, cosine of centres, share of spans and vocabulary in use. One costs a backward pass a term; 0 turns it off.",
        ge=0,
    )
    spike: float = runtime(6.0, "Report a loss this many deviations above the usual one.", gt=0)
    device: str = runtime("auto", "`auto`, `cpu` or `cuda`.")

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> TrainingConfig:
        micro = self.micro_batch
        if isinstance(micro, int) and (micro < 1 or self.batch_size % micro):
            raise ValueError(f"micro_batch: {micro} is no divisor of batch_size {self.batch_size}; choose one that is")
        return self

    @model_validator(mode="after")
    def _diagnosis_needs_whole_parameters(self) -> TrainingConfig:
        if self.diagnose_every and self.zero_stage == 3:
            raise ValueError(
                "diagnose_every: under ZeRO 3 no process has whole gradients; set it to 0, or zero_stage to 2"
            )
        return self

    @model_validator(mode="after")
    def _offload_needs_partitions(self) -> TrainingConfig:
        if self.offload and self.zero_stage == 0:
            raise ValueError("offload: there is nothing to offload under ZeRO 0; set zero_stage to 1, 2 or 3")
        return self


class DistillConfig(TrainingConfig):
    """Training of the student with DeepSpeed."""

    projector_learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate of the projectors.")
    keep_last: bool = Field(
        False, description="Export the weights of the last step too, beside the student, as folder `last`."
    )
    keep_adapter: bool = Field(False, description="Keep the adapter too, beside the student that it was merged into.")


class AdaptConfig(TrainingConfig):
    """Fine-tuning of the teacher on the corpus before its states are captured, as the paper does."""

    enabled: bool = Field(False, description="Adapt the teacher first (`sra adapt`); off takes it as it is.")
    epochs: float = Field(3.0, gt=0, description="Passes over the training examples.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate of the teacher.")
    min_learning_rate: float = Field(1e-6, ge=0, description="Floor of the cosine schedule.")
    lora: LoraConfig | None = Field(LoraConfig(), description="Train adapters; unset trains all weights.")
    merge: bool = Field(
        True, description="Keep the adapted teacher whole; off keeps its adapter alone, and merges when it is used."
    )

    @model_validator(mode="after")
    def _only_adapters_stand_alone(self) -> AdaptConfig:
        if not self.merge and self.lora is None:
            raise ValueError("merge: off keeps the adapter alone, and there is none; set adapt.lora or merge")
        return self


class DatasetConfig(Part):
    """A data set to evaluate on, beside the corpus's own test split."""

    name: str = Field(description="Name in tables and metrics, such as `dialogsum`.", pattern="^[a-z][a-z0-9_]*$")
    source: str = Field(
        description="A file or folder of JSONL, Parquet or CSV, an fsspec URL (`hf://datasets/ID/FILE` is one), or a hub data set id."
    )
    revision: str | None = Field(None, description="Revision of a hub data set.")
    subset: str | None = Field(None, description="Configuration name of a hub data set.")
    split: str = Field("train", description="Split of a hub data set to read.")
    layout: Literal["auto", "instruction", "dolly", "alpaca", "messages", "text"] = Field(
        "auto", title="Columns", description="Names of the columns, as `corpus.layout`."
    )
    columns: dict[Literal["instruction", "context", "response", "system", "messages", "id", "source"], str] = Field(
        {}, description="Own names for the columns, as `corpus.columns`."
    )
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
        [], description="Tasks of lm-eval to score each model on, such as `arc_easy`; needs the extra `lm-eval`."
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
    seeds: list[int] = Field([10], min_length=1, description="Seeds to sample with; greedy decoding uses one.")
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
    initial: bool = Field(True, description="Score the student before training, as the floor.")
    samples: int = Field(3, ge=0, description="Answers shown side by side in the summary.")
    batch_size: int = runtime(16, "Examples in one forward.", ge=1)
    device: str = runtime("auto", "`auto`, `cpu` or `cuda`.")

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
                    self.__dict__[name] = copy.copy(value)
        return self


class TrackingConfig(Part):
    """MLflow."""

    enabled: bool = Field(True, description="Track every stage in MLflow.")
    uri: str | None = Field(
        None, description="Tracking server or database; unset keeps a SQLite database inside the store."
    )
    experiment: str = Field("sra", description="Experiment that collects the runs.")
    system_metrics: bool = Field(False, description="Log CPU, memory and GPU use while a stage runs.")


class Variant(Part):
    """One contender of a benchmark."""

    name: str = Field(min_length=1, description="What tables and figures call it.")
    overrides: dict[str, Any] = Field(
        {}, description='Dotted fields in which it differs from the run, such as {"objective.name": "sft"}.'
    )


class BenchConfig(Part):
    """The grid of `sra bench`: every variant with every seed, on one corpus with one budget."""

    variants: list[Variant] = Field(
        [
            Variant(name=name, overrides={"objective.name": name})
            for name in ("sra", "sft", "uld", "mined", "dskd", "multilevel_ot", "alm")
        ],
        min_length=1,
        description="What is compared: a name each, and the fields in which it differs from the run.",
    )
    seeds: list[int] = Field(
        [1, 2, 3], min_length=1, description="Seeds that every variant is trained with; each takes the place of `seed`."
    )
    reference: str = Field("sft", description="Variant that every other one is paired with, example by example.")

    @model_validator(mode="after")
    def _names_and_seeds_are_distinct(self) -> BenchConfig:
        names = [variant.name for variant in self.variants]
        kinds: tuple[tuple[str, list[Any]], ...] = (("variants", names), ("seeds", self.seeds))
        for what, values in kinds:
            if twice := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"{what}: {twice[0]!r} occurs twice; its results would count twice")
        if self.reference not in names:
            raise ValueError(f"reference: {self.reference!r} is none of the variants {', '.join(names)}")
        return self


class RunConfig(Part):
    """All that determines a run: data, models, alignment, cache, objective, training, evaluation."""

    name: str = Field(
        "run", description="Name of the run in Prefect and MLflow.", json_schema_extra={"fingerprint": False}
    )
    store: str = runtime("sra-store", "Folder that keeps the results of every stage.")
    dask: str | None = runtime(
        None,
        "Address of a Dask scheduler, such as tcp://node1:8786, whose workers make the shards of prepare and cache.",
    )
    seed: int = Field(0, ge=0, description="Seed of initialisation, data order, dropout and sampling.")
    teacher: TeacherConfig = Field(TeacherConfig(), description="The model that is imitated.")
    student: StudentConfig = Field(StudentConfig(), description="The model that learns.")
    corpus: CorpusConfig = Field(CorpusConfig(), description="Where examples come from.")
    alignment: AlignmentConfig = Field(AlignmentConfig(), description="Tokenization, span map and audit gate.")
    adapt: AdaptConfig = Field(
        AdaptConfig(), description="Fine-tuning of the teacher before the capture; off by default."
    )
    cache: CacheConfig = Field(CacheConfig(), description="Capture of the teacher's span centres.")
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="What the student minimises.")
    distill: DistillConfig = Field(DistillConfig(), description="Training of the student.")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="Scores on held-out examples.")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow.", json_schema_extra={"fingerprint": False})
    bench: BenchConfig = Field(
        BenchConfig(),
        description="What `sra bench` compares around this run; other commands have no use for it.",
        json_schema_extra={"fingerprint": False},
    )


def identity(part: BaseModel) -> dict[str, Any]:
    """The fields of a config part that determine results, nested as in the config and ready for JSON.

    Fields marked ``runtime`` are left out.
    """
    return dict(_identity_items(part))


def _identity_items(part: BaseModel) -> Iterator[tuple[str, Any]]:
    for name, field in type(part).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("fingerprint") is False:
            continue
        value = getattr(part, name)
        yield name, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over`` put over it, mapping by mapping; other values are replaced whole."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted fields, such as ``{"distill.epochs": 2}``, as nested mappings."""
    result: dict[str, Any] = {}
    for name, value in dotted.items():
        for key in reversed(name.split(".")):
            value = {key: value}
        result = merged(result, value)
    return result
