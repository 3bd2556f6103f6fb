"""Texts of a shard by columns equal reading sample by sample, including bad samples and their reasons."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from vfm.data import DatasetSpec, one_array
from vfm.data.samples.sample import BadSample
from vfm.data.samples.texts import _is_ascii, texts_by_sample
from vfm.data.tables.image_list import ImageEntry, ImageListShard, write_image_lists
from vfm.data.tables.parquet import ParquetShard
from vfm.data.tables.parquet_files import open_parquet

LONG, LONG_IN_BYTES = b"x" * 65_537, "é".encode() * 32_769
PIECES = [b"a dog", b" \t", "\u3000猫\x85".encode(), b"", b"\xff", b"\xed\xa0\x80", LONG, LONG_IN_BYTES, b"\x00"]
TEXT = st.none() | st.lists(st.sampled_from(PIECES), max_size=2).map(b"".join)
IN_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
KINDS = [pa.string(), pa.large_string(), pa.list_(pa.string()), pa.large_list(pa.large_string()), IN_DICTIONARY]


def column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Make a column of a type from bytes that need not be UTF-8, like writers without a check."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        flat = column([item for value in values for item in value or []], kind.value_type)
        ends = np.cumsum([0, *(len(value or []) for value in values)])
        offsets = pa.array([None if v is None else e for v, e in zip([*values, []], ends, strict=True)])
        wide = pa.types.is_large_list(kind)
        return (pa.LargeListArray if wide else pa.ListArray).from_arrays(
            offsets.cast(pa.int64() if wide else pa.int32()), flat
        )
    if pa.types.is_dictionary(kind):
        return column(values, kind.value_type).dictionary_encode()
    large = pa.types.is_large_string(kind)
    plain = pa.array(values, pa.large_binary() if large else pa.binary())
    return pa.Array.from_buffers(kind, len(plain), plain.buffers())


@st.composite
def tables(draw: Any) -> tuple[pa.Table, dict[str, str], int]:
    """Draw a table with images, captions in up to two columns, optional keys and uids; the texts; rows per group."""
    num_rows = draw(st.integers(1, 12))
    columns = {"image": pa.array([b"\xff"] * num_rows)}
    languages = draw(st.sampled_from([["en"], ["en", "de"]]))
    for language in languages:
        kind = draw(st.sampled_from(KINDS))
        values = st.none() | st.lists(TEXT, max_size=3) if pa.types.is_nested(kind) else TEXT
        columns[language] = column(draw(st.lists(values, min_size=num_rows, max_size=num_rows)), kind)
    for name in draw(st.sets(st.sampled_from(["key", "uid"]))):
        numbers = st.none() | st.integers(0, 99), pa.int64()
        digests = st.none() | st.binary(min_size=16, max_size=16), pa.binary(16)
        texts = TEXT, draw(st.sampled_from([pa.string(), IN_DICTIONARY]))
        values, kind = draw(st.sampled_from([numbers, texts, digests] if name == "uid" else [numbers, texts]))
        drawn = draw(st.lists(values, min_size=num_rows, max_size=num_rows))
        columns[name] = column(drawn, kind) if values is TEXT else pa.array(drawn, kind)
    return pa.table(columns), {language: language for language in languages}, draw(st.integers(1, 12))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=tables(), data=st.data())
def test_texts_by_parquet_columns_equal_texts_by_sample(tmp_path: Path, made: Any, data: Any) -> None:
    table, texts, rows_a_group = made
    path = tmp_path / "shard.parquet"
    pq.write_table(table, path, row_group_size=rows_a_group)
    shard = ParquetShard(str(path), DatasetSpec(texts=texts))
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(table) - 1)))), dtype=np.int64)
    bad: list[tuple[str, str]] = []
    bad_by_sample: list[tuple[str, str]] = []
    found = shard.texts(rows, lambda *bad_sample: bad.append(bad_sample))
    expected = texts_by_sample(
        partial(shard.read, with_image=False), rows, lambda *bad_sample: bad_by_sample.append(bad_sample)
    )
    assert found.equals(expected)
    assert bad == bad_by_sample


STRUCTS = {
    "a field": [{"en": "a dog"}, {"en": None}, None],
    "a field of a field": [{"page": {"en": " a dog"}}, {"page": None}, None],
    "lists": [{"en": ["a dog", "a cat"]}, {"en": []}, {"en": [None]}],
}


@pytest.mark.parametrize("name", STRUCTS)
def test_fields_of_structs_are_read_by_columns(tmp_path: Path, name: str) -> None:
    path = tmp_path / "shard.parquet"
    pq.write_table(pa.table({"image": [b"\xff"] * 3, "meta": STRUCTS[name]}), path)
    shard = ParquetShard(str(path), DatasetSpec(texts={"en": "meta.page.en" if "of" in name else "meta.en"}))
    bad: list[str] = []
    bad_by_sample: list[str] = []
    texts = shard.texts(np.arange(3), lambda why, _: bad.append(why))
    assert shard._has_plain(["meta"])
    by_sample = texts_by_sample(
        lambda row: shard.read(row, with_image=False), np.arange(3), lambda why, _: bad_by_sample.append(why)
    )
    assert texts.equals(by_sample)
    assert texts["text"][0].as_py() == "a dog"
    assert bad == bad_by_sample == ["missing_caption"] * 2


def test_text_that_is_not_utf8_in_another_field_of_a_struct_is_found(tmp_path: Path) -> None:
    values = [column([b"one", b"two"], pa.string()), column([b"x", b"\xff"], pa.string())]
    meta = pa.StructArray.from_arrays(values, ["en", "other"])
    path = tmp_path / "shard.parquet"
    pq.write_table(pa.table({"image": [b"\xff"] * 2, "meta": meta}), path)
    bad: list[str] = []
    shard = ParquetShard(str(path), DatasetSpec(texts={"en": "meta.en"}))
    assert shard.texts(np.arange(2), lambda why, _: bad.append(why))["text"].to_pylist() == ["one"]
    assert bad == ["wrong_encoding"]


@pytest.mark.parametrize("fields", [["a.b"], ["en", "en"]], ids=["a dot in a name", "a name twice"])
def test_fields_with_unclear_names_are_read_by_sample(tmp_path: Path, fields: list[str]) -> None:
    meta = pa.StructArray.from_arrays([pa.array(["a dog"])] * len(fields), fields)
    path = tmp_path / "shard.parquet"
    pq.write_table(pa.table({"image": [b"\xff"], "meta": meta}), path)
    assert not ParquetShard(str(path), DatasetSpec(texts={"en": f"meta.{fields[0]}"}))._has_plain(["meta"])


def test_dictionaries_and_binary_uids_are_read_by_columns(tmp_path: Path) -> None:
    uids = [f"{number:032x}" for number in range(1000)]
    captions = pa.array([f"a dog {number % 7}" for number in range(1000)])
    plain = pa.table({"uid": uids, "caption": captions})
    binary = pa.array(map(bytes.fromhex, uids), pa.binary(16))
    encoded = pa.table({"uid": binary, "caption": captions.dictionary_encode()})
    texts = []
    for name, table in (("plain", plain), ("encoded", encoded)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        shard = ParquetShard(str(tmp_path / f"{name}.parquet"), DatasetSpec(images=False, texts={"en": "caption"}))
        assert shard._has_plain(["caption", "uid"])
        texts.append(shard.texts(np.arange(1000), lambda *bad: None))
    assert texts[0].equals(texts[1])
    assert texts[0]["uid"].to_pylist() == uids


def test_texts_of_an_image_list_equal_texts_by_sample(tmp_path: Path) -> None:
    entries = [
        ImageEntry("a", "a.jpg", {"en": ["one", "two"], "de": ["eins"]}),
        ImageEntry("b", "b.jpg", problem=BadSample("unsafe_path", "b.jpg")),
        ImageEntry("c", "c.jpg", {"de": ["drei"]}),
        ImageEntry("d", "d.jpg"),
    ]
    spec = DatasetSpec(texts={"en": "txt", "de": "json.de"})
    (made,) = write_image_lists(tmp_path, entries, spec)
    shard = ImageListShard(made.path, spec)
    bad: list[tuple[str, str]] = []
    found = shard.texts(np.array([0, 1, 2, 3]), lambda *bad_sample: bad.append(bad_sample))
    expected = texts_by_sample(partial(shard.read, with_image=False), np.arange(4), lambda *bad_sample: None)
    assert found.equals(expected)
    assert found["text_index"].to_pylist() == [0, 1, 0, 0]
    assert bad == [("unsafe_path", "b.jpg"), ("missing_caption", "d.jpg")]


def test_a_slice_is_ascii_if_its_own_bytes_are() -> None:
    column = pa.array(["é", "a dog", "", "a cat", "é"])
    assert [_is_ascii(column[first : first + 3]) for first in range(3)] == [False, True, False]


def test_a_few_first_rows_of_a_large_row_group_are_read_without_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {"uid": [f"{row:032x}" for row in range(5000)], "en": [f"a dog {row}" for row in range(5000)]}
    pq.write_table(pa.table(columns), path, row_group_size=2000, use_dictionary=False, data_page_size=1000)
    reader = ParquetShard(str(path), DatasetSpec(texts={"en": "en"}, images=False))
    for rows in ([0], [3, 5], [199], [1999], [2000, 2003, 4990], list(range(0, 5000, 7))):
        found = reader.texts(np.array(rows), pytest.fail)
        assert found["row"].to_pylist() == rows
        assert found["text"].to_pylist() == [f"a dog {row}" for row in rows]
        assert found["uid"].to_pylist() == [f"{row:032x}" for row in rows]


def test_damage_behind_the_first_rows_of_a_row_group_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {"uid": [f"{row:032x}" for row in range(2000)], "en": [f"a dog {row}" for row in range(2000)]}
    pq.write_table(pa.table(columns), path, use_dictionary=False, data_page_size=1000)
    captions = pq.read_metadata(path).row_group(0).column(1)
    end = captions.data_page_offset + captions.total_compressed_size
    data = bytearray(path.read_bytes())
    data[end - 500 : end] = bytes(500)
    path.write_bytes(data)
    reader = ParquetShard(str(path), DatasetSpec(texts={"en": "en"}, images=False))
    found = reader.texts(np.array([0, 3]), pytest.fail)
    assert found["text"].to_pylist() == ["a dog 0", "a dog 3"]
    problems: list[tuple[str, str]] = []
    assert not len(reader.texts(np.array([0, 1999]), lambda *problem: problems.append(problem)))
    assert problems == [("unreadable_row", f"{path}: row group 0")] * 2


def test_the_first_rows_of_a_local_file_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    images = [np.random.default_rng(row).bytes(100_000) for row in range(40)]
    pq.write_table(pa.table({"jpg": images}), path, use_dictionary=False, write_batch_size=1, data_page_size=1)
    before = pa.total_allocated_bytes()
    batches = open_parquet(str(path)).iter_batches(2)
    assert next(batches)["jpg"].to_pylist() == images[:2]
    assert pa.total_allocated_bytes() - before < path.stat().st_size / 2


def test_a_column_in_one_chunk_is_not_copied() -> None:
    words = pa.chunked_array([["a", "red", "dog"]])
    assert one_array(words).buffers()[2].address == words.chunk(0).buffers()[2].address
    assert one_array(words.slice(1)).to_pylist() == ["red", "dog"]
    assert one_array(pa.chunked_array([["a"], ["dog"]])).to_pylist() == ["a", "dog"]
    assert one_array(pa.chunked_array([], pa.string())).equals(pa.array([], pa.string()))


def test_adjacent_rows_of_a_row_group_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfm.data.tables.column_texts.ROWS_AT_A_TIME", 7)
    texts = [b"a dog %d" % row for row in range(50)]
    uids = [f"{row:032x}" for row in range(50)]
    pq.write_table(pa.table({"uid": uids, "en": column(texts, pa.string())}), tmp_path / "good.parquet")
    texts[20], texts[30] = b"\xff", b" \x00"
    pq.write_table(pa.table({"uid": uids, "en": column(texts, pa.string())}), tmp_path / "bad.parquet")
    spec = DatasetSpec(texts={"en": "en"}, images=False)
    good, bad = (ParquetShard(str(tmp_path / f"{name}.parquet"), spec) for name in ("good", "bad"))
    found = good.texts(np.arange(3, 50), pytest.fail)
    assert found["uid"].to_pylist() == uids[3:]
    assert len({chunk.buffers()[2].address for chunk in found["text"].chunks}) == 1
    for rows in (np.arange(50), np.arange(0, 50, 3)):
        reasons: list[list[str]] = [[], []]
        by_column = bad.texts(rows, lambda why, _, to=reasons[0]: to.append(why))  # type: ignore[misc]
        read = partial(bad.read, with_image=False)
        by_sample = texts_by_sample(read, rows, lambda why, _, to=reasons[1]: to.append(why))  # type: ignore[misc]
        assert by_column.equals(by_sample)
        assert reasons[0] == reasons[1]
        assert reasons[0]
