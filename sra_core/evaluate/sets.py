"""What is evaluated on: the corpus's own test split and the data sets that the config names beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sra_core.alignment import AlignedExample, PairEncoder
from sra_core.compare import SCORING
from sra_core.config import AlignmentConfig, CorpusConfig, DatasetConfig, RunConfig, hashed
from sra_core.corpus import Corpus, Example, Rejected
from sra_core.errors import ConfigError, DataError, EvaluationError
from sra_core.evaluate.leaks import find_leaks
from sra_core.models import make_encoder, model_identity
from sra_core.runs import Run
from sra_core.shards import SCHEMA_VERSION, Manifest, PreparedRow, PreparedSet, file_digest
from sra_core.shards.prepared import prepared_row
from sra_core.watch import Watcher

__all__ = ["EvaluationSet", "check_datasets", "evaluation_sets", "identity"]

WHOLE = AlignmentConfig(max_length=2**30, max_prompt=2**29)
"""Limits that cut nothing."""
_CHUNK = 256


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Examples of one data set.

    Attributes:
        name: Name in tables and metrics.
        rows: As training sees them, prompt and response within the limits of ``alignment``: for likelihood and
            agreement. Examples without a common cut are not among them.
        questions: The same examples with whole prompts and references: for answers, whose prompts are cut at
            ``evaluate.max_prompt`` alone. Their tokens are those near the response: what is farther from it than
            a prompt can be long is never tokenized.
        references: Further references by example, where it has several.
    """

    name: str
    rows: list[PreparedRow]
    questions: list[PreparedRow]
    references: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def without(self, ids: frozenset[str]) -> EvaluationSet:
        """The set without some examples."""
        rows = [row for row in self.rows if row.id not in ids]
        questions = [row for row in self.questions if row.id not in ids]
        return replace(self, rows=rows, questions=questions)


def identity(run: Run) -> dict[str, Any]:
    """All that determines scores and answers.

    Raises:
        DataError: A data set cannot be read.
    """
    made: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "scoring": SCORING,
        # It names the prepared examples too, and so tokenizers, templates and the corpus's own test split.
        "students": run.fingerprint("distill"),
        "evaluate": _settings(run.config),
    }
    if run.config.adapt.enabled:
        made["adapted"] = run.fingerprint("adapt")
    # What the cache holds says which teacher it is; where the student is trained without one, nothing else does.
    if "cache" not in run.trained_from and (run.config.evaluate.teacher or run.config.evaluate.agreement):
        made["teacher"] = {**model_identity(run.adapted.teacher), "compute_dtype": run.config.cache.compute_dtype}
    return made


def _settings(config: RunConfig) -> dict[str, Any]:
    """The settings of evaluation that determine its results, with the content of what is read for where it lies.

    Raises:
        DataError: A data set cannot be read.
    """
    settings = hashed(config.evaluate)
    # What is read, not where it lies: a data set that was moved gives the same evaluation.
    settings["datasets"] = [
        {"name": each.name, "instruction": each.instruction, **_corpus(each, config).identity()}
        for each in config.evaluate.datasets
    ]
    if folder := config.evaluate.lm_eval_folder:
        settings["lm_eval_folder"] = [file_digest(path) for path in _task_files(Path(folder).expanduser())]
    return settings


def _task_files(folder: Path) -> list[Path]:
    """The files below a folder of tasks, without those that Python or an editor leave there."""
    found = []
    for path in folder.rglob("*"):
        left_there = any(part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts)
        if path.is_file() and not left_there:
            found.append(path)
    return sorted(found)


