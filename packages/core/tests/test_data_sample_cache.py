"""Cached tensors are read back unchanged for any shard size, and a crash costs at most one shard."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from vfm.base import UserError
from vfm.data import SampleDraw
from vfm.data.loading.sample_cache import (
    CACHE_FOLDER,
    SHARD_BYTES,
    CachedTensors,
    CacheWriter,
    decode,
    encode,
)
from vfm.data.samples.sample import BadSample
from vfm.interfaces import SampleCache

FACTS = {"data": "../pool", "producer": "a test", "crop_scale": (0.2, 1.0), "flip": 0.5, "seed": 0}


def writer(folder: Path, **changes: Any) -> CacheWriter:
    settings: dict[str, Any] = {"num_samples": 10, "num_crops": 2, "shape": (3,), "dtype": "fp32"}
    return CacheWriter(folder / "work", **{"samples_per_shard": 4, **settings, **changes})


def tensor(index: int, target: CacheWriter) -> np.ndarray[Any, Any]:
    return np.random.default_rng(index).normal(size=(target.num_crops, *target.shape)).astype(np.float32)


def fill(target: CacheWriter, plan: Iterable[range], bad: set[int]) -> None:
    for samples in plan:
        tensors = {index: tensor(index, target) for index in samples if index not in bad}
        target.write(samples, tensors, [("unreadable_image", f"tar:{index}") for index in samples if index in bad])


def publish(target: CacheWriter, folder: Path) -> CachedTensors:
    (folder / "artifact").mkdir()
    return CachedTensors(SampleCache.load(target.publish(folder / "artifact", **FACTS).path))


@given(
    num_samples=st.integers(1, 12),
    num_crops=st.integers(1, 3),
    shape=st.sampled_from([(1,), (2, 3), (2, 2, 4)]),
    samples_per_shard=st.integers(1, 13),
    batch_size=st.integers(1, 5),
    cut=st.integers(0, 12),
    bad=st.sets(st.integers(0, 11)),
)
@example(num_samples=5, num_crops=2, shape=(2, 3), samples_per_shard=3, batch_size=2, cut=1, bad={1})
def test_tensors_written_before_and_after_a_crash_are_read_back(cut: int, batch_size: int, bad: set[int], **sizes: Any):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = writer(folder, **sizes)
        fill(first, first.plan(batch_size)[:cut], bad)
        second = writer(folder, **sizes)
        assert second.done == first.done
        fill(second, second.plan(batch_size), bad)
        missing = sorted(bad & set(range(second.num_samples)))
        assert second.bad == [("unreadable_image", f"tar:{index}") for index in missing]
        tensors = pickle.loads(pickle.dumps(publish(second, folder)))
        assert len(tensors) == second.num_samples
        assert tensors.cache.bad_samples == ({"unreadable_image": len(missing)} if missing else {})
        for index in range(second.num_samples):
            for crop in range(second.num_crops):
                if index in bad:
                    with pytest.raises(BadSample, match=f"tar:{index}: unreadable_image"):
                        tensors[index, crop]
                else:
                    assert np.array_equal(tensors[index, crop], tensor(index, second)[crop])


def test_complete_shards_are_not_written_again(tmp_path):
    first = writer(tmp_path)
    fill(first, first.plan(3)[:3], bad={1})  # one shard of four, and half of the next
    (tmp_path / "work" / "00001.part").write_bytes(b"half of it")
    stamp = (tmp_path / "work" / "00000.npy").stat().st_mtime_ns
    second = writer(tmp_path)
    assert [(batch.start, batch.stop) for batch in second.plan(3)] == [(4, 7), (7, 8), (8, 10)]
    fill(second, second.plan(3), bad={1})
    publish(second, tmp_path)
    files = sorted((tmp_path / "artifact" / CACHE_FOLDER).iterdir())
    assert [file.name for file in files] == [f"0000{shard}.{end}" for shard in range(3) for end in ("bad.json", "npy")]
    assert files[1].stat().st_mtime_ns == stamp


def test_fp16_cache_has_rounded_values(tmp_path):
    half = writer(tmp_path, dtype="fp16")
    fill(half, half.plan(4), bad=set())
    found = publish(half, tmp_path)[7, 1]
    assert found.dtype == np.float16
    assert np.array_equal(found, tensor(7, half)[1].astype(np.float16))


def test_int8_cache_is_exact_to_half_a_step_of_each_vector(tmp_path):
    small = writer(tmp_path, dtype="int8", shape=(2, 2, 5))
    fill(small, small.plan(4), bad=set())
    tensors = publish(small, tmp_path)
    assert np.load(tmp_path / "artifact" / CACHE_FOLDER / "00000.npy").shape == (4, 2, 2, 2, 9)
    found, exact = tensors[7, 1], tensor(7, small)[1]
    assert found.dtype == np.float32
    step = np.abs(exact).max(axis=-1, keepdims=True) / 127
    assert (np.abs(found - exact) <= 0.501 * step).all()
    assert not np.array_equal(found, exact)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=6))
def test_int8_keeps_zeros_signs_and_the_largest_value(numbers):
    vector = np.array([numbers, [0.0] * len(numbers)], np.float32)
    found = decode(encode(vector, "int8"))
    largest = np.abs(vector[0]).max()
    assert not found[1].any()
    assert (np.sign(found[0]) * np.sign(vector[0]) >= 0).all()
    if largest > 1e-30:
        assert np.abs(found[0]).max() == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "value", "line"),
    [
        ("fp16", 1e5, "values up to 1e.05 exceed fp16"),
        ("fp16", np.nan, "not finite"),
        ("fp32", np.inf, "not finite"),
        ("int8", np.nan, "not finite"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, dtype, value, line):
    target = writer(tmp_path, dtype=dtype)
    with pytest.raises(UserError, match=f"sample 1: .*{line}"):
        target.write(range(2), {0: np.ones((2, 3)), 1: np.full((2, 3), value)}, [])


def test_sample_or_crop_out_of_range_is_refused(tmp_path):
    target = writer(tmp_path)
    fill(target, target.plan(4), bad=set())
    tensors = publish(target, tmp_path)
    for place in [(10, 0), (-1, 0), (0, 2), (0, -1)]:
        with pytest.raises(IndexError):
            tensors[place]


def _cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _exchange(file: Path) -> None:
    np.save(file, np.zeros((4, 2, 5), np.float32))


def _pickle(file: Path) -> None:
    with file.open("wb") as opened:
        np.save(opened, np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("damage", [Path.unlink, _cut_off, _exchange, _pickle])
def test_damaged_shard_raises_one_line(tmp_path, damage):
    target = writer(tmp_path)
    fill(target, target.plan(4), bad=set())
    tensors = publish(target, tmp_path)
    damage(tmp_path / "artifact" / CACHE_FOLDER / "00001.npy")
    assert tensors[0, 0].shape == (3,)
    with pytest.raises(UserError, match=r"00001\.npy") as caught:
        tensors[5, 0]
    assert "\n" not in str(caught.value)


def test_default_shard_size(tmp_path):
    target = writer(tmp_path, num_samples=3, shape=(14, 14, 768), samples_per_shard=None, dtype="fp16")
    row = 2 * 14 * 14 * 768 * 2
    assert SHARD_BYTES - row < target.samples_per_shard * row <= SHARD_BYTES


def test_draw_has_its_step_and_sample_number():
    draw = SampleDraw.of(1, 2, 3)
    assert (draw.step, draw.index) == (2, 3)
