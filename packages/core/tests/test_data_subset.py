"""A curated subset contains only the kept samples and texts of its pool."""

import pickle

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from data_samples import json_member, members
from vfm.base import UserError
from vfm.data import (
    SUBSET_INDEX,
    BadRow,
    DatasetSpec,
    Shard,
    open_dataset,
    packed_uids,
    read_subset_shard,
    subset_file,
    subset_schema,
    unpacked_uids,
    write_index,
    write_subset,
    write_subset_index,
    write_tar,
)
from vfm.interfaces import CuratedSubset, Pool

SPEC = DatasetSpec(texts={"en": "json.en", "de": "json.de"})
SIZES = [4, 0, 3, 5]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Make samples with two English and one German caption each; sample (2, 1) is bad."""
    directory = tmp_path_factory.mktemp("store") / "pool"
    directory.mkdir()
    shards = []
    for shard, size in enumerate(SIZES):
        path = directory / f"{shard}.tar"
        texts = {
            f"{shard}-{row}": {"en": [f"a{shard}{row}", f"b{shard}{row}"], "de": f"c{shard}{row}"}
            for row in range(size)
        }
        write_tar(path, [(key, members(0, json=json_member(**fields))) for key, fields in texts.items()])
        shards.append(Shard.of(path, size))
    bad = [BadRow(2, 1, "missing_caption", "here")]
    return Pool.create(
        directory, num_samples=write_index(directory, shards, SPEC, bad_rows=bad), languages=["en", "de"]
    )


def subset_of(pool, directory, rows):
    directory.mkdir(parents=True, exist_ok=True)
    columns = [*zip(*((*row, True) for row in rows), strict=True)] if rows else [()] * 7
    arrays = [pa.array(column, field.type) for column, field in zip(columns, subset_schema(), strict=True)]
    write_subset(directory, pa.table(arrays, schema=subset_schema()))
    subset = CuratedSubset(pool=pool.reference(directory), num_samples=len({row[:2] for row in rows}))
    return CuratedSubset.create(directory, **subset.model_dump())


def every_text(pool):
    source = open_dataset(pool)
    return [
        (shard, row["row"], row["uid"], row["language"], row["text_index"], 0.5)
        for shard in range(len(SIZES))
        for row in source.texts_of_shard(shard).to_pylist()
    ]


def test_pool_leaves_out_bad_rows(pool):
    source = open_dataset(pool)
    assert source.shard_sizes.tolist() == [4, 0, 2, 5]
    assert source.keys[4:6] == ["2-0", "2-2"]
    assert len(every_text(pool)) == 3 * 11


@settings(max_examples=25)
@given(st.data())
def test_kept_texts_are_read_back(pool, tmp_path_factory, data):
    texts = every_text(pool)
    kept = data.draw(
        st.lists(st.sampled_from(texts), unique=True, min_size=1).map(lambda rows: sorted(rows, key=texts.index))
    )
    subset = subset_of(pool, tmp_path_factory.mktemp("store") / "subset", kept)
    source = open_dataset(subset)
    assert len(source) == subset.num_samples == len({row[:2] for row in kept})
    streamed = [
        (shard, row["row"], row["uid"], row["language"], row["text_index"], 0.5)
        for shard in range(len(SIZES))
        for row in source.texts_of_shard(shard).to_pylist()
    ]
    assert streamed == kept
    seen = [text for i in range(len(source)) for texts in source[i].texts.values() for text in texts]
    name = {"en": "ab", "de": "c"}
    assert seen == [f"{name[language][place]}{shard}{row}" for shard, row, _, language, place, _ in kept]


def test_source_can_be_pickled_for_another_process(pool, tmp_path):
    source = open_dataset(subset_of(pool, tmp_path / "subset", every_text(pool)[:7]))
    other = pickle.loads(pickle.dumps(source))
    assert [other[i] for i in range(len(other))] == [source[i] for i in range(len(source))]
    assert other.where(0).endswith("0.tar:0-0")


def test_unsorted_or_missing_subset_is_refused(pool, tmp_path):
    with pytest.raises(UserError, match=r"00000000.parquet: not sorted by row"):
        open_dataset(subset_of(pool, tmp_path / "subset", every_text(pool)[::-1]))[0]
    (tmp_path / "subset" / SUBSET_INDEX).unlink()
    with pytest.raises(UserError, match="expected a curated subset"):
        open_dataset(CuratedSubset.load(tmp_path / "subset"))
    (tmp_path / "subset" / "subset.parquet").touch()
    with pytest.raises(UserError, match="a subset of an older version of vfm, in one file; curate again"):
        open_dataset(CuratedSubset.load(tmp_path / "subset"))


def test_a_subset_of_another_pool_and_files_of_another_curation_are_refused(pool, tmp_path):
    subset = subset_of(pool, tmp_path / "subset", every_text(pool))
    other = subset_of(pool, tmp_path / "other", every_text(pool)[:1])
    subset_file(other.path, 0).replace(subset_file(subset.path, 0))
    with pytest.raises(UserError, match=r"00000000.parquet: 1 samples, subset_index.parquet says 4; curate again"):
        open_dataset(subset)[0]
    rows = [dict.fromkeys(("samples", "kept_samples", "texts", "kept_texts"), 1) | {"shard": 9, "language": None}]
    write_subset_index(subset.path, rows)
    with pytest.raises(UserError, match="shard 9 is not in the pool of 4 shards"):
        open_dataset(subset)


def test_opening_reads_the_index_and_reading_a_sample_only_its_shard(pool, tmp_path):
    subset = subset_of(pool, tmp_path / "subset", every_text(pool))
    for shard in (0, 3):
        subset_file(subset.path, shard).unlink()
    source = open_dataset(subset)
    assert source.shard_sizes.tolist() == [4, 0, 2, 5]
    assert source[4].key == "2-0"
    with pytest.raises(UserError, match=r"00000000.parquet: no such file"):
        source[0]


HEX = "0123456789abcdef"


@given(
    st.one_of(
        st.lists(st.text(HEX, min_size=32, max_size=32)),
        st.lists(st.text(max_size=40)),
        st.lists(st.text(HEX + "AF \t", min_size=32, max_size=32)),
    ),
    st.integers(0, 3),
)
def test_uids_of_32_digits_take_16_bytes_and_all_uids_come_back(uids, start):
    column = pa.array(uids, pa.string())[start:]
    packed = packed_uids(column)
    assert unpacked_uids(packed).to_pylist() == uids[start:]
    is_packed = all(len(uid) == 32 and set(uid) <= set(HEX) for uid in uids[start:])
    assert (packed.type == pa.binary(16)) == is_packed
    middle = packed[1:-1]
    assert unpacked_uids(middle).to_pylist() == uids[start:][1:-1]


@pytest.mark.parametrize(("first", "kind"), [(HEX[::-1] + HEX, pa.binary(16)), ("other", pa.string())])
def test_uids_of_all_shards_have_one_type_and_are_read_as_they_are_stored(tmp_path, first, kind):
    uids = {0: [HEX + HEX[::-1], 2 * HEX], 1: [first, 2 * HEX]}
    rows = [(shard, row, uid, "en", 0, 1.0, True) for shard in uids for row, uid in enumerate(uids[shard])]
    write_subset(tmp_path, pa.table(list(map(pa.array, zip(*rows, strict=True))), subset_schema().names))
    stored = [read_subset_shard(tmp_path, shard, ["uid"], unpack_uids=False)["uid"] for shard in uids]
    assert [column.type for column in stored] == [kind, kind]
    for shard, column in enumerate(stored):
        assert unpacked_uids(column).to_pylist() == uids[shard]
        assert read_subset_shard(tmp_path, shard, ["uid"])["uid"].to_pylist() == uids[shard]
