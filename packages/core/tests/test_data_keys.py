"""Keys that repeat in a dataset: every sample gets its own uid, and the uids of other datasets stay as they were."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from data_samples import context, encoded, members
from vfm.data import Source, open_dataset, uid_of, write_tar
from vfm.data.index.mixture import Mixture
from vfm.data.indexing.repeated_keys import KeySample, RepeatedKeys
from vfm.data.pairs.stages import Pairs
from vfm.interfaces import Context


def index(folder: Path, path: object, **fields: object) -> Source:
    stage = Pairs(kind="data.pairs", name="pool", path=path, **fields)
    return open_dataset(stage.run(context(folder / "artifact")))


def write_tars(folder: Path, keys: list[list[str]], *, counted: bool) -> str:
    folder.mkdir(parents=True)
    for number, own in enumerate(keys):
        write_tar(folder / f"{number:05d}.tar", [(key, members(place)) for place, key in enumerate(own)])
        if counted:  # as img2dataset does, so that the tars are not scanned for their number of samples
            (folder / f"{number:05d}_stats.json").write_text(json.dumps({"successes": len(own)}))
    return str(folder)


def uids(source: Source) -> list[str]:
    found = [source[place].uid for place in range(len(source))]
    texts = [row["uid"] for shard in range(len(source.shard_sizes)) for row in source.texts_of_shard(shard).to_pylist()]
    assert texts == found
    return found


@pytest.mark.parametrize("counted", [False, True])
def test_tars_that_each_count_from_zero_have_a_uid_for_each_sample(tmp_path: Path, counted: bool) -> None:
    keys = [["000000", "000001", "000002"], ["000001", "000002"], ["000000"]]
    source = index(tmp_path, write_tars(tmp_path / "pool", keys, counted=counted))
    assert source.keys == [f"{shard:05d}/{key}" for shard, own in enumerate(keys) for key in own]
    assert uids(source) == [uid_of(key) for key in source.keys]
    assert len(set(uids(source))) == 6


@pytest.mark.parametrize("counted", [False, True])
def test_keys_that_are_distinct_stay_and_so_do_their_uids(tmp_path: Path, counted: bool) -> None:
    keys = [["000000", "000001"], ["000002"]]
    source = index(tmp_path, write_tars(tmp_path / "pool", keys, counted=counted))
    assert source.keys == ["000000", "000001", "000002"]
    assert uids(source) == [uid_of(key) for key in source.keys]
    assert "keys_repeat" not in (source.directory / "index.json").read_text()


def test_a_counted_tar_that_is_damaged_is_left_to_its_readers(tmp_path: Path) -> None:
    path = write_tars(tmp_path / "pool", [[str(number) for number in range(60)], ["60"]], counted=True)
    (tmp_path / "pool/00001.tar").write_bytes(b"no tar" * 1000 + bytes(1024))
    source = index(tmp_path, path)
    assert len(source) == 61
    assert source[0].uid == uid_of("0")


def test_two_crawls_in_one_dataset_have_distinct_uids(tmp_path: Path) -> None:
    for crawl in "ab":
        write_tars(tmp_path / crawl, [["000000000"], ["000010000"]], counted=True)
    source = index(tmp_path, [f"{tmp_path}/{crawl}/*.tar" for crawl in "ab"])
    assert len(set(uids(source))) == 4
    assert source.keys[3] == "b/00001/000010000"


def test_a_parquet_column_of_keys_that_repeat_is_not_used(tmp_path: Path) -> None:
    for name in ("0", "1"):
        columns = {"key": ["x", "y"], "image": [encoded(0), encoded(1)], "caption": ["one", "two"]}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    source = index(tmp_path, f"{tmp_path}/*.parquet")
    assert source.keys == ["0/00000000", "0/00000001", "1/00000000", "1/00000001"]
    assert uids(source) == [uid_of(key) for key in source.keys]


def test_images_of_one_name_in_two_folders_have_distinct_keys(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(encoded(0))
        (tmp_path / folder / "1.txt").write_text("caption")
    source = index(tmp_path, [f"{tmp_path}/a", f"{tmp_path}/b"])
    assert source.keys == ["1", "1#2"]
    assert len(set(uids(source))) == 2


def test_a_mixture_of_tars_with_repeated_keys_has_a_uid_for_each_sample(tmp_path: Path) -> None:
    path = write_tars(tmp_path / "pool", [["000000"], ["000000"]], counted=False)
    mixture = Mixture([index(tmp_path / name, path) for name in "ab"], [1, 1])
    assert len({mixture[place].uid for place in range(4)}) == 4


def test_the_run_says_why_the_keys_changed(tmp_path: Path) -> None:
    lines: list[str] = []
    path, folder = write_tars(tmp_path / "pool", [["0"], ["0"]], counted=False), tmp_path / "artifact"
    folder.mkdir()
    send = lambda event: lines.append(str(event.data.get("message")))  # noqa: E731
    Pairs(kind="data.pairs", name="pool", path=path).run(Context("pool", folder, folder, {}, send))
    assert any(line.startswith("keys repeat ('0' is in ") for line in lines)


@settings(max_examples=50)
@given(st.integers(2, 6), st.integers(50, 200), st.floats(0, 0.3), st.integers(0, 1000))
def test_counters_that_restart_are_found_with_gaps_and_distinct_keys_never(
    num_shards: int, size: int, missing: float, seed: int
) -> None:
    rng = random.Random(seed)
    for restarts in (True, False):
        for all_known in (True, False):
            repeated = RepeatedKeys()
            for shard in range(num_shards):
                numbers = [number for number in range(size) if rng.random() >= missing]
                keys = [f"{number + (0 if restarts else shard * size):06d}" for number in numbers]
                repeated.add(f"{shard}.tar", KeySample.of(keys, all_known=all_known))
            assert bool(repeated.example) == restarts
