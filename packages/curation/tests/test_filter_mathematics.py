"""The filters' mathematics against plain twins: comparing all pairs, sorting everything, a dictionary."""

import io
import json
import random
import struct
from pathlib import Path

import imagehash
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from vfm.plugin import UserError
from vfm_curation.filters.copies import buckets
from vfm_curation.filters.copies.buckets import Buckets, Dropped
from vfm_curation.filters.copies.duplicates import first_of_each
from vfm_curation.filters.copies.near_duplicates import near_better
from vfm_curation.filters.hashes import NUM_VARIANTS, HashIndex, block_masks, phash, variant_hashes
from vfm_curation.filters.linear_head import head_width
from vfm_curation.filters.scores import kth_largest, read_head

bits64 = st.integers(0, 2**64 - 1)


def near_hashes(number: int, seed: int) -> np.ndarray:
    """Return hashes of which many differ from another one in a few bits."""
    rng = random.Random(seed)
    made = [rng.getrandbits(64) for _ in range(number // 3)]
    while len(made) < number:
        flips = sum(1 << bit for bit in rng.sample(range(64), rng.randint(0, 7)))
        made.append(rng.choice(made) ^ flips)
    rng.shuffle(made)
    return np.array(made, dtype=np.uint64)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([[bin(int(x) ^ int(y)).count("1") for y in b] for x in a])


@given(bits64, st.integers(0, 10), st.integers(1, 10**10), st.data())
@settings(max_examples=200)
def test_hashes_within_the_distance_agree_on_some_mask(
    one: int, distance: int, number: int, data: st.DataObject
) -> None:
    flipped = data.draw(st.lists(st.integers(0, 63), max_size=distance, unique=True))
    other = one ^ sum(1 << bit for bit in flipped)
    masks = block_masks(distance, number)
    assert any(one & int(mask) == other & int(mask) for mask in masks)
    assert len(masks) < 5000 or distance > 8  # larger distances need more for billions of hashes


def test_more_hashes_mean_masks_of_more_bits() -> None:
    widths = [min(bin(int(mask)).count("1") for mask in block_masks(4, number)) for number in (10, 10**6, 10**9)]
    assert widths[0] < widths[1] < widths[2]


@pytest.mark.parametrize("distance", [0, 1, 3, 6])
def test_rows_near_to_a_better_image_equal_a_comparison_of_all(distance: int) -> None:
    rng = np.random.default_rng(distance)
    hashes, groups, ranks = near_hashes(240, distance), np.sort(rng.integers(0, 5, 240)), rng.integers(0, 90, 240)
    plain = rng.random(240) < 0.5
    order = np.lexsort((ranks, groups))
    groups, ranks = groups[order].astype(np.uint64), ranks[order]
    near = (distances(hashes, hashes) <= distance) & (groups[:, None] == groups) & (ranks[:, None] > ranks)
    near &= plain[:, None] | plain
    assert 0 < near.any(axis=1).sum() < 240
    assert (near_better(groups, hashes, ranks, plain, distance) == near.any(axis=1)).all()


@pytest.mark.parametrize("distance", [0, 2, 5])
def test_hashes_near_to_a_reference_equal_a_comparison_of_all(distance: int) -> None:
    hashes = near_hashes(300, 10 + distance)
    expected = (distances(hashes[:200], hashes[200:]) <= distance).any(axis=1)
    assert 0 < expected.sum() < 200
    assert (HashIndex(hashes[200:], distance).near(hashes[:200]) == expected).all()
    assert not HashIndex(hashes[:0], distance).near(hashes).any()


scores = st.floats(width=32, allow_nan=False)


@given(st.lists(scores, min_size=1), st.data())
def test_kth_largest_equals_sorting(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    cut = data.draw(st.integers(0, len(values)))
    array = np.array(values, dtype=np.float32)
    assert kth_largest(lambda: [array[:cut], array[cut:]], k) == np.sort(array)[::-1][k - 1]


def photo(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Return blurred blobs of colour: with structure, so that the hash has no ties."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def test_phash_equals_imagehash() -> None:
    for seed in range(30):
        assert f"{phash(photo(seed)):016x}" == str(imagehash.phash(photo(seed)))


def test_phash_is_robust_to_size_and_quality_and_differs_between_images() -> None:
    for seed in range(20):
        buffer = io.BytesIO()
        photo(seed).resize((60, 45)).save(buffer, format="JPEG", quality=40)
        assert (phash(photo(seed)) ^ phash(Image.open(buffer))).bit_count() <= 6
        assert (phash(photo(seed)) ^ phash(photo(seed + 1))).bit_count() > 12


def test_variants_are_the_hashes_of_the_turned_mirrored_and_cut_image() -> None:
    for seed in range(10):
        image = photo(seed, (160, 160))
        found = variant_hashes(image)
        assert len(found) == NUM_VARIANTS == 13
        for way in Image.Transpose:  # up to two bits, since the resized image is rounded
            assert min((phash(image.transpose(way)) ^ one).bit_count() for one in found[:7]) <= 2
        cut = image.crop((8, 8, 152, 152))  # 5 %
        assert min((phash(cut) ^ one).bit_count() for one in found[7:10]) < (phash(cut) ^ phash(image)).bit_count()
        captioned = Image.new("RGB", (160, 180), "white")
        captioned.paste(image)
        nearest = min((phash(image) ^ one).bit_count() for one in variant_hashes(captioned)[10:])
        assert nearest < (phash(image) ^ phash(captioned)).bit_count()


def test_flat_images_have_the_same_hash() -> None:
    flat = {phash(Image.new("RGB", (50, 40), (grey, grey, grey))) for grey in (1, 77, 128, 255)}
    assert flat == {1 << 63}


units = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 5), st.integers(0, 3)), max_size=40)


@given(units)
def test_first_of_each_equals_a_dictionary(rows: list[tuple[int, int, int, int]]) -> None:
    columns = zip(*rows, strict=True) if rows else [()] * 4
    names = ["key", "uid", "shard", "unit"]
    kinds = [pa.uint64(), pa.string(), pa.int32(), pa.int32()]
    values = [[f"u{v}" if name == "uid" else v for v in column] for name, column in zip(names, columns, strict=True)]
    table = pa.table([pa.array(v, kind) for v, kind in zip(values, kinds, strict=True)], names=names)
    first, later = first_of_each(table, ["key"])
    expected: dict[int, tuple[str, int, int]] = {}
    for key, *place in sorted(zip(*values, strict=True)):
        expected.setdefault(key, tuple(place))
    assert {row["key"]: (row["uid"], row["shard"], row["unit"]) for row in first.to_pylist()} == expected
    assert len(first) + len(later) == len(rows)


def test_buckets_give_back_every_row_in_its_bucket_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "BYTES_IN_MEMORY", 1000)  # so that files are appended to
    made, rng = Buckets(tmp_path / "b", 7), np.random.default_rng(0)
    numbers = rng.integers(0, 6, 1000)
    for start in range(0, 1000, 30):
        part = np.arange(start, min(start + 30, 1000))
        made.add(pa.table({"row": part, "name": [f"n{i}" for i in part]}), numbers[part])
    for bucket in range(7):
        table = made.read(bucket)
        assert (table["row"].to_pylist() if table else []) == np.flatnonzero(numbers == bucket).tolist()
    assert sum(len(table) for table in made) == 1000
    assert made.read(6) is None


