"""Answers by vLLM, behind the interface of `generation.generate`. Never run on a GPU by this project's tests.

The same prompts, limits, stop tokens and seeds go in, and the same answers come out; but vLLM draws its own random
numbers, and neither its samples nor its rounding are those of our loop: answers of the two are not mixed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sra_core.errors import EvaluationError
from sra_core.evaluate.decisions import Sampling
from sra_core.evaluate.generation import GREEDY, Answer, FinishReason, Prompt, cut_prompt, positions_of, stop_tokens
from sra_core.models.likelihood import Side

__all__ = ["Engine", "generate", "open_engine"]


@dataclass(frozen=True, slots=True)
class Engine:
    """A model that vLLM serves, and what a prompt must fit.

    Attributes:
        llm: vLLM's engine.
        config, generation_config: The model's own configs, as transformers reads them.
    """

    llm: Any
    config: Any
    generation_config: Any


def open_engine(folder: str | Path, dtype: str, trusted: bool) -> Engine:
    """Load the Hugging Face folder of a model into vLLM.

    Args:
        folder: Local folder with safetensors weights.
        dtype: Type of the weights.
        trusted: Whether code that the folder ships may run.
    """
    from transformers import AutoConfig, GenerationConfig
    from vllm import LLM

    # Tokens go in and come out: prompts are those of `generation`, and texts are decoded as there.
    llm = LLM(model=str(folder), dtype=dtype, skip_tokenizer_init=True, trust_remote_code=trusted)
    try:
        settings = GenerationConfig.from_pretrained(folder)
    except OSError:  # many models ship none
        settings = GenerationConfig()
    return Engine(llm, AutoConfig.from_pretrained(folder, trust_remote_code=trusted), settings)


def generate(
    model: Engine,
    tokenizer: Any,
    rows: Sequence[Any],
    side: Side = "student",
    *,
    seed: int = 10,
    sampling: Sampling = GREEDY,
    max_new_tokens: int = 128,
    max_prompt: int = 256,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Answer the prompt of every row; arguments as for `generation.generate`, ``batch_size`` is vLLM's own business.

    Raises:
        EvaluationError: vLLM ended an answer for a reason of its own.
    """
    positions = positions_of(model.config)
    prompts = [cut_prompt(row, side, tokenizer, positions, max_new_tokens, max_prompt) for row in rows]
    stops = stop_tokens(model, tokenizer)
    wanted = [
        _parameters(prompt, stops, sampling, _seed(seed, row.id)) for row, prompt in zip(rows, prompts, strict=True)
    ]
    made = model.llm.generate([{"prompt_token_ids": prompt.ids} for prompt in prompts], wanted, use_tqdm=False)
    if progress:
        progress(len(rows), len(rows))
    return [
        _answer(row, seed, prompt, output.outputs[0], tokenizer, stops)
        for row, prompt, output in zip(rows, prompts, made, strict=True)
    ]


def _seed(seed: int, example: str) -> int:
    """A seed of the example's own, so that its answer does not depend on the others."""
    # The number that `text_generator` takes as well.
    return int.from_bytes(hashlib.sha256(f"{seed}\0{example}".encode()).digest()[:8], "big") >> 1


def _parameters(prompt: Prompt, stops: frozenset[int], sampling: Sampling, seed: int) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=prompt.limit,
        seed=seed,
        # What `generation` stops at, whatever vLLM would find by itself.
        stop_token_ids=sorted(stops),
        detokenize=False,
    )


def _answer(row: Any, seed: int, prompt: Prompt, output: Any, tokenizer: Any, stops: frozenset[int]) -> Answer:
    reasons: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
    if output.finish_reason not in reasons:
        raise EvaluationError(
            f"vLLM ended the answer to example {row.id} with {output.finish_reason!r}",
            "look at vLLM's log, or set evaluate.backend to transformers",
        )
    tokens = [int(token) for token in output.token_ids]
    # vLLM leaves the token that it stopped at among the answer's, `generation` does not.
    if tokens and tokens[-1] in stops:
        tokens.pop()
    return Answer(
        id=row.id,
        seed=seed,
        text=tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        tokens=tuple(tokens),
        finish_reason=reasons[output.finish_reason],
        prompt_tokens=len(prompt.ids),
        prompt_cut=prompt.cut,
    )
