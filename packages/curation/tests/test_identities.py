"""Every text has its own draw: the kept set's size has binomial spread whatever the keys; repeats are reported."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from vfm.data import drawn, hash_strings, open_dataset, packed_uids, text_keys, write_tar
from vfm.data.pairs.stages import Pairs
from vfm.plugin import Event
from vfm_curation.match.repeated_texts import RepeatedTexts, keys_of, smallest_keys
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata
from vfm_curation.uids import bytes_of_uids, hash_uids

SHARDS, SIZE, SEEDS = 20, 25, 400
KEYS: dict[str, Callable[[int, int], str]] = {
    "each tar counts from zero": lambda shard, row: f"{row:06d}",
    "one counter": lambda shard, row: f"{shard * SIZE + row:08d}",
    "img2dataset": lambda shard, row: f"{shard:05d}{row:04d}",
    "two crawls": lambda shard, row: f"{shard % (SHARDS // 2):05d}{row:04d}",
    "folders that restart": lambda shard, row: f"{row % 5}/{row:03d}",
}


@pytest.mark.parametrize("keys", KEYS)
def test_the_size_of_the_kept_set_spreads_as_a_binomial_whatever_the_keys(
    keys: str, run_stage: Any, tmp_path: Path
) -> None:
    for shard in range(SHARDS):
        samples = [(KEYS[keys](shard, row), {"jpg": b"\xff", "txt": b"a dog"}) for row in range(SIZE)]
        write_tar(tmp_path / f"{shard:05d}.tar", samples)
    pool = run_stage(Pairs(name="pool", path=f"{tmp_path}/*.tar", verify=False))
    source = open_dataset(pool)
    texts = pa.concat_tables([source.texts_of_shard(shard) for shard in range(SHARDS)])
    found = text_keys(texts["uid"], texts["language"], texts["text_index"])
    number, chance = SHARDS * SIZE, 0.3
    sizes = np.array([drawn(found, np.full(number, chance), seed).sum() for seed in range(SEEDS)])
    # The variance of n normal draws has a relative standard error of sqrt(2 / n), 7 % here; five of them are allowed.
    assert abs(sizes.var() / (number * chance * (1 - chance)) - 1) < 5 * (2 / SEEDS) ** 0.5
    assert abs(sizes.mean() - number * chance) < 5 * (number * chance * (1 - chance) / SEEDS) ** 0.5


def matched(run_stage: Any, make_pool: Any, tmp_path: Path, uids: list[str], **sizes: int) -> list[str]:
    """Match a pool of these uids, and return the warnings."""
    (tmp_path / "entries.txt").write_text("dog\n")
    pool = make_pool("pool", [(uid, {"en": ["a dog", "two dogs"]}) for uid in uids], **sizes)
    metadata, lines = run_stage(BuildMetadata(name="entries", path=f"{tmp_path}/entries.txt")), list[str]()

    def note(event: Event) -> None:
        lines.extend([event.data["message"]] if event.type == "warning" else [])

    run_stage(MatchTexts(name="matches", pool="p", metadata="m"), send=note, p=pool, m=metadata)
    return lines


def test_uids_of_the_data_that_repeat_are_a_warning_with_an_example(
    run_stage: Any, make_pool: Any, tmp_path: Path
) -> None:
    uids = [f"u{number}" for number in range(90)]
    uids[75] = "u10"
    (line,) = matched(run_stage, make_pool, tmp_path, uids)
    tars = f"{tmp_path}/pool-000000.tar row 10 and in {tmp_path}/pool-000040.tar row 35;"
    assert line.startswith(f"4 of 180 compared texts share their uid with another text: 'u10' is in {tars}")


def test_uids_that_repeat_within_a_shard_are_found(run_stage: Any, make_pool: Any, tmp_path: Path) -> None:
    (line,) = matched(run_stage, make_pool, tmp_path, ["a", "b", "a"])
    assert "'a' is in" in line
    assert "row 0 and in" in line
    assert "row 2;" in line


def test_distinct_uids_are_no_warning(run_stage: Any, make_pool: Any, tmp_path: Path) -> None:
    assert not matched(run_stage, make_pool, tmp_path, [f"u{number}" for number in range(90)])


def texts(uids: list[str]) -> pa.Table:
    columns = {"uid": uids, "language": ["en"] * len(uids), "text_index": pa.array([0] * len(uids), pa.int32())}
    return pa.table({"row": list(range(len(uids))), **columns})


@settings(max_examples=30)
@given(st.integers(1100, 4000), st.floats(0.1, 1), st.integers(0, 1000), st.permutations(range(3)))
def test_a_tenth_of_repeated_texts_is_found_in_large_shards_in_any_order(
    size: int, share: float, seed: int, order: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    shards = [texts([f"{number}-{row}" for row in range(size)]) for number in range(2)]
    common = rng.choice(size, round(share * size), replace=False)
    third = np.array([f"2-{row}" for row in range(size)], dtype=object)
    third[common] = np.array(shards[0]["uid"].to_pylist(), dtype=object)[common]
    rng.shuffle(third)
    shards.append(texts(third.tolist()))
    both = [RepeatedTexts(), RepeatedTexts()]
    for shard in order:
        both[0].add(shard, smallest_keys(keys_of(shards[shard])))
        both[1].add(shard, smallest_keys(keys_of(shards[shard])) if shard < 2 else [])
    assert both[1].warning(shards.__getitem__, str) is None
    line = both[0].warning(shards.__getitem__, str)
    assert line
    uid = line.split("'")[1]
    places = [(shard, shards[shard]["uid"].to_pylist().index(uid)) for shard in (0, 2)]
    assert f" is in {places[0][0]} row {places[0][1]} and in {places[1][0]} row {places[1][1]};" in line


HEX = "0123456789abcdef"


@given(
    st.one_of(
        st.lists(st.text(HEX, min_size=32, max_size=32)),
        st.lists(st.text(max_size=40)),
        st.lists(st.text(HEX + "AFgoz \t/:`é", min_size=32, max_size=32)),
        st.lists(st.none() | st.text(HEX, min_size=32, max_size=32)),
    ),
    st.integers(0, 3),
)
def test_uids_are_packed_as_core_packs_them(uids: list[str | None], start: int) -> None:
    column = pa.array(uids, pa.string())[start:]
    assert bytes_of_uids(column).equals(packed_uids(column))
    assert bytes_of_uids(pa.chunked_array([column, column])).equals(packed_uids(pa.chunked_array([column, column])))


def test_any_byte_that_is_no_lower_case_digit_is_seen_at_any_place() -> None:
    for byte in range(128):
        for place in (0, 7, 31):
            uid = "0" * place + chr(byte) + "f" * (31 - place)
            column = pa.array(["0" * 32, uid, "a" * 32])
            assert bytes_of_uids(column).equals(packed_uids(column)), (byte, place)


@given(st.lists(st.text(max_size=40)) | st.lists(st.text(HEX, min_size=32, max_size=32)), st.integers(0, 3))
def test_uids_are_hashed_as_core_hashes_them(uids: list[str], start: int) -> None:
    column = pa.array(uids, pa.string())[start:]
    assert hash_uids(column).tolist() == hash_strings(column).tolist()


def test_adding_a_shard_does_not_copy_the_keys_of_all_shards() -> None:
    repeated = RepeatedTexts()
    for shard in range(200):
        repeated.add(shard, range(1024))
    tracemalloc.start()
    repeated.add(200, range(1024))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000  # the keys of 200 shards have 1.6 MB


@given(st.lists(st.lists(st.integers(0, 300), max_size=40), max_size=20), st.integers(1, 50))
def test_the_smallest_keys_of_all_shards_stay(shards: list[list[int]], limit: int) -> None:
    repeated = RepeatedTexts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vfm_curation.match.repeated_texts.KEYS_IN_MEMORY", limit)
        for shard, keys in enumerate(shards):
            repeated.add(shard, sorted(keys))
        repeated._sort()
    pairs = sorted((key, shard) for shard, keys in enumerate(shards) for key in keys)
    expected = [pair for pair in pairs if len(pairs) <= limit or pair[0] <= pairs[limit - 1][0]]
    assert list(zip(repeated._keys.tolist(), repeated._shards.tolist(), strict=True)) == expected


def test_memory_is_bounded_and_the_smallest_keys_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfm_curation.match.repeated_texts.KEYS_IN_MEMORY", 64)
    shards = [texts([f"{number}-{row}" for row in range(100)]) for number in range(20)]
    shards.append(shards[7])
    repeated = RepeatedTexts()
    for shard, table in enumerate(shards):
        repeated.add(shard, smallest_keys(keys_of(table)))
        assert len(repeated._keys) + repeated._num_added <= 2 * 64 + 2
    assert "is in 7 row" in (repeated.warning(shards.__getitem__, str) or "")