def test_rows_are_written_by_their_size_in_bytes(tmp_path: Path) -> None:
    made, vectors = Buckets(tmp_path / "b", 1), pa.array(np.zeros(1 << 25, np.float32))  # 128 MiB in 64 rows
    made.add(pa.table({"vector": pa.FixedSizeListArray.from_arrays(vectors, 1 << 19)}), np.zeros(64, int))
    assert (tmp_path / "b" / "0").exists()


@pytest.mark.parametrize("number", [1, 3, 50])
def test_dropped_units_are_read_shard_by_shard(tmp_path: Path, number: int) -> None:
    units, rng = Dropped(tmp_path / "f", number, 9), np.random.default_rng(1)
    dropped = {(int(shard), int(unit)) for shard, unit in rng.integers(0, 9, (30, 2))}
    places = pa.table({"shard": [s for s, _ in dropped] * 2, "unit": [u for _, u in dropped] * 2})
    units.add(places)
    masks = list(units.passing(pa.table({"unit": np.arange(9)}) for _ in range(9)))
    assert {(s, u) for s, mask in enumerate(masks) for u in np.flatnonzero(~mask)} == dropped


def test_head_width_is_read_from_the_header_and_bad_files_are_errors(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    weight = np.arange(6, dtype=np.float32)
    save_file({"weight": weight[None], "bias": np.array([2.0], dtype=np.float32)}, tmp_path / "head.safetensors")
    save_file({"weight": weight}, tmp_path / "bare.safetensors")
    assert head_width(tmp_path / "head.safetensors") == head_width(tmp_path / "bare.safetensors") == 6
    read, bias = read_head(tmp_path / "head.safetensors")
    assert (read == weight).all()
    assert bias == 2
    assert read_head(tmp_path / "bare.safetensors")[1] == 0
    save_file({"weight": weight.reshape(2, 3)}, tmp_path / "wide.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "list.safetensors").write_bytes(struct.pack("<Q", 2) + json.dumps([]).encode())
    for name, message in {
        "wide": r"expected `weight`, \(D,\) or \(1, D\)",
        "text": "not a safetensors file",
        "list": "not a safetensors file",
        "none": "no such file",
    }.items():
        with pytest.raises(UserError, match=message):
            head_width(tmp_path / f"{name}.safetensors")
