"""One cache with everything serves every objective: what reaches the objective is what the teacher computes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from sra_core.cache import capture_teacher, find_cache
from sra_core.config import RunConfig
from sra_core.models import (
    build_student,
    choose_layout,
    layer_count,
    load_head,
    load_model,
    load_tokenizer,
    resolve_layer,
    train_tokenizer,
)
from sra_core.objective import Head, ObjectiveContext, build_objective, student_layers
from sra_core.shards import Manifest, PreparedSet, TeacherSet
from sra_core.training.context import distill_data, objective_context, student_in_teacher
from sra_core.training.module import DistillModule
from sra_core.watch import Watcher
from tests.alignment.tokenizers import byte_fallback
from tests.cache.make import cache_folder, make_config, make_prepared

ACROSS = ("sra", "uld", "mined", "dskd", "multilevel_ot", "alm", "strict_kl", "gold", "xtoken")
SAME = ("fkl", "rkl", "js", "skl")


def everything(store: Path, student: str | None = None) -> tuple[RunConfig, Manifest]:
    """A prepared folder and one cache with all that any objective reads."""
    changes = {"student": {"source": student}} if student else {}
    config = make_config(store, cache={"token_states": True, "dtype": "float32", "check": 0}, **changes)
    prepared = make_prepared(config)
    capture_teacher(config, prepared, cache_folder(config, prepared), Watcher())
    return config, prepared


@pytest.fixture(scope="module")
def across(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Manifest]:
    return everything(tmp_path_factory.mktemp("across"))


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Manifest]:
    teacher = "random:llama?layers=3&width=32&heads=2&vocabulary=400&seed=1"
    return everything(tmp_path_factory.mktemp("same"), teacher)


def serving(config: RunConfig, prepared: Manifest) -> Manifest:
    """The cache that training under this config reads."""
    manifest = find_cache(cache_folder(config, prepared)).manifest()
    assert manifest is not None
    return manifest


def named(config: RunConfig, name: str) -> RunConfig:
    """The config with another objective, without asking for more than that needs."""
    cache = config.cache.model_copy(update={"token_states": False})
    return config.model_copy(update={"cache": cache, "objective": config.objective.model_copy(update={"name": name})})


@pytest.mark.parametrize("name", [*ACROSS, *SAME])
def test_every_objective_trains_from_it(name: str, request: pytest.FixtureRequest) -> None:
    config, prepared = request.getfixturevalue("same" if name in SAME else "across")
    config = named(config, name)
    cache = serving(config, prepared)
    torch.manual_seed(0)
    student = build_student(config, load_tokenizer(config.student), [])
    context = objective_context(config, Path(prepared.folder), Path(cache.folder), student)
    layers = [resolve_layer(layer_count(student), layer) for layer in student_layers(config.objective)]
    module = DistillModule(student, build_objective(config.objective, context), layers)
    data = distill_data(config, PreparedSet(prepared, "train"), TeacherSet(cache, "train"), context_layers(cache))
    batch = data.batch(range(7), 0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss = module(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert set(batch.teacher) == ({2, 3} if name == "sra" else set())
    assert (batch.teacher_states is None) == (name == "sra")


def test_xtoken_reads_student_tokens_as_the_teacher_writes_them(across: tuple[RunConfig, Manifest]) -> None:
    config, prepared = named(across[0], "xtoken"), across[1]
    student = build_student(config, load_tokenizer(config.student), [])
    context = objective_context(config, Path(prepared.folder), Path(serving(config, prepared).folder), student)
    context.shared_student_ids, context.shared_teacher_ids = (
        ids[::2] for ids in (context.shared_student_ids, context.shared_teacher_ids)
    )
    own, teacher = load_tokenizer(config.student), load_tokenizer(config.teacher)
    table = student_in_teacher(teacher, own, context, len(own)).to_dense()
    shared = dict(zip(context.shared_student_ids.tolist(), context.shared_teacher_ids.tolist(), strict=True))
    for token, partner in shared.items():
        assert table[token].nonzero()[:, 0].tolist() == [partner]
    told = 0
    for token in set(range(len(own))) - set(shared):
        text = own.decode([token])
        if token in own.all_special_ids or "\ufffd" in text:
            assert not table[token].any()
            continue
        pieces = teacher(text, add_special_tokens=False)["input_ids"][:4]
        expected = torch.zeros(table.shape[1])
        for place, piece in enumerate(pieces):
            expected[piece] += 0.5**place
        torch.testing.assert_close(table[token], expected / expected.sum())
        told += 1
    assert told > 50


def test_xtoken_weighs_the_pieces_of_a_token_by_halves() -> None:
    """A teacher that knows bytes alone: the token for `abc` stands for three of its tokens, longer ones for four."""
    own, teacher = train_tokenizer(["abcde abcde"] * 9, 300), train_tokenizer([], 257)
    none = torch.empty(0, dtype=torch.long)
    head = Head(torch.zeros(len(teacher), 2))
    context = ObjectiveContext([], 2, 2, None, none, none, teacher_full_head=head)
    table = student_in_teacher(teacher, own, context, len(own)).to_dense()
    words = set(own.get_vocab().values()) - set(own.all_special_ids)
    longest = max(words, key=lambda token: len(own.decode([token])))
    pieces = teacher(own.decode([longest]), add_special_tokens=False)["input_ids"]
    assert len(pieces) > 4
    assert table[longest, pieces[:4]].tolist() == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15])
    assert table[longest].count_nonzero() == 4


def test_xtoken_takes_no_space_that_the_teacher_puts_in_front() -> None:
    own, teacher = train_tokenizer(["the theme"] * 9, 300), byte_fallback()
    none = torch.empty(0, dtype=torch.long)
    context = ObjectiveContext([], 2, 2, None, none, none, teacher_full_head=Head(torch.zeros(len(teacher), 2)))
    table = student_in_teacher(teacher, own, context, len(own)).to_dense()
    words = {token: table[own.convert_tokens_to_ids(token)].nonzero()[:, 0].tolist() for token in ("the", "\u0120the")}
    assert words["the"] == sorted(teacher.convert_tokens_to_ids(["t", "he"]))
    assert words["\u0120the"] == [teacher.convert_tokens_to_ids("\u2581the")]


def test_spans_of_several_tokens_are_left_out_where_that_is_asked_for(across: tuple[RunConfig, Manifest]) -> None:
    config, prepared = named(across[0], "sra"), across[1]
    cache = serving(config, prepared)
    whole, some = (
        distill_data(
            config.model_copy(update={"objective": config.objective.model_copy(update={"spans": spans})}),
            PreparedSet(prepared, "train"),
            TeacherSet(cache, "train"),
            context_layers(cache),
        ).batch(range(7), 0)
        for spans in ("all", "one_to_one")
    )
    single, number = [], 0
    for row in list(PreparedSet(prepared, "train"))[:7]:
        for teacher, student in zip(row.teacher_spans.tolist(), row.student_spans.tolist(), strict=True):
            single += [number] if teacher[1] - teacher[0] == student[1] - student[0] == 1 else []
            number += 1
    assert 0 < len(single) < number == len(whole.span_text)
    assert some.span_range.tolist() == whole.span_range[single].tolist()
    assert some.span_text.tolist() == whole.span_text[single].tolist()
    for layer, spans in some.teacher.items():
        torch.testing.assert_close(spans.centers, whole.teacher[layer].centers[single])
        torch.testing.assert_close(spans.mass, whole.teacher[layer].mass[single])


@pytest.mark.parametrize("name", [*ACROSS, *SAME])
def test_every_objective_is_the_same_flat_and_padded(name: str, request: pytest.FixtureRequest) -> None:
    config, prepared = request.getfixturevalue("same" if name in SAME else "across")
    config = named(config, name)
    cache = serving(config, prepared)
    student = build_student(config, load_tokenizer(config.student), []).eval()
    context = objective_context(config, Path(prepared.folder), Path(cache.folder), student)
    layers = [resolve_layer(layer_count(student), layer) for layer in student_layers(config.objective)]
    module = DistillModule(student, build_objective(config.objective, context), layers)
    data = distill_data(config, PreparedSet(prepared, "train"), TeacherSet(cache, "train"), context_layers(cache))
    batch, found = data.batch(range(7), 0), {}
    assert len(set(batch.starts.diff().tolist())) > 3
    for layout in ("flat", "padded"):
        assert choose_layout(student, layout).flat == (layout == "flat")
        module.zero_grad()
        terms = module(batch)
        terms["loss"].backward()
        found[layout] = terms, {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    for flat, padded in zip(found["flat"], found["padded"], strict=True):
        assert flat.keys() == padded.keys()
        for key, value in padded.items():
            scale = float(value.detach().abs().max())
            torch.testing.assert_close(flat[key], value, atol=1e-4 * scale + 1e-7, rtol=0)


def context_layers(cache: Manifest) -> int:
    return load_head(Path(cache.folder)).layers


def test_token_states_stand_where_they_predict(across: tuple[RunConfig, Manifest]) -> None:
    config, prepared = across
    config = named(config, "uld")
    rows = PreparedSet(prepared, "train")
    data = distill_data(config, rows, TeacherSet(serving(config, prepared), "train"), 3)
    batch = data.batch([5, 2, 3], 0)
    model, ranges = load_model(config.teacher), []
    with torch.no_grad():
        for index, (begin, end) in zip([5, 2, 3], pairwise(batch.teacher_starts.tolist()), strict=True):
            row = rows[index]
            ids, first = batch.teacher_ids[begin:end], row.teacher_response
            final = model.get_decoder()(input_ids=ids[None]).last_hidden_state[0]
            states = batch.teacher_states[3][begin:end]
            assert ids.tolist() == row.teacher_ids.tolist()
            assert batch.teacher_labels[begin:end].tolist() == [*[-100] * first, *row.teacher_ids[first:].tolist()]
            torch.testing.assert_close(states[first - 1 : -1], final[first - 1 : -1], atol=1e-5, rtol=1e-4)
            assert not states[: first - 1].any()
            assert not states[-1:].any()
            ranges += [[begin + low, begin + high] for low, high in row.teacher_spans.tolist()]
    assert batch.teacher_range.tolist() == ranges


@pytest.mark.parametrize(
    ("dtype", "kind"), [("bfloat16", torch.bfloat16), ("int8", torch.float32), ("fp8", torch.float32)]
)
def test_centres_reach_the_objective_in_the_type_they_are_stored_in(
    dtype: str, kind: torch.dtype, tmp_path: Path
) -> None:
    config = make_config(tmp_path, cache={"dtype": dtype})
    prepared = make_prepared(config)
    cache = capture_teacher(config, prepared, cache_folder(config, prepared), Watcher())
    kept = TeacherSet(cache, "train")
    batch = distill_data(config, PreparedSet(prepared, "train"), kept, 3).batch([4, 0], 0)
    assert batch.teacher[2].centers.dtype == kind
    expected = torch.cat([torch.from_numpy(kept[index].centers[2].copy()) for index in (4, 0)])
    assert torch.equal(batch.teacher[2].centers.float(), expected)