def evaluation_sets(
    config: RunConfig, prepared: Manifest, folder: Path, watch: Watcher
) -> tuple[list[EvaluationSet], dict[str, int]]:
    """All data sets without what occurs in the training data, and what was counted.

    Args:
        config: The run config.
        prepared: Prepared examples.
        folder: Where malformed rows are listed.
        watch: Told of leaks.

    Raises:
        DataError: A data set cannot be read.
        EvaluationError: There is no test example, or each occurs in the training data.
    """
    counts: dict[str, int] = {}
    kept = []
    for found, own in _sets(config, prepared, folder, counts):
        prefix = "" if own else f"{found.name}/"
        clean = _without_leaks(found, prefix, config, prepared, counts, watch)
        counts[f"{prefix}examples"] = len(clean.questions)
        if clean.questions:
            kept.append(clean)
        elif not own:
            watch.message(f"data set {found.name} has no example to score: it is left out")
    if not kept:
        raise EvaluationError(
            "there is no test example to score",
            "raise corpus.test_share; where examples were left out as leaked, look at evaluate.leaks",
        )
    return kept, counts


def _sets(
    config: RunConfig, prepared: Manifest, folder: Path, counts: dict[str, int]
) -> Iterator[tuple[EvaluationSet, bool]]:
    """Each data set, and whether it is the corpus's own."""
    rows = list(PreparedSet(prepared, "test"))[: config.evaluate.examples]
    yield EvaluationSet(config.evaluate.test_name, rows, _whole(config, prepared, rows)), True
    for each in config.evaluate.datasets:
        yield _named(each, config, Path(prepared.folder), folder, counts), False


def _whole(config: RunConfig, prepared: Manifest, rows: list[PreparedRow]) -> list[PreparedRow]:
    """The examples with whole prompts and responses; the corpus is read again where preparing cut any."""
    if not (prepared.counts.get("truncated") or prepared.counts.get("prompt_cut")):
        return rows
    wanted = {row.id for row in rows}
    found = (item for split, item in Corpus(config.corpus) if split == "test" and isinstance(item, Example))
    examples = [item for item in found if item.id in wanted]
    whole = {row.id: row for row in _questions(config, Path(prepared.folder), examples, Counter())}
    return [whole.get(row.id, row) for row in rows]


def _named(
    dataset: DatasetConfig, config: RunConfig, tokenizers: Path, folder: Path, counts: dict[str, int]
) -> EvaluationSet:
    examples, dropped = [], Counter[str]()
    for item in _items(dataset, config, folder / f"quarantine-{dataset.name}.jsonl"):
        if isinstance(item, Example):
            examples.append(_instructed(item, dataset.instruction))
        elif item.reason != "over_limit":  # a limit was asked for: nothing is lost by it
            dropped[item.reason] += 1
    questions = _questions(config, tokenizers, examples, dropped)
    # What is dropped was counted with the questions.
    rows = _encoded(make_encoder(config, tokenizers), examples, Counter())
    if len(rows) < len(questions):
        counts[f"{dataset.name}/without_likelihood"] = len(questions) - len(rows)
    counts |= {f"{dataset.name}/dropped_{reason}": count for reason, count in dropped.items()}
    # An end token typed after a response is left out of it, so of each reference too.
    without_end = make_encoder(config, tokenizers).without_end
    references = {example.id: tuple(map(without_end, example.references)) for example in examples if example.references}
    return EvaluationSet(dataset.name, rows, questions, references)


def _items(dataset: DatasetConfig, config: RunConfig, quarantine: Path | None = None) -> Iterator[Example | Rejected]:
    """What a data set holds: of a folder that brings splits by name its test files, or else its validation files.

    Raises:
        DataError: It cannot be read; in the words of the data set's own fields.
    """
    corpus = _corpus(dataset, config, quarantine)
    try:
        hub = corpus.identity()["data"]["kind"] == "hub"
        parts = () if hub else ("test", "validation")
        wanted = next((split for split in parts if split in corpus.brought), "train")
        for split, item in corpus:
            if split in ("", wanted):
                yield item
    except DataError as error:
        raise _named_error(error, dataset) from error


def check_datasets(config: RunConfig) -> None:
    """Read every data set of the config once, hours before it would be scored.

    Raises:
        ConfigError: A field of a data set that it has no use for.
        DataError: A data set cannot be read, or holds no example; names the data set.
    """
    for dataset in config.evaluate.datasets:
        reasons: Counter[str] = Counter()
        for item in _items(dataset, config):
            if isinstance(item, Example):
                break
            reasons[item.reason] += 1
        else:
            raise DataError(
                f"data set {dataset.name}: {dataset.source} holds no example to score ({dict(reasons)})",
                f"look at evaluate.datasets[{dataset.name}]: its columns, layout and split",
            )


