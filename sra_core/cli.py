"""The `sra` command: parse, build the config, run, say what came out. Logic lives in the packages."""

from __future__ import annotations

import difflib
import logging
import shlex
import signal
import sys
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from sra_core import __version__
from sra_core.errors import ConfigError, EvaluationError, ManifestMismatch, ShardError, SraError
from sra_core.watch import as_typed, quiet_telemetry, sra_command

if TYPE_CHECKING:
    from types import FrameType

    from sra_core.config import RunConfig
    from sra_core.watch import Watcher

__all__ = ["app", "main"]

app = typer.Typer(
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Benchmarks: variants of one recipe, each with several seeds, compared.", no_args_is_help=True)
app.add_typer(bench, name="bench")
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def _recipes(incomplete: str) -> list[str]:
    """What a shell offers where a recipe is asked for: shipped ones, and YAML files."""
    from sra_core.config.load import recipe_names

    above, slash, _ = incomplete.rpartition("/")
    files = [f"{above}{slash}{path.name}" for path in sorted(Path(above or slash or ".").glob("*.y*ml"))]
    return [name for name in [*recipe_names(), *files] if name.startswith(incomplete)]


Recipe = Annotated[
    str,
    typer.Argument(
        help="A recipe that comes with the package (`sra recipes` lists them), or your own YAML file.",
        autocompletion=_recipes,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="FIELD=VALUE",
        help="Set a field of the recipe, as in distill.epochs=2; see `sra fields`.",
    ),
]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Distil a student from a teacher with another tokenizer, by aligning spans of text (SRA)."""
    if version:
        console.print(__version__)
    elif context.invoked_subcommand is None:
        console.print(context.get_help())


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The recipe to write, such as mine.yaml.")],
    teacher: Annotated[str | None, typer.Option(help="Hub id, local folder or GGUF file of the teacher.")] = None,
    student: Annotated[
        str | None, typer.Option(help="Likewise of the student; `teacher` takes half of the teacher's layers.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="JSONL, Parquet or CSV file, a folder of these, a hub data set, or `python-docs`."),
    ] = None,
) -> None:
    """Write a recipe for a teacher, a student and data; on a terminal, what is not given is asked."""
    # Here and below imports stand in the commands: help and completion load nothing heavy.
    from sra_core.init import guesses, require_new, write_recipe

    require_new(path)
    given = {
        "teacher": ("Teacher (hub id, folder or GGUF file)", teacher),
        "student": ("Student (likewise, or `teacher` for half of its layers)", student),
        "data": ("Data (file, folder or hub data set, or `python-docs`)", data),
    }
    missing = [name for name, (_, value) in given.items() if not value]
    if missing and not sys.stdin.isatty():
        problem = f"not given: {', '.join(missing)}; and there is no terminal to ask on"
        raise ConfigError(problem, f"add {' '.join(f'--{name} ...' for name in missing)}")
    told = {name: value or typer.prompt(question) for name, (question, value) in given.items()}
    with console.status("looking at the models, and at the first examples"):
        found = guesses(path.stem, **told)
    write_recipe(path, found)
    _say(f"{path} is written. What was guessed, and from what (the file says it too):\n")
    table = Table(box=None, show_header=False, pad_edge=False)
    for guess in found:
        if guess.why:
            table.add_row(f"  {guess.field}", escape(str(guess.value)), f"[dim]{escape(guess.why)}")
    console.print(table)
    name = shlex.quote(str(path))
    _say(as_typed(f"\nNext: `sra doctor {name}`, `sra plan {name}`, `sra run {name}`"))


@app.command()
def run(recipe: Recipe, settings: Settings = None) -> None:
    """Run the whole pipeline: prepare, cache, distill, evaluate."""
    from sra_core import stages
    from sra_core.watch.mlflow import pipeline_run, tracking_uri

    config = _config(recipe, settings)
    with pipeline_run(config) as parent:
        results = stages.run(config, _watcher(config, parent))
    _summary(results["evaluate"].folder)
    sra = sra_command()
    chosen = shlex.join([recipe, *_flags(settings)])
    say = [f"The student:    {results['distill'].folder}/student"]
    if config.tracking.enabled:
        say.append(f"Runs in MLflow: {tracking_uri(config)}, opened by: {sra} ui {chosen}")
    evaluation = shlex.quote(results["evaluate"].folder)
    say.append(f"To compare it:  {sra} compare {evaluation} OTHER ...")
    say.append(f"To publish it:  {sra} publish {evaluation} --to OWNER/NAME")
    say.append(f"Another try:    {sra} run {chosen} --set distill.learning_rate=1e-3")
    say.append("                (finished stages are kept)")
    _say("\n".join(["", *say]))


@app.command()
def prepare(recipe: Recipe, settings: Settings = None) -> None:
    """Tokenize the corpus for both models and align the spans of text; audit how well they fit."""
    _stage("prepare", recipe, settings)


@app.command()
def adapt(recipe: Recipe, settings: Settings = None) -> None:
    """Fine-tune the teacher on the corpus before the cache is made (where `adapt.enabled` is set)."""
    _stage("adapt", recipe, settings)


@app.command()
def cache(
    recipe: Recipe,
    settings: Settings = None,
    check: Annotated[
        int, typer.Option(min=0, help="Also compare this many random examples of the cache with the live teacher.")
    ] = 0,
) -> None:
    """Run the teacher once over the training texts and keep what students learn from (the cache)."""
    _stage("cache", recipe, settings)
    if check:
        from sra_core.check_cache import check_cache

        config = _config(recipe, settings)
        with console.status(f"comparing {check} examples with the live teacher"):
            fidelity = check_cache(config, check)
        console.print(fidelity.table())
        fidelity.require(config)


@app.command()
def distill(recipe: Recipe, settings: Settings = None) -> None:
    """Train the student from the cache, with DeepSpeed."""
    _stage("distill", recipe, settings)


@app.command()
def evaluate(recipe: Recipe, settings: Settings = None) -> None:
    """Score teacher, student and the student before training on held-out examples."""
    manifest = _stage("evaluate", recipe, settings)
    _summary(manifest.folder)


@app.command()
def generate(recipe: Recipe, settings: Settings = None) -> None:
    """Answer the training prompts with the teacher: a corpus whose fine-tuning is sequence-level distillation."""
    from sra_core.generate import GENERATED, settings_for

    manifest = _stage("generate", recipe, settings)
    read = settings_for(_config(recipe, settings).corpus, Path(manifest.folder) / GENERATED)
    chosen = [recipe, *_flags([*(settings or []), *read, "objective.name=sft"])]
    _say(f"\nLearn from it: {sra_command()} run {shlex.join(chosen)}")


@app.command()
def audit(
    recipe: Recipe,
    settings: Settings = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="Also draw how one example is cut into spans, to this file (.svg, .png or .pdf)."),
    ] = None,
    example: Annotated[
        str, typer.Option(help="Id of the example to draw; unset: one with spans of several tokens.")
    ] = "",
) -> None:
    """Show how well the two tokenizers align on the corpus, before any teacher runs."""
    from sra_core.alignment import render_terminal
    from sra_core.prepare import AUDIT_PAGE, audit_of, check_figure, example_figure, write_figure
    from sra_core.runs import Run

    if example and not figure:
        raise ConfigError("--example says what to draw, but not where", "add --figure FILE.svg")
    if figure:
        check_figure(figure)
    manifest = _stage("prepare", recipe, settings)
    console.print(render_terminal(audit_of(manifest)))
    _say(f"\nThe whole report, for a browser: {manifest.folder}/{AUDIT_PAGE}")
    if figure:
        whole = write_figure(example_figure(Run(_config(recipe, settings)), example), figure)
        hint = "" if whole else " (letters that the font lacks are boxes; an .svg leaves them to its reader's fonts)"
        _say(f"The spans of one example, drawn: {figure.absolute()}{hint}")


@app.command()
def plan(recipe: Recipe, settings: Settings = None) -> None:
    """Predict what a run will take: examples, disk, memory, time. After the run, show how far off that was."""
    from sra_core.plan import plan_run

    config = _config(recipe, settings)
    with console.status("reading the corpus, and running both models for some seconds"):
        made = plan_run(config)
    console.print(made.table())
    for warning in made.warnings:
        console.print(f"[yellow]warning[/]  {escape(as_typed(warning))}")


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Evaluation folders, their fingerprints or MLflow run ids; NAME=RUN names one in the report."
        ),
    ],
    page: Annotated[
        Path | None,
        typer.Option("--page", "--output", "-o", help="Where the HTML page goes; unset: comparison-NAMES.html, here."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Name of the run that every other one is compared with; unset: the first.")
    ] = None,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Compare every two runs.")] = False,
    track: Annotated[bool, typer.Option("--track", help="Also log tables, figures and the page to MLflow.")] = False,
    recipe: Annotated[
        str, typer.Option(help="Recipe whose store and MLflow server are searched for runs.")
    ] = "quickstart",
    settings: Settings = None,
) -> None:
    """Compare finished runs on the same examples: tables here, and one HTML page.

    Runs other than folders are looked for in the store (`--set store=FOLDER` or SRA_STORE) and its MLflow.
    """
    from sra_core.compare import compare_runs, page_name, read_runs, terminal_report, write_report

    if page:
        _require_file(page, "--page")
    config = _config(recipe, settings)
    found = read_runs([_finished(config, run) for run in runs])
    comparison = compare_runs(found, reference=reference, all_pairs=all_pairs)
    for part in terminal_report(comparison):
        console.print(part)
    page = page or Path(page_name(comparison))
    replaced = " (in place of the one that was there)" if page.exists() else ""
    write_report(comparison, page)
    _say(f"\nThe whole report, for a browser: {page.absolute()}{replaced}")
    if track:
        from sra_core.compare import track_comparison

        _say(f"In MLflow: run {track_comparison(config, comparison, page)}")


@app.command()
def publish(
    run: Annotated[str, typer.Argument(help="Evaluation folder, its fingerprint or an MLflow run id.")],
    to: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Repository on the hub; made if it is not there.")],
    public: Annotated[bool, typer.Option("--public", help="Make it public; otherwise it is private.")] = False,
    licence_allows_it: Annotated[
        bool,
        typer.Option(
            "--licence-allows-it",
            help="You have read the terms of the teacher and of the student's source, and they let you publish this.",
        ),
    ] = False,
    recipe: Annotated[
        str, typer.Option(help="Recipe whose store and MLflow server are searched for runs.")
    ] = "quickstart",
    settings: Settings = None,
) -> None:
    """Upload the student of a finished run, with its card, to the Hugging Face hub (with HF_TOKEN or `hf auth login`).

    Refused where the licence of a model that it is made from forbids it.
    """
    from sra_core.publish import publish as upload
    from sra_core.publish import require_licences, student_of

    config = _config(recipe, settings)
    student = student_of(config, _finished(config, run)[1])
    _say("\n".join(f"Licence of the {line}" for line in require_licences(student, licence_allows_it)))
    address = upload(student, to, public=public)
    _say(f"The student is at {address} ({'public' if public else 'private'})")


@bench.command("quality")
def bench_quality(
    recipe: Recipe,
    settings: Settings = None,
    cells: Annotated[str, typer.Option(help="Only these variants, by name, separated by commas.")] = "",
    seeds: Annotated[str, typer.Option(help="Only these seeds, separated by commas.")] = "",
    show: Annotated[bool, typer.Option("--list", help="List the cells and which are done; run nothing.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write the report to this Markdown file too.")] = None,
) -> None:
    """Train and score every variant of a recipe with every seed, and test the differences for significance.

    A variant with a seed is a cell. Run the command again, or several times at once, to go on with the cells that are
    missing.
    """
    from sra_core import stages
    from sra_core.bench import Bench, BenchLines, bench_report, listing, markdown, run_cells, terminal
    from sra_core.plan import stage_seconds
    from sra_core.watch.mlflow import benchmark_run

    if report:
        _require_file(report, "--report")
    config = _config(recipe, settings)
    grid = Bench(config, _names(cells, config), _numbers(seeds))
    if show:
        console.print(listing(grid))
        return
    with benchmark_run(config) as parent:
        run_cells(
            grid,
            lambda stage, run, tracked, name: stages.STAGES[stage](run, _watcher(run.config, tracked)),
            parent,
            BenchLines(),
            stage_seconds,
        )
        found = bench_report(grid, _watcher(config, parent), parent)
        for part in terminal(found):
            console.print(part)
        if report:
            report.write_text(markdown(found))
        if found.manifest:
            _say(f"\nTables, figure and report: {found.manifest.folder}")
        grid.require_all_ran()


@app.command()
def recipes() -> None:
    """List the recipes that come with the package."""
    from sra_core.config.load import recipe_names, recipe_path

    table = Table(box=None, show_header=False, pad_edge=False)
    for name in recipe_names():
        comment = takewhile(lambda line: line.startswith("#"), recipe_path(name).read_text().splitlines())
        table.add_row(f"[bold]{name}", " ".join(line[2:] for line in comment))
    console.print(table)


@app.command()
def fields(
    section: Annotated[
        str, typer.Argument(help="Only the fields of this section, such as `distill` or `corpus`.")
    ] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/reference.md instead.")] = False,
) -> None:
    """List the fields of a recipe with their defaults and meanings, all or those of one section."""
    from sra_core.config import RunConfig
    from sra_core.config.reference import fields as all_fields
    from sra_core.config.reference import reference_page

    if markdown:
        sys.stdout.write(reference_page())
        return
    shown = [row for row in all_fields() if not section or f"{row.name}.".startswith(f"{section}.")]
    if not shown:
        near = difflib.get_close_matches(section, RunConfig.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"sections are {', '.join(RunConfig.model_fields)}"
        raise ConfigError(f"the config has no field {section!r}", hint)
    table = Table("field", "default", "meaning", box=None, pad_edge=False)
    for row in shown:
        table.add_row(row.name, row.default, row.meaning)
    console.print(table)
    names = [row.name for row in shown]
    name = "distill.max_steps" if "distill.max_steps" in names else names[0]
    *sections, field = name.split(".")
    recipe = "".join(f"{each}: {{" for each in sections) + f"{field}: VALUE" + "}" * len(sections)
    hints = [f"Set one for a run:       {sra_command()} run quickstart --set {name}=VALUE"]
    hints.append(f"Or in your own recipe:   {recipe}")
    if not section:
        hints.append(f"The fields of a section: {sra_command()} fields distill")
    _say("\n".join(["", *hints]))


@app.command()
def config(recipe: Recipe, settings: Settings = None) -> None:
    """Print all settings of a run as YAML, which is a recipe in itself."""
    from sra_core.config.yaml_1_2 import write_yaml

    sys.stdout.write(write_yaml(_config(recipe, settings).model_dump(mode="json"), width=100))


@app.command()
def verify(recipe: Recipe, settings: Settings = None) -> None:
    """Check every file of a run's results against its checksum; run a damaged stage again to repair it."""
    from sra_core.runs import Run

    settled, damaged = Run(_config(recipe, settings)), False
    for name in [*settled.stages, "generate"]:
        try:
            with console.status(f"reading every byte of {name}"):
                manifest = settled.verified(name)
        except ManifestMismatch as error:
            if name in settled.stages:  # the generated corpus is no part of a run: there or not
                console.print(f"[yellow]{name}[/]  {escape(error.problem)}")
        except ShardError as error:
            damaged = True
            console.print(f"[red]{name}[/]  {escape(error.problem)}\n  -> {escape(as_typed(error.remedy))}")
        else:
            files = len(manifest.shards) + len(manifest.files)
            console.print(f"[green]{name}[/]  {files} files whole  {escape(manifest.folder)}")
    if damaged:
        raise typer.Exit(1)


@app.command()
def ui(recipe: Recipe = "quickstart", settings: Settings = None) -> None:
    """Open MLflow on the runs of a recipe's store, on this machine only; Ctrl-C ends it."""
    from sra_core.processes import free_port, start, stop
    from sra_core.watch.mlflow import ui_command

    port = free_port(5000)
    server = start(ui_command(_config(recipe, settings), port), {}, None)
    console.print(f"MLflow on http://127.0.0.1:{port} (it takes some seconds to start)")
    try:
        status = server.wait()
    finally:
        stop([server])
    raise typer.Exit(status)


@app.command()
def doctor(recipe: Recipe = "quickstart", settings: Settings = None) -> None:
    """Say what a recipe lacks on this machine, and what will be slow."""
    from sra_core.doctor import examine

    config = _config(recipe, settings)
    with console.status("looking at this machine, the models and the data sets"):
        findings = examine(config)
    for finding in findings:
        console.print(f"[{finding.colour}]{finding.level:>4}[/]  {escape(as_typed(finding.text))}")
    if any(finding.level == "bad" for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Entry point: errors that the user can mend are printed with their remedy, not as a traceback."""
    quiet_telemetry()
    _tell_of_models()
    # As an exception, so that on the way out child processes are ended, claims let go and runs closed as killed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, _interrupted)
    try:
        # Named so however it was started: shells complete this name.
        app(prog_name="sra")
    except SraError as error:
        errors.print(f"[red]{type(error).__name__}[/]: ", end="")
        errors.print(as_typed(error.problem), markup=False, soft_wrap=True)
        errors.print(f"  -> {as_typed(error.remedy)}", markup=False, soft_wrap=True)
        sys.exit(1)


def _tell_of_models() -> None:
    """One line for each model that is fetched or converted: that takes minutes, and no stage has begun to tell."""
    logging.getLogger("sra_core.models").setLevel(logging.INFO)
    if logging.lastResort:
        logging.lastResort.setLevel(logging.INFO)  # it writes to the standard error of the moment, above a bar


def _interrupted(number: int, frame: FrameType | None) -> None:
    sys.stderr.write("\nstopping; run the same command again to go on from here\n")
    raise KeyboardInterrupt


def _finished(config: RunConfig, run: str) -> tuple[str | None, Path]:
    """Name, if it has one, and evaluation folder of what a person named, possibly as NAME=RUN."""
    from sra_core.compare import find_evaluation

    # Names and folders may hold signs of equality themselves.
    parts = [("", run), *((run[:k], run[k + 1 :]) for k, sign in enumerate(run) if sign == "=")]
    name, place = next((part for part in parts if Path(part[1]).is_dir()), parts[-1])
    if place.endswith(".lock"):
        raise EvaluationError(f"{place} is the lock beside a result", "name the folder itself, as in evaluations/*/")
    own, folder = (None, Path(place)) if Path(place).is_dir() else find_evaluation(config, place)
    return name or own, folder


def _say(text: str) -> None:
    """Text as it is: people's paths and words are no markup, and are not broken where they would be copied."""
    console.print(text, markup=False, soft_wrap=True)


def _flags(settings: list[str] | None) -> list[str]:
    return [word for each in settings or [] for word in ("--set", each)]


def _require_file(path: Path, option: str) -> None:
    """See that a file can be written before any work is done for it; its folder is made."""
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder", "name a file in it")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option} {path}: its folder cannot be made: {error.strerror}", "name another") from error


def _config(recipe: str, settings: list[str] | None) -> RunConfig:
    from sra_core.config.load import load_config, parse_overrides

    return load_config(recipe, parse_overrides(settings or []))


def _stage(name: str, recipe: str, settings: list[str] | None) -> Any:
    from sra_core import stages

    config = _config(recipe, settings)
    manifest = stages.STAGES[name](config, _watcher(config, None))
    _say(f"  {manifest.folder}")
    return manifest


def _watcher(config: RunConfig, parent: Any) -> Watcher:
    from sra_core.watch import TerminalWatcher, Watchers
    from sra_core.watch.mlflow import MlflowWatcher

    return Watchers(TerminalWatcher(), MlflowWatcher(config, parent))


def _names(text: str, config: RunConfig) -> list[str]:
    """Names of variants, separated by commas; a name may hold commas itself."""
    found, rest = [], text.strip()
    known = sorted((variant.name for variant in config.bench.variants), key=len, reverse=True)
    while rest:
        name = next((name for name in known if rest == name or rest.startswith(f"{name},")), rest.partition(",")[0])
        found.append(name)
        rest = rest[len(name) :].lstrip(", ")
    return found


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--seeds {text!r} is not a list of numbers", "write it like `--seeds 1,2`") from error


def _summary(folder: str) -> None:
    console.print()
    console.print(Markdown((Path(folder) / "summary.md").read_text()))


if __name__ == "__main__":
    main()
