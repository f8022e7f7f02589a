"""Which cells a grid has, what they share, and who works on which."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from sra_core.bench.grid import Bench
from sra_core.config import BenchConfig, ObjectiveConfig
from sra_core.config.load import load_config
from sra_core.errors import ConfigError, SraError
from sra_core.runs import Run
from tests.bench.make import config, finish, grid

EVERY = tuple(name for name in get_args(ObjectiveConfig.model_fields["name"].annotation) if len(name) > 2)
CROSS = tuple(name for name in EVERY if name not in ("fkl", "rkl", "skl"))


def fingerprints(bench: Bench, stage: str) -> set[str]:
    cells = [cell for cell in bench.cells if stage in Run(cell.config).stages]
    return {Run(cell.config).folder(stage).fingerprint for cell in cells}


def test_cells_are_variants_times_seeds_seed_by_seed(tmp_path: Path) -> None:
    bench = grid(tmp_path)
    assert [(cell.variant, cell.seed) for cell in bench.cells] == [
        (name, seed) for seed in (1, 2) for name in ("sra", "sft", "uld")
    ]
    for cell in bench.cells:
        assert (cell.config.objective.name, cell.config.seed) == (cell.variant, cell.seed)
    assert [cell.config.evaluate.teacher for cell in bench.cells] == [True] + [False] * 5
    assert [cell.config.evaluate.initial for cell in bench.cells] == [True] + [False] * 5


def test_all_objectives_and_seeds_share_one_prepared_corpus_and_one_cache(tmp_path: Path) -> None:
    bench = grid(tmp_path, names=CROSS)
    assert len(fingerprints(bench, "prepare")) == len(fingerprints(bench, "cache")) == 1
    assert len(fingerprints(bench, "distill")) == len(bench.cells) == 2 * len(CROSS)
    assert [stage for stage, _ in bench.shared()] == ["prepare", "cache"]


def test_the_common_cache_holds_the_layers_of_every_variant(tmp_path: Path) -> None:
    variants = [{"name": "one"}, {"name": "other", "overrides": {"objective.layers": [[1, 1]]}}]
    bench = grid(tmp_path, variants=variants, reference="one")
    assert {tuple(cell.config.cache.layers) for cell in bench.cells} == {(1, 2, 3)}
    assert len(fingerprints(bench, "cache")) == 1
    assert not bench.cells[0].config.cache.token_states


def test_plain_pooling_needs_a_cache_of_its_own_without_what_only_others_read(tmp_path: Path) -> None:
    variants = [
        {"name": "sra", "overrides": {"objective.name": "sra"}},
        {"name": "uld", "overrides": {"objective.name": "uld"}},
        {"name": "plain", "overrides": {"objective.weighted_pooling": False}},
    ]
    bench = grid(tmp_path, variants=variants, reference="sra")
    assert len(fingerprints(bench, "cache")) == 2
    assert {cell.variant: cell.config.cache.token_states for cell in bench.cells} == {
        "sra": True,
        "uld": True,
        "plain": False,
    }


def test_a_subset_runs_the_very_cells_of_the_whole_grid(tmp_path: Path) -> None:
    whole, part = grid(tmp_path), Bench(config(tmp_path), ["sra"], [2])
    assert [cell.name for cell in part.selected] == ["sra, seed 2"]
    wanted = next(cell for cell in whole.cells if cell.name == "sra, seed 2")
    assert part.selected[0].config == wanted.config
    assert part.folder().fingerprint == whole.folder().fingerprint


def test_a_grid_without_teacher_runs_no_cache(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), ["sft"])
    assert [stage for stage, _ in bench.shared()] == ["prepare"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"seed": 3}, "overrides seed, which is the same for the whole grid"),
        ({"bench.seeds": [3]}, "overrides bench.seeds"),
        ({"objective.nam": "sft"}, r"objective\.nam: unknown field; did you mean 'name'.*bench\.variants: odd"),
        ({"objective.alpha": 2}, r"objective\.alpha: must be less"),
    ],
)
def test_overrides_that_cannot_be_are_named(overrides: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        grid(tmp_path, variants=[{"name": "odd", "overrides": overrides}], reference="odd")


@pytest.mark.parametrize(("variants", "seeds", "message"), [(["sr"], [], "no variant 'sr'"), ([], [7], "no seed 7")])
def test_a_selection_outside_the_grid_is_refused(
    variants: list[str], seeds: list[int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        Bench(config(tmp_path), variants, seeds)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": [1, 1]}, "seeds: 1 occurs twice"),
        ({"variants": [{"name": "sft"}, {"name": "sft"}]}, "variants: 'sft' occurs twice"),
        ({"reference": "nothing"}, "reference: 'nothing' is not one of the variants sra, sft"),
        ({"seeds": []}, "at least 1"),
    ],
)
def test_a_grid_that_contradicts_itself_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BenchConfig.model_validate(values)


def test_layers_are_checked_before_anything_runs(tmp_path: Path) -> None:
    variants = [{"name": "sft"}, {"name": "deep", "overrides": {"objective.layers": [[99, 1]]}}]
    with pytest.raises(ConfigError, match="99"):
        grid(tmp_path, variants=variants).check()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"distill.device": "cuda:77"}, r"distill\.device"),
        ({"evaluate.backend": "vllm"}, "vllm"),
        ({"evaluate.datasets": [{"name": "talks", "source": "no-such-file.jsonl"}]}, "no-such-file"),
    ],
)
def test_what_one_cell_alone_lacks_is_told_before_anything_runs(
    overrides: dict[str, Any], named: str, tmp_path: Path
) -> None:
    variants = [{"name": "sft"}, {"name": "other", "overrides": overrides}]
    with pytest.raises(SraError, match=named):
        grid(tmp_path, variants=variants).check()


def test_done_cells_are_left_out_and_each_cell_is_taken_once(tmp_path: Path) -> None:
    bench = grid(tmp_path)
    finish(bench.cells[0])
    taken = []
    for cell in bench.take():
        taken.append(cell.name)
        finish(cell)
    assert taken == [cell.name for cell in bench.cells[1:]]
    assert {bench.state(cell) for cell in bench.cells} == {"done"}


def test_two_processes_share_the_cells(tmp_path: Path) -> None:
    first, second = grid(tmp_path), grid(tmp_path)
    mine, theirs = first.take(), second.take()
    one, other = next(mine), next(theirs)
    assert (one.name, other.name) == ("sra, seed 1", "sft, seed 1")
    assert first.state(other) == second.state(one) == "running"
    finish(one)
    finish(other)
    assert next(mine).name == "uld, seed 1"
    assert next(theirs).name == "sra, seed 2"
    mine.close()
    assert second.state(first.cells[2]) == "waiting"


def test_a_failed_cell_is_not_taken_again_by_the_same_process_and_others_go_on(tmp_path: Path) -> None:
    bench = grid(tmp_path)
    assert [cell.name for cell in bench.take()] == [cell.name for cell in bench.cells]


def test_ready_recipes_share_cells_and_caches() -> None:
    quality, terms, weights = (Bench(load_config(name)) for name in ("quality", "ablation-terms", "ablation-weights"))
    assert [len(bench.cells) for bench in (quality, terms, weights)] == [36, 15, 12]
    assert quality.cells[0].config.objective == terms.cells[0].config.objective == weights.cells[1].config.objective
    assert quality.cells[0].config.cache == terms.cells[0].config.cache == weights.cells[1].config.cache
    shown = {cell.variant: cell.config.objective for cell in terms.cells}
    assert (shown["logit only"].cosine, shown["logit only"].geometry, shown["logit only"].logit) == (0, 0, 1)
    assert shown["cosine and geometry"].logit == 0 < shown["cosine and geometry"].geometry
    pooled = {cell.variant: cell.config.objective for cell in weights.cells}
    assert (pooled["WSP only"].weighted_loss, pooled["WSP only"].weighted_pooling) == (False, True)
    assert (pooled["WSL only"].weighted_loss, pooled["WSL only"].weighted_pooling) == (True, False)
    assert (pooled["neither"].weighted_loss, pooled["neither"].weighted_pooling) == (False, False)


def test_the_ablation_of_the_start_changes_the_student_alone() -> None:
    quality, start = Bench(load_config("quality")).cells[0].config, Bench(load_config("ablation-start"))
    shown = {cell.variant: cell.config for cell in start.cells}
    assert shown["spread"].student == quality.student
    assert shown["importance"].student.layer_choice == "importance"
    assert shown["random embeddings"].student.embeddings == "random"
    assert shown["random weights"].student.initial_weights == "random"
    assert all(each.objective == quality.objective and each.distill == quality.distill for each in shown.values())


def test_any_run_recipe_is_a_grid_of_all_objectives() -> None:
    bench = Bench(load_config("paper-qwen1.5-1.8b-gpt2-120m"))
    assert {cell.variant for cell in bench.cells} == {*EVERY, "js"} - {"fkl", "rkl", "js", "skl"}
    assert {tuple(cell.config.cache.layers) for cell in bench.cells} == {(22, 24)}
    assert all(cell.config.cache.token_states for cell in bench.cells)
