"""curation.export: the kept texts in the formats of other tools, read back."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from vfm.data import open_dataset, read_subset, uid_of
from vfm.data.pairs.stages import Pairs
from vfm.plugin import Event, Pool, UserError
from vfm_curation.balance.stages import MetaclipBalance
from vfm_curation.export.stages import ExportSubset
from vfm_curation.filters.stages import FilterPool
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata

WORDS = ["dog", "cat", "okapi"]
NUMBER = 90


def uid_at(i: int) -> str:
    return f"{i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}" if i % 3 else f"name{i}"


def samples() -> list[tuple[str, dict[str, list[str]]]]:
    texts = lambda i: {"en": [f"{i} the {WORDS[i % 7 % 3]}", f"{i} a {WORDS[i % 2]}"], "de": [f"{i} dog", "nichts"]}  # noqa: E731
    return [(uid_at(i), texts(i)) for i in range(NUMBER)]


def image_file(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (i, 2 * i, 50)).save(buffer, "PNG" if i % 2 else "JPEG")
    return buffer.getvalue()


@pytest.fixture
def subset(make_pool: Any, run_stage: Any, tmp_path: Path) -> Any:
    images = {uid_at(i): image_file(i) for i in range(NUMBER)} | {uid_at(5): b"not an image"}
    urls = {uid_at(i): f"http://x/{i}.jpg" for i in range(NUMBER) if i != 8}
    pool = make_pool("pool", samples(), images=images, urls=urls)
    return curate(run_stage, pool, tmp_path, ["en", "de"])


def curate(run_stage: Any, pool: Any, tmp_path: Path, languages: list[str]) -> Any:
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    metadata = run_stage(BuildMetadata(name="entries", path=str(tmp_path / "words.txt")))
    matches = run_stage(MatchTexts(name="matches", pool="p", metadata="m", languages=languages), p=pool, m=metadata)
    return run_stage(MetaclipBalance(name="curated", matches="x", t=25), x=matches)


def export(run_stage: Any, subset: Any, *, name: str = "out", send: Any = lambda event: None, **flags: Any) -> Any:
    flags = {"pairs": False, "uids": False, **flags}
    return run_stage(ExportSubset(name=name, subset="s", **flags), send=send, s=subset)


def kept_rows(subset: Any) -> list[dict[str, Any]]:
    return [row for row in read_subset(subset.path).to_pylist() if row["kept"]]


def test_pairs_have_a_row_for_each_matched_text_with_its_entries(run_stage: Any, subset: Any) -> None:
    rows = pq.read_table(export(run_stage, subset, pairs=True).path / "pairs.parquet").to_pylist()
    stored = read_subset(subset.path).to_pylist()
    texts = dict(samples())
    assert len(rows) == len(stored) > 0
    for row, one in zip(rows, stored, strict=True):
        assert {
            name: row[name] for name in ("uid", "language", "text_index", "probability", "kept")
        }.items() <= one.items()
        words = texts[row["uid"]][row["language"]][row["text_index"]].split()
        assert row["entries"] == [word for word in WORDS if word in words]
        assert row["reason"] == ("" if row["kept"] else "balanced")
    assert {row["kept"] for row in rows} == {True, False}


def test_every_export_joins_back_to_the_users_own_files(run_stage: Any, subset: Any) -> None:
    out = export(run_stage, subset, pairs=True, links=True, tars=True)
    texts, number = dict(samples()), [uid_at(i) for i in range(NUMBER)]
    source = open_dataset(Pool.load(subset.linked(subset.pool)))
    place_of = {source[i].uid: (source.index.shards[source.locate(i)[0]].path, source.locate(i)[1], source.key(i))
                for i in range(len(source))}  # fmt: skip
    pairs = pq.read_table(out.path / "pairs.parquet").to_pylist()
    links = pq.read_table(out.path / "links").to_pylist()
    records = [json.loads(value) for tar in (out.path / "tars").iterdir() for name, value in members_of(tar).items()
               if name.endswith("json")]  # fmt: skip
    for row in [*pairs, *links, *records]:
        assert (row["shard"], row["row"], row["key"]) == place_of[row["uid"]]
        i = number.index(row["uid"])
        assert row.get("url") == (f"http://x/{i}.jpg" if i != 8 else None)
    for row in pairs:
        assert row["text"] == texts[row["uid"]][row["language"]][row["text_index"]]
    assert len(pairs) > len(links) > 0
    assert len(records) > 0


def test_uids_are_datacomps_sorted_halves(run_stage: Any, subset: Any) -> None:
    found = np.load(export(run_stage, subset, uids=True).path / "uids.npy")
    assert found.dtype == np.dtype("u8,u8")
    uids = {row["uid"] for row in kept_rows(subset)}
    names = [uid if len(uid) == 32 else uid_of(uid) for uid in uids]
    assert {len(uid) for uid in uids} > {32}
    assert found.tolist() == sorted((int(name[:16], 16), int(name[16:], 16)) for name in names)


def test_links_name_the_address_of_each_kept_image(run_stage: Any, subset: Any) -> None:
    warnings: list[Any] = []
    send = lambda event: warnings.append(event.data["message"]) if event.type == "warning" else None  # noqa: E731
    out = export(run_stage, subset, links=True, send=send)
    rows = [row for file in sorted((out.path / "links").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    expected: dict[str, list[str]] = {}
    for row in kept_rows(subset):
        expected.setdefault(row["uid"], []).append(dict(samples())[row["uid"]][row["language"]][row["text_index"]])
    missing = expected.pop(uid_at(8), None)
    assert {row["uid"]: sorted(row["texts"]) for row in rows} == {uid: sorted(texts) for uid, texts in expected.items()}
    assert all(row["url"] == f"http://x/{row['caption'].split()[0]}.jpg" for row in rows)
    assert (missing is None) == (warnings == [])


def members_of(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


@pytest.mark.parametrize("workers", [0, 2])
def test_tars_have_the_kept_texts_and_the_images_byte_for_byte(run_stage: Any, subset: Any, workers: int) -> None:
    pool = export(run_stage, subset, name=f"w{workers}", tars=True, samples_per_shard=20, runtime={"workers": workers})
    source, view = open_dataset(pool), open_dataset(subset)
    before = {sample.uid: sample for sample in map(view.__getitem__, range(len(view)))}
    broken = before.pop(uid_at(5), None)
    assert pool.bad_samples == ({"unreadable_image": 1} if broken else {})
    after = {sample.uid: sample for sample in map(source.__getitem__, range(len(source)))}
    assert {uid: (one.image, one.texts) for uid, one in after.items()} == {
        uid: (one.image, one.texts) for uid, one in before.items()
    }
    assert pool.num_samples == len(after)
    tars = sorted((pool.path / "tars").iterdir())
    assert [tar.name for tar in tars] == [f"{n:05d}.tar" for n in range(-(-subset.num_samples // 20))]
    first = members_of(tars[0])
    names = list(first)
    assert names[0] in ("00000000000.jpg", "00000000000.png")
    assert names[1:3] == ["00000000000.txt", "00000000000.json"]
    record = json.loads(first["00000000000.json"])
    assert first["00000000000.txt"].decode() in [
        text for texts in after[record["uid"]].texts.values() for text in texts
    ]
    assert list(after) != list(before)  # shuffled
    assert record["url"] == f"http://x/{[uid_at(i) for i in range(NUMBER)].index(record['uid'])}.jpg"


def test_unsupported_image_formats_are_counted_and_mpo_is_kept(make_pool: Any, run_stage: Any, tmp_path: Path) -> None:
    formats = ["JPEG", "MPO", "ICO", "GIF"]
    files = []
    for kind in formats:
        buffer = io.BytesIO()
        more = {"save_all": True, "append_images": [Image.new("RGB", (16, 16), "red")]} if kind == "MPO" else {}
        Image.new("RGB", (16, 16)).save(buffer, kind, **more)
        files.append(buffer.getvalue())
    pool = make_pool(
        "pool", [(kind, {"en": ["a dog"]}) for kind in formats], images=dict(zip(formats, files, strict=True))
    )
    out = export(run_stage, curate(run_stage, pool, tmp_path, ["en"]), tars=True)
    source = open_dataset(out)
    found = {sample.uid: sample.image for sample in map(source.__getitem__, range(len(source)))}
    assert found == {kind: file for kind, file in zip(formats, files, strict=True) if kind != "ICO"}
    assert out.bad_samples == {"unreadable_image": 1}


def test_tars_are_the_same_bytes_again_and_after_a_kill(run_stage: Any, subset: Any) -> None:
    class KilledError(Exception):
        pass

    def kill(event: Event) -> None:
        if event.type == "progress" and event.data["done"] == 2:
            raise KilledError

    whole = export(run_stage, subset, name="whole", tars=True, samples_per_shard=20)
    with pytest.raises(KilledError):
        export(run_stage, subset, name="killed", tars=True, samples_per_shard=20, send=kill)
    folder = subset.path.parents[1] / "work" / "killed" / "tars"
    times = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    killed = export(run_stage, subset, name="killed", tars=True, samples_per_shard=20)
    assert killed.model_dump() == whole.model_dump()
    for tar in sorted((whole.path / "tars").iterdir()):
        other = killed.path / "tars" / tar.name
        assert other.read_bytes() == tar.read_bytes()
        assert other.stat().st_mtime_ns == times.get(tar.name, other.stat().st_mtime_ns)
    seeded = export(run_stage, subset, name="seeded", tars=True, samples_per_shard=20, seed=1)
    assert (seeded.path / "tars" / "00000.tar").read_bytes() != (whole.path / "tars" / "00000.tar").read_bytes()


def test_a_kill_after_the_tars_were_linked_repeats_none(run_stage: Any, subset: Any) -> None:
    whole = export(run_stage, subset, name="late", tars=True, samples_per_shard=20)
    files = {tar.name: (tar.read_bytes(), tar.stat().st_mtime_ns) for tar in (whole.path / "tars").iterdir()}
    again = export(run_stage, subset, name="late", tars=True, samples_per_shard=20)  # the artifact's folder is removed
    assert {tar.name: (tar.read_bytes(), tar.stat().st_mtime_ns) for tar in (again.path / "tars").iterdir()} == files
    assert again.model_dump() == whole.model_dump()


def test_pairs_of_a_filtered_subset_have_reasons(make_pool: Any, run_stage: Any) -> None:
    pool = make_pool("pool", samples(), shard_size=25)
    stage = FilterPool(name="filtered", pool="p", filters=[{"type": "caption_length", "min_words": 3}])
    out = export(run_stage, run_stage(stage, p=pool), pairs=True)
    rows = pq.read_table(out.path / "pairs.parquet").to_pylist()
    assert len(rows) == sum(len(texts) for _, all_texts in samples() for texts in all_texts.values())
    texts = dict(samples())
    for row in rows:
        good = len(texts[row["uid"]][row["language"]][row["text_index"]].split()) >= 3
        assert row["kept"] == good == (row["reason"] == "")
        assert row["probability"] == good
        assert row["entries"] is None


def test_captions_without_images_have_links_but_no_tars(run_stage: Any, tmp_path: Path) -> None:
    table = tmp_path / "captions.jsonl"
    rows = [
        {"uid": uid_at(i), "url": f"http://x/{i}.jpg", "text": texts["en"]} for i, (_, texts) in enumerate(samples())
    ]
    table.write_text("\n".join(map(json.dumps, rows)))
    pool = run_stage(Pairs(name="pool", path=str(table), images=False))
    subset = curate(run_stage, pool, tmp_path, ["en"])
    out = export(run_stage, subset, links=True)
    links = pq.read_table(out.path / "links").to_pylist()
    assert {row["url"] for row in links} == {f"http://x/{row['caption'].split()[0]}.jpg" for row in links}
    assert len(links) == subset.num_samples
    with pytest.raises(UserError, match="cannot write tars of 's': its pool has only captions"):
        export(run_stage, subset, tars=True)


def test_nothing_to_write_is_an_error(make_pool: Any, run_stage: Any, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="at least one of pairs, uids, links and tars"):
        ExportSubset(name="e", subset="s", pairs=False, uids=False)
    subset = curate(run_stage, make_pool("pool", samples()), tmp_path, ["en"])
    with pytest.raises(UserError, match="no sample of 's' has a URL"):
        export(run_stage, subset, links=True)
