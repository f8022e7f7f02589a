"""Teacher shards give back what was put in, to the precision of their type, without copying what they map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sra_core.errors import ShardError
from sra_core.shards import StageFolder, TeacherSet, decode_vectors, encode_vectors, teacher_batch, teacher_schema
from tests.shards.make import WIDTH, teacher_rows, write_teacher

BOUND = {"float32": 0.0, "bfloat16": 2.0**-8, "int8": 0.5 / 127, "fp8": 2.0**-4}
"""Largest error of a stored number over the largest magnitude of its vector (of the number itself for bfloat16)."""

vectors = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.just(WIDTH)),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


@given(vectors)
def test_bfloat16_rounds_as_torch_does(values: np.ndarray) -> None:
    stored, scale = encode_vectors(values, "bfloat16")
    assert scale is None
    expected = torch.from_numpy(values).bfloat16()
    assert torch.equal(torch.from_numpy(decode_vectors(stored, WIDTH)), expected.float())
    assert torch.equal(torch.from_numpy(stored).view(torch.bfloat16).reshape(-1, WIDTH), expected)


@given(vectors)
def test_int8_is_within_half_a_step_of_each_vectors_scale(values: np.ndarray) -> None:
    stored, scale = encode_vectors(values, "int8")
    assert stored.dtype == np.int8
    largest = np.abs(values).max(axis=1)
    step = scale.astype(np.float32)
    # the scale itself is rounded to float16, which can push the largest entries half a step off
    allowed = 0.5 * step + largest * 2.0**-10 + 1e-30
    assert (np.abs(decode_vectors(stored, WIDTH, scale) - values).max(axis=1) <= allowed).all()


@given(vectors)
def test_float32_is_exact(values: np.ndarray) -> None:
    stored, scale = encode_vectors(values, "float32")
    assert scale is None
    np.testing.assert_array_equal(decode_vectors(stored, WIDTH), values)


def test_int8_golden_numbers() -> None:
    stored, scale = encode_vectors(np.array([[127.0, -63.6, 0.4, 0.0]], np.float32), "int8")
    assert stored.tolist() == [127, -64, 0, 0]
    assert scale.tolist() == [1.0]


@given(vectors)
def test_fp8_is_what_torch_rounds_to(values: np.ndarray) -> None:
    stored, scale = encode_vectors(values, "fp8")
    assert stored.dtype == np.uint8
    scaled = torch.from_numpy(values / scale.astype(np.float32)[:, None]).clamp(-448, 448)
    assert torch.equal(torch.from_numpy(stored.reshape(-1, WIDTH)), scaled.to(torch.float8_e4m3fn).view(torch.uint8))
    back = torch.from_numpy(stored).view(torch.float8_e4m3fn).float().reshape(-1, WIDTH).numpy()
    np.testing.assert_array_equal(decode_vectors(stored, WIDTH, scale), back * scale.astype(np.float32)[:, None])


def test_every_fp8_value_and_tie_rounds_as_in_torch() -> None:
    every = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (every[1:] + every[:-1]) / 2
    for values in (every, ties, ties.nextafter(every[1:]), ties.nextafter(every[:-1])):
        row = torch.cat([values, -values, torch.tensor([448.0])])  # its scale is 1
        stored, scale = encode_vectors(row.numpy()[None], "fp8")
        assert scale.tolist() == [1.0]
        assert torch.equal(torch.from_numpy(stored), row.to(torch.float8_e4m3fn).view(torch.uint8))


def test_an_outlier_costs_int8_its_other_numbers_and_fp8_none() -> None:
    values = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    values[:, 3] = 300.0
    errors = {}
    for dtype in ("int8", "fp8"):
        stored, scale = encode_vectors(values, dtype)
        gap = np.delete(decode_vectors(stored, 64, scale) - values, 3, axis=1)
        errors[dtype] = np.linalg.norm(gap) / np.linalg.norm(np.delete(values, 3, axis=1))
    assert errors["fp8"] < 0.04 < 0.4 < errors["int8"]


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "fp8"])
def test_round_trip_by_row_and_by_batch(dtype: str, states: bool, compression: str | None, tmp_path: Path) -> None:
    rows = teacher_rows(45, states=states)
    manifest = write_teacher(
        StageFolder(tmp_path, "cache", {}), [rows[:20], rows[20:]], dtype, compression, states=states
    )
    kept = TeacherSet(manifest, "train")
    assert (len(kept), kept.layers, kept.width, kept.states) == (45, (2, 5), WIDTH, states)
    for row, back in zip(rows, kept, strict=True):
        assert back.id == row.id
        for layer in (2, 5):
            np.testing.assert_array_equal(back.mass[layer], row.mass[layer])
            close(back.centers[layer], row.centers[layer], dtype)
        if states:
            close(back.states, row.states, dtype)
    order = [44, 0, 19, 20, 7, 7]
    batch = kept.gather(order, states=states)
    for layer in (2, 5):
        expected = np.concatenate([kept[index].centers[layer] for index in order])
        np.testing.assert_array_equal(widened(batch.centers[layer]), expected)
        np.testing.assert_array_equal(batch.mass[layer], np.concatenate([rows[index].mass[layer] for index in order]))
    if states:
        np.testing.assert_array_equal(widened(batch.states), np.concatenate([kept[index].states for index in order]))
    assert kept.gather(order, layers=[5]).centers.keys() == {5}
    assert kept.gather(order).states is None


def close(back: np.ndarray, row: np.ndarray, dtype: str) -> None:
    if not row.size:
        assert back.shape == row.shape
        return
    error = np.abs(back - row).max(axis=1) / np.abs(row).max(axis=1)
    assert error.max() <= BOUND[dtype] * 1.02
    assert dtype == "float32" or error.max() > 0


def widened(stored: np.ndarray) -> np.ndarray:
    return decode_vectors(stored, WIDTH) if stored.dtype == np.uint16 else stored


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_uncompressed_shard_is_read_through_the_memory_map(dtype: str, tmp_path: Path) -> None:
    """A change of the file shows in an array that was taken before: the array is the file's memory, not a copy."""
    rows = teacher_rows(3)
    manifest = write_teacher(StageFolder(tmp_path, "cache", {}), [rows], dtype)
    kept = TeacherSet(manifest, "train")
    columns, row = kept._shards.locate(1)
    view = columns["centers_5"][row]
    before = view.copy()
    path = Path(manifest.folder) / "train-0.arrow"
    place = path.read_bytes().index(before.tobytes())
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes(before.nbytes))
    assert (view == 0).all()
    assert (before != 0).any()


