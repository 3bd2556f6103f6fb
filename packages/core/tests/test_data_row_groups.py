"""Row groups of tables: decoded once for the samples that are read together, and kept up to a number of bytes."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_samples import context, draw_sample, encoded, number_of, write_row_groups
from vfm.data import SampleDraw, Source, TrainingData, open_dataset
from vfm.data.loading.reader import READ_TOGETHER, TrainingReader
from vfm.data.pairs.stages import Pairs
from vfm.data.reading.recent_groups import MAX_BYTES, RecentGroups

PER_GROUP, PER_FILE = 3, 60


def indexed(folder: Path) -> Source:
    stage = Pairs(kind="data.pairs", name="pool", path=str(folder))
    return open_dataset(stage.run(context(folder.with_name(folder.name + "-artifact"))))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """Count how often pyarrow decodes each row group with images."""
    counts = Counter[tuple[str, int]]()
    read = pq.ParquetFile.read_row_group

    def counting(file: Any, group: int, columns: Any = None) -> Any:
        if "image" in columns:
            counts[str(file.reader), group] += 1
        return read(file, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    return counts


def test_a_row_group_is_decoded_once_for_the_samples_that_are_read_together(
    tmp_path: Path, decoded: Counter[tuple[str, int]]
) -> None:
    source = indexed(write_row_groups(tmp_path / "tables", PER_FILE, PER_GROUP))
    planned = source.order(seed=1, shuffle_shards=2).of_epochs(0, READ_TOGETHER)
    reader = TrainingReader(source, number_of, None, None, seed=0, max_bad_fraction=0.0)
    decoded.clear()
    samples = list(reader.samples(planned))
    assert len(decoded) == len({number // PER_GROUP for _, number in planned}) < READ_TOGETHER
    assert set(decoded.values()) == {1}
    assert [sample.key for sample in samples] == [str(number) for _, number in planned]
    assert [sample.image for sample in samples] == [encoded(number) for _, number in planned]


def test_large_row_groups_are_decoded_once_if_samples_are_read_in_order(
    tmp_path: Path, decoded: Counter[tuple[str, int]]
) -> None:
    image = draw_sample(0).tobytes().ljust(1 << 20, b"x")
    table = pa.table({"image": [image] * 160, "caption": ["a caption"] * 160})
    (tmp_path / "tables").mkdir()
    # Only one of the row groups fits into the bytes that are kept.
    pq.write_table(table, tmp_path / "tables/0.parquet", row_group_size=40, use_dictionary=False)
    source = indexed(tmp_path / "tables")
    reader = TrainingReader(source, number_of, None, None, seed=0, max_bad_fraction=0.0)
    decoded.clear()
    assert len(list(reader.samples([(0, index) for index in range(160)]))) == 160
    assert list(decoded.values()) == [1, 1, 1, 1]


def test_the_batches_of_a_table_are_those_of_its_samples_one_by_one(tmp_path: Path) -> None:
    source = indexed(write_row_groups(tmp_path / "tables", PER_FILE, PER_GROUP))
    data = TrainingData(source, number_of, seed=5, global_batch_size=40, shuffle_shards=2)
    order = source.order(seed=5, shuffle_shards=2)
    for step, (batch,) in enumerate(data.steps(0, 4)):
        numbers = order(40 * step, 40 * (step + 1)).tolist()
        assert batch.keys == list(map(str, numbers))
        draws = [SampleDraw.of(5, step, number) for number in numbers]
        alone = [number_of(source[number], draw) for number, draw in zip(numbers, draws, strict=True)]
        assert [image.tolist() for image in batch.inputs.image] == [inputs.image.tolist() for inputs in alone]


def test_a_key_is_looked_up_in_the_row_group_that_was_decoded_for_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = indexed(write_row_groups(tmp_path / "tables", PER_FILE, PER_GROUP))
    assert source[4].image == encoded(4)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", None)
    assert source.key(4) == "4"
    assert source.where(5) == f"{tmp_path}/tables/0.parquet:5"


def test_the_row_groups_of_all_tables_share_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    image = draw_sample(0).tobytes().ljust(1 << 20, b"x")
    table = pa.table({"image": [image] * 16, "caption": ["a caption"] * 16})
    for file in range(5):
        path = tmp_path / f"tables/{file}.parquet"
        pq.write_table(table, path, row_group_size=4, use_dictionary=False)
    source = indexed(tmp_path / "tables")
    before = pa.total_allocated_bytes()
    for index in range(0, len(source), 4):
        assert source[index].image == image
    kept = pa.total_allocated_bytes() - before
    # Arrow's threads may still hold a page of the row group that was decoded last, of 4 MB.
    assert MAX_BYTES // 2 < kept < MAX_BYTES + 5 * len(image)


def test_the_last_row_group_is_kept_and_others_while_all_fit() -> None:
    tables = [pa.table({"x": pa.array(range(10))}) for _ in range(4)]  # 80 bytes each
    groups = RecentGroups(max_bytes=200)
    for number, table in enumerate(tables[:2]):
        groups.keep(number, table)
    assert groups.get(0) is tables[0]
    groups.keep(2, tables[2])
    assert [groups.get(number) is not None for number in range(3)] == [True, False, True]
    large = pa.table({"x": pa.array(range(100))})
    groups.keep(3, large)
    assert groups.get(3) is large
    assert (groups.get(0), groups.get(2), groups.num_bytes) == (None, None, 800)
    groups.keep(0, tables[0])
    assert (groups.get(3), groups.get(0), groups.num_bytes) == (None, tables[0], 80)


def test_the_bytes_of_a_row_group_that_two_threads_decode_count_once() -> None:
    groups = RecentGroups(max_bytes=200)
    for number in (0, 0, 1):
        groups.keep(number, pa.table({"x": pa.array(range(10))}))
    assert groups.num_bytes == 160
    assert None not in (groups.get(0), groups.get(1))
