"""Draws by identity: the fast hash equals its plain reference, known values are fixed, draws are uniform."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from vfm.data.samples.draws import (
    BLOCK,
    drawn,
    hash_strings,
    splitmix64,
    text_key,
    text_keys,
    uniform,
)

NAMES = st.text(max_size=40).filter(lambda text: not any(0xD800 <= ord(sign) < 0xE000 for sign in text))
TEXTS = st.lists(st.tuples(NAMES, st.sampled_from(["en", "de", "", "中文"]), st.integers(0, 2**31 - 1)), max_size=30)

KNOWN = [16824041194480671490, 9949362263674750433, 11951394255234749543, 0.9683267082330943, 0.2064617031667576]


def keys_of(texts):
    columns = zip(*texts, strict=True) if texts else [()] * 3
    return text_keys(
        *(pa.array(c, kind) for c, kind in zip(columns, (pa.string(), pa.string(), pa.int32()), strict=True))
    )


@given(TEXTS)
def test_keys_equal_the_plain_reference(texts):
    assert keys_of(texts).tolist() == [text_key(*text) for text in texts]


def test_slices_chunks_and_blocks_hash_like_the_whole():
    uids = [f"{'x' * (i % 23)}{i}" for i in range(BLOCK + 100)]
    whole = hash_strings(pa.array(uids))
    assert len(set(whole.tolist())) == len(uids)
    assert (hash_strings(pa.array(uids)[7:]) == whole[7:]).all()
    assert (hash_strings(pa.chunked_array([uids[:5], [], uids[5:]])) == whole).all()


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 24, 31, 32])
def test_strings_of_equal_length_hash_like_mixed_ones(length):
    strings = [f"{i:03d}" * 11 for i in range(50)]
    even = pa.array([string[:length] for string in strings])
    among = hash_strings(pa.array([*even.to_pylist(), "another, and longer than they are"]))[:-1]
    assert hash_strings(even).tolist() == among.tolist()
    assert [text_key(string, "en", 1) for string in even.to_pylist()] == keys_of(
        [(s, "en", 1) for s in even.to_pylist()]
    ).tolist()


def test_keys_are_fixed():
    assert text_key("", "", 0) == KNOWN[0]
    assert text_key("sample0", "en", 0) == KNOWN[1]
    assert text_key("0123456789abcdef0123456789abcdef", "de", 3) == KNOWN[2]
    assert uniform(np.array([KNOWN[1]], dtype=np.uint64), 0).tolist() == [KNOWN[3]]
    assert uniform(np.array([KNOWN[1]], dtype=np.uint64), 7, 2).tolist() == [KNOWN[4]]


def test_splitmix64_gives_the_published_sequence():
    state, outputs = np.array([1234567], dtype=np.uint64), []
    for _ in range(3):
        outputs.append(int(splitmix64(state)[0]))
        state = state + np.uint64(0x9E3779B97F4A7C15)
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_each_part_of_identity_and_seed_changes_the_draw():
    keys = keys_of([("a", "en", 0), ("b", "en", 0), ("a", "de", 0), ("a", "en", 1), ("en", "a", 0)])
    seeds = [(0,), (1,), (-1,), (2**64 - 2,), (0, 0), (0, 1), (1, 0)]
    assert len({number for seed in seeds for number in uniform(keys, *seed).tolist()}) == 35


def test_draws_are_uniform_and_epochs_independent():
    keys = keys_of([(f"sample{i}", "en", 0) for i in range(50_000)])
    first, second = uniform(keys, 3, 0), uniform(keys, 3, 1)
    for numbers in (first, second):
        histogram = np.histogram(numbers, bins=50, range=(0, 1))[0]
        assert ((histogram - 1000) ** 2 / 1000).sum() < 110  # chi-square, 49 degrees of freedom, p about 1e-6
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(50_000)


def test_probabilities_of_0_and_1_are_certain_and_nan_is_never_used():
    keys = keys_of([(str(i), "en", 0) for i in range(3000)])
    chance = np.tile([0.0, 1.0, np.nan], 1000)
    assert drawn(keys, chance, 5).tolist() == [False, True, False] * 1000


def test_one_text_per_image_is_chosen_uniformly_and_used_by_its_own_probability():
    sizes = [1, 2, 3, 4] * 2000
    images = np.repeat(np.arange(len(sizes)), sizes)
    places = np.concatenate([np.arange(size) for size in sizes])
    keys = keys_of([(str(image), "en", int(place)) for image, place in zip(images, places, strict=True)])
    certain = drawn(keys, np.ones(len(keys)), 1, images=images)
    assert (np.bincount(images[certain], minlength=len(sizes)) == 1).all()
    size_of = np.array(sizes)[images]
    for size in (2, 3, 4):
        counts = np.bincount(places[certain & (size_of == size)], minlength=size)
        assert (abs(counts - 2000 / size) < 4 * np.sqrt(2000 / size)).all()
    half = drawn(keys, np.full(len(keys), 0.5), 1, images=images)
    assert not (half & ~certain).any()
    assert abs(half.sum() - 4000) < 4 * np.sqrt(2000)
    assert drawn(keys[:0], np.ones(0), 1, images=images[:0]).tolist() == []


@pytest.mark.parametrize("bits", [0, 17, 40])
def test_similar_keys_are_drawn_independently(bits):
    keys = np.arange(20_000, dtype=np.uint64) << np.uint64(bits)
    assert 0.48 < (uniform(keys, 0) < 0.5).mean() < 0.52