def test_a_compressed_shard_is_unpacked_a_few_rows_at_a_time(tmp_path: Path) -> None:
    rows = teacher_rows(40)
    manifest = write_teacher(StageFolder(tmp_path, "cache", {}), [rows], "float32", "zstd")
    kept = TeacherSet(manifest, "train")
    columns, row = kept._shards.locate(17)
    assert (len(columns["mass_2"].offsets), row) == (9, 1)
    assert kept[17].id == "row-17"


def test_rows_without_states_are_refused_by_a_schema_that_keeps_them() -> None:
    with pytest.raises(ValueError, match="token states"):
        teacher_batch(teacher_rows(1), teacher_schema([2, 5], "float32", WIDTH, states=True))


def test_an_empty_shard_and_a_split_without_shards(tmp_path: Path) -> None:
    manifest = write_teacher(StageFolder(tmp_path, "cache", {}), [[], teacher_rows(2)])
    kept = TeacherSet(manifest, "train")
    assert [row.id for row in kept] == ["row-0", "row-1"]
    assert kept[-1].id == "row-1"
    with pytest.raises(IndexError):
        kept[2]
    assert len(TeacherSet(manifest, "test")) == 0


def test_a_shard_whose_inside_is_damaged_is_named(tmp_path: Path) -> None:
    manifest = write_teacher(StageFolder(tmp_path, "cache", {}), [teacher_rows(9)])
    path = Path(manifest.folder) / "train-0.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2 - 6) + data[-6:]
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"train-0\.arrow"):
        TeacherSet(manifest, "train")[0]
