"""All files of a subset have the same type of uids, so that other programs can read its folder as one table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from vfm.data import DatasetSpec, Shard, read_subset, unpacked_uids, write_index
from vfm.plugin import Artifact, Pool
from vfm_curation.balance.stages import MetaclipBalance, RandomSubset
from vfm_curation.filters.stages import FilterPool
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata
from vfm_curation.shard_files import all_uids_packed, write_shard_file

Rows = list[tuple[str, str]]  # uid, caption
BYTES, TEXT = pa.binary(16), pa.string()
SIZE = 3


def digits(number: int) -> str:
    return f"{number:032x}"


@pytest.fixture
def pool_of(tmp_path: Path) -> Callable[[list[pa.Table]], Pool]:
    """Return a function that makes a pool of tables with the columns `uid` and `en`, and perhaps `de`."""

    def make(tables: list[pa.Table]) -> Pool:
        (tmp_path / "store" / "pool").mkdir(parents=True)
        shards = []
        for number, table in enumerate(tables):
            pq.write_table(table, tmp_path / f"{number}.parquet")
            shards.append(Shard.of(tmp_path / f"{number}.parquet", len(table), format="parquet"))
        spec = DatasetSpec(images=False, texts={name: name for name in tables[0].column_names[1:]})
        folder = tmp_path / "store" / "pool"
        return Pool.create(folder, num_samples=write_index(folder, shards, spec), languages=list(spec.texts))

    return make


@pytest.fixture
def made_from(run_stage: Any, tmp_path: Path) -> Any:
    """Return a function that makes subsets of a pool by each stage."""
    (tmp_path / "entries.txt").write_text("dog")
    metadata = run_stage(BuildMetadata(name="entries", path=str(tmp_path / "entries.txt")))
    filters = [{"type": "caption_length", "min_words": 2}]

    def make(pool: Pool) -> dict[str, Artifact]:
        allowed = {"max_bad_fraction": 0.5}
        matches = run_stage(MatchTexts(name="matches", pool="p", metadata="m", **allowed), p=pool, m=metadata)
        balanced = run_stage(MetaclipBalance(name="balanced", matches="x", t=1000), x=matches)
        return {
            "balanced": balanced,
            "random": run_stage(RandomSubset(name="random", matches="x", like="s"), x=matches, s=balanced),
            "filtered": run_stage(FilterPool(name="filtered", pool="p", filters=filters, **allowed), p=pool),
            "filtered subset": run_stage(FilterPool(name="again", pool="p", filters=filters), p=balanced),
        }

    return make


def check(subset: Artifact, kind: pa.DataType) -> None:
    """Check the files of a subset against their reader, read at once in both orders."""
    expected = read_subset(subset.path)["uid"].to_pylist()
    assert expected
    for folder in filter(Path.is_dir, (subset.path / "subset", subset.path / "verdicts")):
        files = sorted(folder.glob("*.parquet"))
        schemas = [pq.read_schema(file).remove_metadata() for file in files]
        assert schemas == [schemas[0]] * SIZE
        assert schemas[0].field("uid").type == kind
        for ordered in (files, files[::-1]):
            uids = ds.dataset(list(map(str, ordered))).to_table(columns=["uid"])["uid"]
            assert set(expected) <= set(unpacked_uids(uids).to_pylist())


def table(uids: list[str], caption: str = "a big dog") -> pa.Table:
    return pa.table({"uid": uids, "en": [caption] * len(uids)})


@pytest.mark.parametrize("other", range(SIZE))
def test_uids_are_text_in_all_files_if_one_shard_has_other_uids(pool_of: Any, made_from: Any, other: int) -> None:
    tables = [table([digits(2 * shard), digits(2 * shard + 1)]) for shard in range(SIZE)]
    tables[other] = table(["id-1", "id-2"])
    packed = pa.array(map(bytes.fromhex, tables[other - 1]["uid"].to_pylist()), BYTES)
    tables[other - 1] = tables[other - 1].set_column(0, "uid", packed)
    for subset in made_from(pool_of(tables)).values():
        check(subset, TEXT)


@pytest.mark.parametrize("without", range(SIZE))
@pytest.mark.parametrize("fault", ["lost", "no words", "no texts"])
def test_a_shard_without_texts_leaves_the_uids_of_the_others_packed(
    pool_of: Any, made_from: Any, tmp_path: Path, without: int, fault: str
) -> None:
    tables = [table([digits(2 * shard), digits(2 * shard + 1)]) for shard in range(SIZE)]
    if fault != "lost":
        tables[without] = table([digits(100)], "x" if fault == "no words" else "")
    pool = pool_of(tables)
    if fault == "lost":
        (tmp_path / f"{without}.parquet").unlink()
    for subset in made_from(pool).values():
        check(subset, BYTES)


@pytest.mark.parametrize("stage", ["filtered", "balanced"])
def test_a_shard_with_other_uids_that_is_back_changes_the_files_of_the_others(
    pool_of: Any, made_from: Any, tmp_path: Path, stage: str
) -> None:
    pool = pool_of([table([digits(1)]), table(["id-1"]), table([digits(2)])])
    (tmp_path / "1.parquet").rename(tmp_path / "away")
    check(made_from(pool)[stage], BYTES)
    (tmp_path / "away").rename(tmp_path / "1.parquet")
    check(made_from(pool)[stage], TEXT)  # with the files of the first attempt in the work folder


def test_files_without_rows_of_older_matches_leave_the_uids_packed(tmp_path: Path) -> None:
    packed = pa.table({"uid": pa.array([bytes(16)], BYTES)})
    files = []
    for number, uids in enumerate((packed, pa.table({"uid": pa.array([], TEXT)}), pa.table({"uid": ["id-1"]}))):
        files.append(tmp_path / f"{number}.arrow")
        write_shard_file(files[-1], uids, "", {})
    assert all_uids_packed(files[:2])
    assert not all_uids_packed(files)
