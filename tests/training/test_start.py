"""Where projectors start: fitted once, as a plain least squares would, and the same for every process and every try."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sra_core.config import RunConfig
from sra_core.objective import pool_spans
from sra_core.shards import PreparedSet, TeacherSet, read_manifest
from sra_core.training import Job, start
from sra_core.training.build import build_module
from sra_core.watch import Watcher
from tests.objective.test_fit import plain
from tests.training.make import again, make_config, make_job, read_history
from tests.training.test_exactness import THRESHOLD
from tests.training.warm import Run, finish


def with_start(config: RunConfig, where: str) -> RunConfig:
    return config.model_copy(update={"objective": config.objective.model_copy(update={"projector_start": where})})


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path, make_config("plain"))


def plain_centers(job: Job, places: list[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Centres of both sides by layer pair, text by text through `output_hidden_states` with eager attention."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job.initial, attn_implementation="eager").eval()
    prepared, teacher = (
        PreparedSet(read_manifest(job.prepared), "train"),
        TeacherSet(read_manifest(job.teacher), "train"),
    )
    own: list[list[np.ndarray]] = [[], []]
    other: list[list[np.ndarray]] = [[], []]
    for place in places:
        row = prepared[place]
        ids = torch.from_numpy(row.student_ids.astype(np.int64))[None]
        with torch.no_grad():
            out = model(input_ids=ids, output_hidden_states=True, output_attentions=True)
        for number, (above, below) in enumerate(((2, 1), (3, 2))):
            weights = out.attentions[below - 1][0, :, -1].sum(0)
            ranges = torch.from_numpy(row.student_spans.astype(np.int64))
            own[number].append(pool_spans(out.hidden_states[below][0], weights / weights.sum(), ranges)[0].numpy())
            other[number].append(np.asarray(teacher[place].centers[above], np.float32))
    return [np.concatenate(each) for each in own], [np.concatenate(each) for each in other]


def test_the_start_is_the_least_squares_map_of_the_untrained_student(job: Job) -> None:
    found = start.start_projectors(job, Watcher())
    order = np.random.default_rng(job.config.seed).permutation(14)
    parts = np.array_split(order, 4)  # of a step, four texts, or less
    fitted = [int(place) for number, places in enumerate(parts) if number % 5 for place in places]
    own, other = plain_centers(job, fitted)
    kept = load_file(job.projectors)
    for number, name in enumerate(("2_1", "3_2")):
        ridge = float(found.notes["projectors"].split("ridge ")[number + 1].split(")")[0])
        expected = plain(own[number].astype(np.float64), other[number].astype(np.float64), ridge)
        np.testing.assert_allclose(kept[f"projectors.{number}.weight"], expected, atol=2e-3)
        assert -1 <= found.metrics[f"projector_fit_{name}"] <= 1
    module = build_module(job)
    for number, projector in enumerate(module.objective.projectors):
        assert torch.equal(projector.weight, kept[f"projectors.{number}.weight"])


def test_a_try_that_goes_on_finds_what_the_first_one_fitted(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start.start_projectors(job, Watcher())
    monkeypatch.setattr(start, "build_module", lambda job: pytest.fail("fitted again"))
    assert start.start_projectors(job, Watcher()) == first


@pytest.mark.parametrize(
    "shared", [{"batch_size": 4, "accumulation": 1}, {"accumulation": 1, "processes": 2}, {"micro_batch": 1}]
)
def test_who_shares_a_step_does_not_move_the_start(job: Job, tmp_path: Path, shared: dict[str, int]) -> None:
    other = again(job, tmp_path / "other", **shared)
    assert start.start_projectors(other, Watcher()).notes == start.start_projectors(job, Watcher()).notes
    for name, weight in load_file(job.projectors).items():
        torch.testing.assert_close(load_file(other.projectors)[name], weight, atol=1e-4, rtol=1e-4)


def test_a_single_text_is_too_few_for_a_fit(tmp_path: Path) -> None:
    job = make_job(tmp_path, make_config("plain"), examples=1)
    assert start.start_projectors(job, Watcher()) == start.Starts()
    assert not job.projectors.exists()


@pytest.mark.parametrize("where", ["random", "identity"])
def test_a_start_that_the_config_fixes_is_not_fitted(job: Job, where: str) -> None:
    fixed = job.model_copy(update={"config": with_start(job.config, where)})
    assert start.start_projectors(fixed, Watcher()) == start.Starts()
    assert not job.projectors.exists()


def test_a_poor_start_keeps_the_identity_where_widths_are_equal(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal widths alone are no reason: the fit must have little to say."""
    cases = (
        (0.8, 0.1, "auto", "identity"),
        (0.92, 0.1, "auto", "fit"),
        (0.8, 0.1, "fit", "fit"),
        (0.8, None, "auto", "fit"),
    )
    for cosine, identity, where, chosen in cases:
        job.projectors.unlink(missing_ok=True)
        one = job.model_copy(update={"config": with_start(job.config, where)})
        names = {"projectors.0.weight": "2_1", "projectors.1.weight": "3_2"}
        fits = {
            name: (title, start.Fit(torch.full((12, 12), 0.5), 0.01, cosine, identity)) for name, title in names.items()
        }
        monkeypatch.setattr(start, "_fit", lambda *_, fits=fits: fits)
        found = start.start_projectors(one, Watcher())
        assert found.notes["projectors"].startswith(f"2-1 {chosen} ")
        kept = load_file(job.projectors)["projectors.0.weight"]
        assert torch.equal(kept, torch.eye(12) if chosen == "identity" else torch.full((12, 12), 0.5))


@pytest.mark.integration
@pytest.mark.parametrize("stage", [0, 3])
def test_every_process_starts_from_the_same_map(tmp_path: Path, stage: int) -> None:
    fields = {"max_steps": 3, "zero_stage": stage, "deepspeed": THRESHOLD if stage == 3 else {}}
    one = make_job(tmp_path / "one", make_config("plain", accumulation=4, **fields))
    start.start_projectors(one, Watcher())
    two = again(one, tmp_path / "two", accumulation=2)
    two.projectors.write_bytes(one.projectors.read_bytes())
    bare = again(one, tmp_path / "bare")
    finish(one)
    finish(two, world=2)
    finish(bare)
    alone, shared, unfitted = (read_history(each, "train/cosine")[1] for each in (one, two, bare))
    assert abs(alone - shared) < 1e-4
    assert alone < unfitted - 0.5, "the term starts lower than with a random map"


@pytest.mark.integration
def test_a_killed_run_goes_on_exactly(tmp_path: Path) -> None:
    whole = make_job(tmp_path / "whole", make_config("dropout", max_steps=6))
    start.start_projectors(whole, Watcher())
    killed = again(whole, tmp_path / "killed")
    start.start_projectors(killed, Watcher())
    finish(whole)
    Run(killed).kill_at(3)
    start.start_projectors(killed, Watcher())
    finish(killed)
    assert read_history(killed, "train/loss") == read_history(whole, "train/loss")
