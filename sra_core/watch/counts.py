"""What a finished stage counted, in words: for the terminal and for log lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sra_core.shards import Manifest

__all__ = ["counted"]

_KEPT = {"kept_train": "training", "kept_validation": "validation", "kept_test": "test"}
_HAPPENED = {
    "left_out_by_corpus_max": "{} left out by corpus.max_train, max_validation or max_test",
    "truncated": "{} cut to alignment.max_length",
    "prompt_cut": "{} with a prompt cut to alignment.max_prompt",
    "special_as_text": "{} with a special token typed in them, kept as text",
    "end_stripped": "{} with an end token typed at their end, left out",
    "reasoning_left_out": "{} with reasoning that a template has no place for",
}
"""What the prepare stage says of examples, beside those it kept and those it dropped."""
_ENDINGS = {
    "shared_vocabulary": "{} tokens in the shared vocabulary",
    "states": "{} token states",
    "skipped": "{} steps skipped",
    "leaked_exact_prompt": "{} with a prompt that the training data holds",
    "leaked_near_prompt": "{} with a prompt that the training data nearly holds",
    "leaked_exact_response": "{} with a response that the training data holds",
    "leaked_near_response": "{} with a response that the training data nearly holds",
    "excluded": "{} left out of the scores",
    "without_likelihood": "{} without a likelihood",
    "answered": "{} training responses by the teacher",
    "answered_without_end": "{} training responses by the teacher without an end, as long as training reads",
    "empty_answer": "{} examples left out whose answer is empty",
    "cut_prompt": "{} examples left out whose prompt lost its start before the teacher was asked",
    "cut_answer": "{} examples left out whose answer was cut and would look whole",
    "not_asked": "{} examples left out that have no prompt or no span",
}
_ANSWERS = {"_empty_answers": "empty", "_unfinished_answers": "cut at the token limit"}


def counted(manifest: Manifest) -> str:
    """The counts of a result as a line for people; those that are 0 are left out."""
    counts = {name: count for name, count in manifest.counts.items() if count}
    if manifest.stage == "prepare":
        return "; ".join(_prepared(counts))
    return "; ".join(_told(name, count) for name, count in counts.items())


def _prepared(counts: Mapping[str, int]) -> Iterator[str]:
    kept = [f"{counts[name]:,} {split}" for name, split in _KEPT.items() if name in counts]
    yield f"kept {', '.join(kept) or 'no'} examples of {counts.get('in', 0):,}"
    dropped = {name.removeprefix("dropped_"): n for name, n in counts.items() if name.startswith("dropped_")}
    if dropped:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in dropped.items())
        yield f"dropped {sum(dropped.values()):,} ({reasons})"
    yield from (text.format(f"{counts[name]:,}") for name, text in _HAPPENED.items() if name in counts)


def _told(name: str, count: int) -> str:
    """One count; what stands before a slash is the data set that it is of."""
    dataset, _, kind = name.rpartition("/")
    of = f" of {dataset}" if dataset else ""
    if kind in _ENDINGS:
        return _ENDINGS[kind].format(f"{count:,}") + of
    for ending, what in _ANSWERS.items():
        if kind.endswith(ending):
            model = kind.removesuffix(ending).replace("initial", "initial student").replace("_", " ")
            return f"{count:,} {'answer' if count == 1 else 'answers'} of the {model} {what}{of}"
    return f"{count:,} {kind.replace('_', ' ')}{of}"