def _corpus(dataset: DatasetConfig, config: RunConfig, quarantine: Path | None = None) -> Corpus:
    """The data set as a corpus of one split, all its examples as they are published, or as many as are asked for."""
    named = dataset.model_dump(exclude={"name", "split", "instruction"})
    read = CorpusConfig(
        **named,
        hub_split=dataset.split,
        # The run's own template: the student is asked in the form in which it learned.
        prompt=config.corpus.prompt,
        system=config.corpus.system,
        # Nothing is chosen by hash: all that is read is to be scored, duplicates too.
        validation_share=0,
        test_share=0,
        max_train=config.evaluate.examples,
        max_validation=config.evaluate.examples,
        max_test=config.evaluate.examples,
        deduplicate=False,
    )
    try:
        return Corpus(read, quarantine, several=True)
    except (ConfigError, DataError) as error:
        raise _named_error(error, dataset) from error


def _named_error(error: ConfigError | DataError, dataset: DatasetConfig) -> ConfigError | DataError:
    """The corpus's error in the words of the field that the reader set."""
    texts = (text.replace("corpus.hub_split", "split") for text in (error.problem, error.remedy))
    problem, remedy = (text.replace("corpus.", f"evaluate.datasets[{dataset.name}].") for text in texts)
    return type(error)(f"data set {dataset.name}: {problem}", remedy)


def _instructed(example: Example, instruction: str) -> Example:
    """The example under an instruction of the config's; its own becomes the context."""
    if not instruction:
        return example
    text = "\n\n".join(part for part in (example.instruction, example.context) if part)
    return replace(example, instruction=instruction, context=text)


def _questions(
    config: RunConfig, tokenizers: Path, examples: Sequence[Example], dropped: Counter[str]
) -> list[PreparedRow]:
    """Examples with whole texts, and as many tokens of their prompts as can be asked."""
    whole = config.model_copy(update={"alignment": WHOLE})
    return _encoded(make_encoder(whole, tokenizers, near=config.evaluate.max_prompt), examples, dropped)


def _encoded(encoder: PairEncoder, examples: Sequence[Example], dropped: Counter[str]) -> list[PreparedRow]:
    """Examples in both tokenizations; ``dropped`` counts those that cannot be."""
    rows = []
    for start in range(0, len(examples), _CHUNK):
        for item in encoder(examples[start : start + _CHUNK]):
            if isinstance(item, AlignedExample):
                rows.append(prepared_row(item))
            elif isinstance(item, Rejected):
                dropped[item.reason] += 1
    return rows


def _without_leaks(
    found: EvaluationSet, prefix: str, config: RunConfig, prepared: Manifest, counts: dict[str, int], watch: Watcher
) -> EvaluationSet:
    """The set as ``evaluate.leaks`` wants it."""
    settings = config.evaluate
    if settings.leaks == "off" or not found.questions:
        return found
    aligned = {row.id: row for row in found.rows}
    seen = [aligned.get(row.id, row) for row in found.questions]  # cut as the training examples are
    report = find_leaks(
        seen,
        PreparedSet(prepared, "train"),
        references=found.references,
        ngram=settings.leak_ngram,
        overlap=settings.leak_overlap,
    )
    counts |= {f"{prefix}leaked_{kind}": count for kind, count in report.counts().items() if count}
    if report.leaks:
        watch.table(f"evaluate/leaks_{found.name}", report.rows())
        action = "left out" if settings.leaks == "exclude" else "kept, as evaluate.leaks says"
        where = f" of {found.name}" if prefix else ""
        watch.message(f"{len(report.leaks)} test examples{where} occur in the training data: {action}")
    if settings.leaks == "report":
        return found
    counts[f"{prefix}excluded"] = len(report.ids)
    return found.without(report.ids)
