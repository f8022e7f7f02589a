"""The stages as their user runs them: fingerprints, reuse, repair, and what is said when something is missing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sra_core import stages
from sra_core.config import RunConfig
from sra_core.config.load import load_config
from sra_core.errors import ConfigError, EvaluationError, ManifestMismatch
from sra_core.models import bits_per_byte, initial_student, load_model, load_tokenizers
from sra_core.runs import Run
from sra_core.shards import Manifest, PreparedSet, TeacherSet
from sra_core.watch import Watcher
from tests.conftest import SmokeRun

LEAD = (
    r"there is something to learn: on 6 validation texts the teacher takes \d\.\d{3} bits per byte, "
    r"the student as it starts \d\.\d{3}"
)


class Recorder(Watcher):
    """Remembers which stages ran and which were found finished."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.reused: list[str] = []
        self.messages: list[str] = []

    def begin(self, stage: str, fingerprint: str, config: RunConfig, plan: str, *, reused: bool) -> None:
        (self.reused if reused else self.ran).append(stage)

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture
def own_store(smoke_run: SmokeRun, tmp_path: Path) -> RunConfig:
    """The smoke config on a copy of its finished store."""
    shutil.copytree(smoke_run.store, tmp_path / "store")
    return smoke_run.config.model_copy(update={"store": str(tmp_path / "store")})


def test_each_stage_leaves_a_manifest_that_verifies(smoke_run: SmokeRun) -> None:
    for stage, manifest in smoke_run.results.items():
        folder = Path(manifest.folder)
        assert (
            folder.parent.name
            == {
                "prepare": "prepared",
                "cache": "teacher",
                "distill": "students",
                "evaluate": "evaluations",
            }[stage]
        )
        assert folder.name == manifest.fingerprint
        kept = json.loads((folder / "manifest.json").read_text())
        assert kept["stage"] == stage
        assert Run(smoke_run.config).result(stage) == manifest


def test_every_example_is_kept_or_counted_with_a_reason(smoke_run: SmokeRun) -> None:
    counts = smoke_run.results["prepare"].counts
    kept = sum(count for name, count in counts.items() if name.startswith("kept_"))
    dropped = sum(count for name, count in counts.items() if name.startswith("dropped_"))
    assert counts["in"] == kept + dropped + counts["left_out_by_corpus_max"]
    assert counts["kept_train"] == smoke_run.results["prepare"].rows("train") == 24


def test_cache_holds_the_centres_of_every_training_span(smoke_run: SmokeRun) -> None:
    prepared = PreparedSet(smoke_run.results["prepare"], "train")
    teacher = TeacherSet(smoke_run.results["cache"], "train")
    assert teacher.layers == (2, 3)
    for row, kept in zip(prepared, teacher, strict=True):
        assert kept.id == row.id
        for layer in teacher.layers:
            assert kept.centers[layer].shape == (len(row.teacher_spans), 32)
            assert 0 < kept.mass[layer].sum() <= 1 + 1e-5


