"""`sra generate`: the corpus with the teacher's own answers as training responses (SeqKD, arXiv 1606.07947).

The result is a corpus like any other: plain fine-tuning on it is sequence-level distillation. What chooses and measures
stays as it is: validation and test responses are those of the corpus.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sra_core.config import CorpusConfig, RunConfig
from sra_core.corpus import Corpus, Example, Turn
from sra_core.corpus.split import SPLITS
from sra_core.errors import DataError
from sra_core.evaluate import AnswerSettings, EvaluationSet, Scoring
from sra_core.models import load_tokenizer, model_identity
from sra_core.runs import Run
from sra_core.shards import SCHEMA_VERSION, Manifest, PreparedSet, StageFolder, atomic_write
from sra_core.watch import Watcher

__all__ = ["GENERATED", "generate_corpus", "identity", "settings_for"]

GENERATED = "corpus"
"""Subfolder of the result that is the corpus: a file of JSON lines a split."""

LEARNED = ("answered", "answered_without_end")
"""What becomes of an example that is learned from; the others are counted by what keeps them out."""


def identity(run: Run) -> dict[str, Any]:
    """All that determines the generated corpus."""
    return {
        "schema": SCHEMA_VERSION,
        # Whole, so that `StageFolder.missing` can name the fields in which the nearest result differs.
        "prepared": run.identity("prepare"),
        "teacher": model_identity(run.adapted.teacher),
        "compute_dtype": run.config.cache.compute_dtype,
        "answers": asdict(AnswerSettings.of(_answering(run.config).evaluate)),
    }


def settings_for(config: CorpusConfig, folder: Path) -> list[str]:
    """Settings, as `--set` takes them, that read a generated corpus in the place of the one that it was made from.

    Args:
        config: Of the recipe that it was generated with; what says how its source is read is set back.
        folder: The generated corpus.
    """
    of_source = ("revision", "subset", "hub_split", "streaming", "layout", "columns", "ignore", "splits")
    fresh = CorpusConfig()
    back = {name: getattr(fresh, name) for name in of_source if getattr(config, name) != getattr(fresh, name)}
    # A mapping is merged into the recipe's; null takes it back.
    told = [f"corpus.{name}={json.dumps(None if value == {} else value)}" for name, value in back.items()]
    return [f"corpus.source={folder}", *told]


def generate_corpus(config: RunConfig, prepared: Manifest, folder: StageFolder, watch: Watcher) -> Manifest:
    """Answer every training prompt with the teacher and write the corpus; answers made before a stop are kept.

    Args:
        config: The run config, the teacher adapted where it is to be.
        prepared: Prepared examples.
        folder: Where the corpus goes; its lock is held.
        watch: Told of progress.

    Raises:
        DataError: No training example has a prompt.
    """
    config = _answering(config)
    rows = [row for row in PreparedSet(prepared, "train") if row.prompt]
    if not rows:
        raise DataError(
            "no training example has a prompt: there is nothing that the teacher could answer",
            "give corpus.source instructions with responses; plain text is learned as it is",
        )
    asked = EvaluationSet("train", [], rows)
    table = Scoring(config, prepared, [asked], folder.path, watch).teacher_answers()
    counts = Counter[str]()
    texts = _lines(config, _judged(config, table), counts)
    if not texts["train"]:
        raise DataError(
            f"the teacher has no answer to learn from ({dict(counts)})",
            "look at its answers with `sra evaluate`; an instruct model needs `teacher.template: chat`",
        )
    for split, lines in texts.items():
        with atomic_write(folder.path / GENERATED / f"{split}.jsonl") as file:
            file.write("".join(lines).encode())
    return folder.commit(upstream=[prepared], files=folder.entries(GENERATED), counts=counts)


def _answering(config: RunConfig) -> RunConfig:
    """The config whose answers are to all prompts, one each, from what training reads and as long as it reads."""
    changes = {
        "generate": None,
        "seeds": config.evaluate.seeds[:1],
        "max_prompt": config.alignment.max_prompt,
        "max_new_tokens": config.alignment.max_length,
    }
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update=changes)})


def _judged(config: RunConfig, table: Any) -> dict[str, tuple[str, str]]:
    """By example, the teacher's answer and what becomes of it.

    An answer at the limit has no end to learn. Where prepare leaves the end of a long response out, it is learned
    without one; but an answer that takes fewer tokens when it is tokenized again, or that loses its start instead,
    would be learned as if the teacher had ended there. A prompt that leaves the teacher too few positions loses its
    start before it is asked, and would be learned whole.
    """
    tokenizer, keeps_start = load_tokenizer(config.teacher), config.alignment.truncate != "start"
    found = {}
    for answer in table.select(["id", "answer", "finish_reason", "prompt_tokens", "prompt_cut"]).to_pylist():
        text = answer["answer"]
        tokens = answer["prompt_tokens"] + len(tokenizer.encode(text, add_special_tokens=False))
        if answer["prompt_cut"]:
            fate = "cut_prompt"
        elif not text:
            fate = "empty_answer"
        elif answer["finish_reason"] == "stop":
            fate = "answered"
        else:
            learned_open = keeps_start and tokens > config.alignment.max_length
            fate = "answered_without_end" if learned_open else "cut_answer"
        found[answer["id"]] = text, fate
    return found


def _lines(config: RunConfig, answers: Mapping[str, tuple[str, str]], counts: Counter[str]) -> dict[str, list[str]]:
    """The lines of each split's file; ``counts`` says what became of every training example.

    A split without examples has a file too: it says that none of the others are to be chosen for it.
    """
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, item in Corpus(config.corpus):
        if not isinstance(item, Example):
            continue
        if split == "train":
            text, fate = answers.get(item.id, ("", "not_asked"))
            counts[fate] += 1
            if fate not in LEARNED:
                continue
            # A chat template had the teacher answer after what the example is reasoned with: so it is learned.
            asked_after = item.reasoning if config.teacher.template == "chat" else ""
            item = replace(item, response=text, reasoning=asked_after, references=())
        found[split].append(json.dumps(dict(_row(item)), ensure_ascii=False) + "\n")
    return found


def _row(example: Example) -> Iterator[tuple[str, Any]]:
    """Columns that the corpus reads back as the same example."""
    yield "id", example.id
    yield "source", example.source
    if example.is_text:
        yield "text", example.response
        return
    yield "instruction", example.instruction
    yield "response", example.response
    if example.context:
        yield "context", example.context
    if example.system:
        yield "system", example.system
    if example.history:
        yield "history", list(map(_turn, example.history))
    if example.tools:
        yield "tools", json.loads(example.tools)
    if example.reasoning:
        yield "reasoning_content", example.reasoning


def _turn(turn: Turn) -> dict[str, str]:
    thought = {"reasoning_content": turn.reasoning} if turn.reasoning else {}
    return {"role": turn.role, "content": turn.content, **thought}