def test_student_loads_without_this_project(smoke_run: SmokeRun) -> None:
    folder = Path(smoke_run.results["distill"].folder) / "student"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("What does `len` do?", return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()
    assert model.config.vocab_size == len(tokenizer)


def test_training_changed_the_student(smoke_run: SmokeRun) -> None:
    metrics = smoke_run.results["evaluate"].metrics
    assert metrics["evaluate/student/bits_per_byte"] < metrics["evaluate/initial/bits_per_byte"]


def test_second_run_reuses_every_stage(smoke_run: SmokeRun) -> None:
    watch = Recorder()
    assert stages.run(smoke_run.config, watch) == smoke_run.results
    assert watch.ran == []
    assert watch.reused == ["prepare", "cache", "distill", "evaluate"]


def test_deleting_a_stage_repeats_it_and_nothing_before_it(own_store: RunConfig) -> None:
    before = Run(own_store).result("cache")
    shutil.rmtree(before.folder)
    watch = Recorder()
    after = stages.cache(own_store, watch)
    assert watch.ran == ["cache"]
    assert after.content == before.content
    assert Run(own_store).result("distill")  # made from the same bytes: still good


def test_what_there_is_to_learn_is_told_before_training_and_kept(own_store: RunConfig) -> None:
    """The figures are those of the evaluation's way of counting, on the validation texts."""
    run = Run(own_store)
    trained = run.result("distill")
    for stage in ("cache", "distill"):
        shutil.rmtree(run.result(stage).folder)
    told = {}
    for stage in (stages.cache, stages.distill):
        watch = Recorder()
        told[stage.__name__] = stage(own_store, watch).metrics
        (line,) = [text for text in watch.messages if "validation texts" in text]
        assert re.fullmatch(LEAD, line), "untrained both, but the teacher's longer tokens make fewer guesses a byte"
    rows = list(PreparedSet(run.result("prepare"), "validation"))
    prepared = Path(run.result("prepare").folder)
    teacher, student = load_tokenizers(own_store, prepared)
    start, _ = initial_student(own_store, run.result("prepare"))
    expected = {
        "teacher": bits_per_byte(load_model(own_store.teacher), rows, "teacher", eos_token_id=teacher.eos_token_id),
        "initial": bits_per_byte(start, rows, "student", eos_token_id=student.eos_token_id),
    }
    for name, value in expected.items():
        assert told["distill"][f"distill/{name}_bits_per_byte"] == pytest.approx(value, abs=1e-5)
    assert told["cache"]["cache/teacher_bits_per_byte"] == pytest.approx(expected["teacher"], abs=1e-5)
    gap = told["distill"]["distill/teacher_ahead"]
    assert gap == pytest.approx(expected["initial"] - expected["teacher"], abs=1e-5)
    assert told["distill"]["distill/teacher_ahead_low"] < gap < told["distill"]["distill/teacher_ahead_high"]
    assert trained.metrics["distill/teacher_ahead"] == pytest.approx(gap, abs=1e-6)


@pytest.mark.integration
def test_last_weights_and_adapter_are_kept_beside_the_best(smoke_run: SmokeRun, tmp_path: Path) -> None:
    shutil.copytree(smoke_run.store, tmp_path / "store")
    worse = {"learning_rate": 1.0, "max_steps": 2, "validate_every": 2, "lora": {"rank": 2}}
    config = load_config(
        "smoke", {"store": str(tmp_path / "store"), "distill": {**worse, "keep_last": True, "keep_adapter": True}}
    )
    folder = Path(stages.distill(config).folder)
    for name, step in (("student", 0), ("last", 2)):
        assert f"| weights | of step {step} |" in (folder / name / "README.md").read_text()
    weights = [load_file(folder / name / "model.safetensors") for name in ("student", "last")]
    assert any(not torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    assert (folder / "adapter" / "adapter_config.json").is_file()


def test_results_from_before_the_teacher_faded_out_keep_their_names(own_store: RunConfig) -> None:
    def objective(**changes: object) -> dict[str, object]:
        config = own_store.model_copy(update={"objective": own_store.objective.model_copy(update=changes)})
        return Run(config).identity("distill")["objective"]

    assert objective()["annealing"] == 1
    assert objective(annealing=0.5)["annealing"] == 0.5
    assert "annealing" not in objective(annealing=0.0)
    assert "annealing" not in objective(name="sft"), "there is no teacher"


def test_only_sra_is_named_after_how_spans_are_weighed() -> None:
    def objective(**fields: object) -> dict[str, object]:
        return Run(load_config("smoke", {"objective": fields})).identity("distill")["objective"]

    assert (objective()["weighted_loss"], objective(weighted_loss=True)["weighted_loss"]) == (False, True)
    for name in ("sft", "uld"):  # what was learned when the default was another one keeps its name
        assert objective(name=name) == objective(name=name, weighted_loss=True)
        assert objective(name=name)["weighted_loss"] is True


def test_gold_is_named_anew_where_tokens_counted_several_times() -> None:
    def pairs(name: str, first_tokens: bool) -> object:
        fields = {"objective": {"name": name}, "alignment": {"first_tokens": first_tokens}}
        return Run(load_config("smoke", fields)).identity("distill").get("pairs")

    assert [pairs("gold", True), pairs("gold", False), pairs("uld", True)] == ["once", None, None]


def test_a_result_made_from_other_bytes_is_stale(own_store: RunConfig) -> None:
    manifest_file = Path(Run(own_store).result("evaluate").folder) / "manifest.json"
    manifest = Manifest.model_validate_json(manifest_file.read_text())
    manifest.upstream["distill"].content = "0" * 16
    manifest_file.write_text(manifest.model_dump_json())
    watch = Recorder()
    stages.evaluate(own_store, watch)
    assert watch.ran == ["evaluate"]


def test_a_damaged_shard_is_made_again_and_the_others_are_kept(own_store: RunConfig) -> None:
    manifest = Run(own_store).result("cache")
    victim, other = (Path(manifest.folder) / shard.name for shard in manifest.shards[:2])
    kept = other.stat().st_mtime_ns
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(ManifestMismatch, match="damaged"):
        Run(own_store).result("cache")
    watch = Recorder()
    assert stages.cache(own_store, watch).content == manifest.content
    assert watch.ran == ["cache"]
    assert other.stat().st_mtime_ns == kept


@pytest.mark.parametrize(("stage", "missing"), [("cache", "prepare"), ("distill", "prepare"), ("evaluate", "prepare")])
def test_a_stage_without_its_upstream_says_what_to_run(
    smoke_run: SmokeRun, tmp_path: Path, stage: str, missing: str
) -> None:
    config = smoke_run.config.model_copy(update={"store": str(tmp_path)})
    with pytest.raises(ManifestMismatch, match=f"sra {missing}"):
        stages.STAGES[stage](config)


def test_training_against_another_cache_names_the_field(smoke_run: SmokeRun) -> None:
    config = smoke_run.config.model_copy(deep=True)
    config.cache.dtype = "float32"
    with pytest.raises(ManifestMismatch, match=r"cache\.dtype \(wanted 'float32', found 'bfloat16'\)") as error:
        stages.distill(config)
    assert "sra cache" in error.value.remedy


def test_configs_that_differ_never_share_a_folder(smoke_run: SmokeRun) -> None:
    def folders(**changes: object) -> list[str]:
        config = smoke_run.config.model_copy(deep=True)
        for name, value in changes.items():
            part, _, field = name.partition("__")
            setattr(getattr(config, part), field, value)
        return [Run(config).fingerprint(stage) for stage in ("prepare", "cache", "distill", "evaluate")]

    base = folders()
    assert folders(alignment__max_length=90) != base
    changed = folders(cache__dtype="int8")
    assert changed[0] == base[0]
    assert all(new != old for new, old in zip(changed[1:], base[1:], strict=True))
    changed = folders(distill__learning_rate=1e-3)
    assert changed[:2] == base[:2]
    assert changed[2:] != base[2:]
    assert folders(alignment__workers=2, cache__tokens_per_batch=100, evaluate__batch_size=1) == base


def test_sft_needs_no_cache(smoke_run: SmokeRun) -> None:
    config = smoke_run.config.model_copy(deep=True)
    config.objective.name = "sft"
    assert "cache" not in Run(config).trained_from


@pytest.mark.parametrize("layers", [[(28, 1)], [(3, 9)]])
def test_layers_that_a_model_lacks_are_refused_before_anything_runs(
    smoke_run: SmokeRun, tmp_path: Path, layers: list[tuple[int, int]]
) -> None:
    config = smoke_run.config.model_copy(deep=True, update={"store": str(tmp_path / "store")})
    config.objective.layers = layers
    with pytest.raises(ConfigError, match=f"layer {max(layers[0])}"):
        stages.run(config)
    assert not (tmp_path / "store").exists()


def test_a_corpus_without_a_test_example_is_refused_before_the_teacher_runs(tmp_path: Path) -> None:
    rows = [{"instruction": f"What is {number}?", "response": f"It is the number {number}."} for number in range(12)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = {"source": str(tmp_path / "few.jsonl"), "test_share": 0.0}
    store = {"store": str(tmp_path / "store"), "tracking": {"enabled": False}}
    with pytest.raises(EvaluationError, match="the corpus has no test example") as caught:
        stages.run(load_config("smoke", {**store, "corpus": corpus}))
    assert "corpus.test_share" in caught.value.remedy
    assert not (tmp_path / "store" / "teacher").exists()


def test_scores_of_another_model_are_not_reused(own_store: RunConfig) -> None:
    before = Run(own_store).result("evaluate")
    folder = Path(before.folder)
    (folder / "manifest.json").unlink()
    path = folder / "likelihood-test-student.parquet"
    table = pq.read_table(path)
    wrong = table.set_column(table.schema.get_field_index("nats"), "nats", pa.array([1.0] * len(table)))
    pq.write_table(wrong.replace_schema_metadata({b"sra": b"another model"}), path)
    assert stages.evaluate(own_store).metrics == before.metrics


def test_agreement_is_measured_without_the_teachers_scores_where_asked(own_store: RunConfig) -> None:
    whole = Path(Run(own_store).result("evaluate").folder)
    for asked in (False, True):
        changes = {"teacher": False, "initial": False, "generate": 0, "agreement": asked}
        evaluate = own_store.evaluate.model_copy(update=changes)
        made = Path(stages.evaluate(own_store.model_copy(update={"evaluate": evaluate})).folder)
        measured = [path.name for path in made.glob("agreement-*")]
        assert measured == (["agreement-test-student.parquet"] if asked else [])
    assert not list(made.glob("*-teacher*"))
    assert pq.read_table(made / measured[0]) == pq.read_table(whole / measured[0])


def test_a_finished_run_loads_neither_torch_nor_transformers(smoke_run: SmokeRun) -> None:
    """It is told in seconds: what a stage computes with is imported where it computes."""
    code = (
        "import sys; from sra_core import stages; from sra_core.config.load import load_config; "
        "done = stages.run(load_config('smoke', {'store': sys.argv[1], 'tracking': {'enabled': False}})); "
        "print(*sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)), len(done))"
    )
    command = [sys.executable, "-c", code, str(smoke_run.store)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout.split() == [str(len(smoke_run.results))]
