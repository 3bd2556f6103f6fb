"""Damaged files of a store: what cannot be read is one line with the file's name, never another error."""

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from data_samples import encoded, make_pool
from vfm.base import UserError
from vfm.data import (
    SUBSET_INDEX,
    BadSample,
    Choice,
    DatasetSpec,
    load_choices,
    open_dataset,
    read_tags,
    subset_schema,
    write_subset,
)
from vfm.data.index.index import BadRow, write_index
from vfm.data.labeled.tags import TAGS_FILE, write_tags
from vfm.data.loading.sample_cache import CachedTensors, CacheWriter
from vfm.data.pairs.stages import Pairs
from vfm.data.tables.image_list import ImageEntry, write_image_lists
from vfm.eval.compare.curves import TrainingCurves
from vfm.flow.execution.execution import read_step
from vfm.flow.records.manifest import EventNotes
from vfm.interfaces import CuratedSubset, SampleCache, Stage, TaggedImages
from vfm.storage.integrity import seal
from vfm.storage.store_files import (
    naming,
    open_parquet_file,
    read_config,
    read_json,
    read_json_lines,
    read_npy,
    read_parquet,
    read_record,
    read_safetensors,
)

Read = Callable[[], object]
JSONS = [b"", b"[]", b"3", b"{}", b"null", b"{", b"\xff", b'""', b"[[" * 50_000, b'{"step": {}}', b"[[1]]", b"[1, 2]"]


def whole_record(data: bytes) -> dict[str, object]:
    """Return the object of a JSON file, empty for another value or several."""
    with suppress(ValueError):
        record = json.loads(data)
        return record if isinstance(record, dict) else {}
    return {}


def mutations(data: bytes, *, as_json: bool) -> Iterator[bytes]:
    """Yield damaged forms of a file: cut off, replaced, with flipped bits, with destroyed ranges."""
    rng = random.Random(0)
    yield from JSONS if as_json else JSONS[:3]
    for cut in (1, len(data) // 3, len(data) - 1):
        yield data[:cut]
    for _ in range(12):
        changed = bytearray(data)
        for _ in range(3):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield bytes(changed)
    for _ in range(4):
        place = rng.randrange(len(data))
        yield data[:place] + rng.randbytes(20) + data[place + 20 :]
    if as_json and (record := whole_record(data)):
        for key in record:
            for value in (None, 3, [], {"x": 1}, "x"):
                yield json.dumps({**record, key: value}).encode()
            yield json.dumps({name: value for name, value in record.items() if name != key}).encode()


def images(folder: Path) -> tuple[list[Path], Read]:
    """Return the files of an index of images, and a function that reads all that they lead to."""
    for n in range(4):
        (folder / f"{n}.png").write_bytes(encoded(n))
    entries = [ImageEntry(f"{n}", f"{folder}/{n}.png", {"en": [f"caption {n}"]}) for n in range(4)]
    spec = DatasetSpec(texts={"en": "txt"})
    shards = list(write_image_lists(folder / "pool", entries, spec))
    write_index(folder / "pool", shards, spec, bad_rows=[BadRow(0, 1, "missing_image", "x")])
    from vfm.interfaces import Pool

    Pool.create(folder / "pool", num_samples=3)

    def read() -> None:
        source = open_dataset(Pool.load(folder / "pool"))
        for index in range(min(len(source), 10)):
            with suppress(BadSample):
                source[index]

    files = ["shards.parquet", "index.json", "bad_samples.parquet", "artifact.json"]
    return [folder / "pool" / name for name in files], read


def subset(folder: Path) -> tuple[list[Path], Read]:
    pool = make_pool(folder / "pool", [4, 4])
    columns = {"uid": [f"{n}" for n in range(8)], "language": ["en"] * 8, "text_index": [0] * 8}
    places = {"shard": [n // 4 for n in range(8)], "row": [n % 4 for n in range(8)]}
    rows = pa.table({**places, **columns, "probability": [1.0] * 8, "kept": [True] * 8}).cast(subset_schema())
    (folder / "subset").mkdir()
    write_subset(folder / "subset", rows)
    CuratedSubset.create(folder / "subset", pool=pool.reference(folder / "subset"), num_samples=8)

    def read() -> None:
        source = open_dataset(CuratedSubset.load(folder / "subset"))
        for shard in range(len(source.shard_sizes)):
            source.view.shard(shard)

    return [folder / "subset" / name for name in (SUBSET_INDEX, "subset/00000001.parquet", "artifact.json")], read


def choices(folder: Path) -> tuple[list[Path], Read]:
    from vfm.data import write_choices

    made = write_choices(folder / "c", [Choice(f"{n}", "p", [encoded(n)], ["x", "y"], [0, -1]) for n in range(5)])
    return [folder / "c/choices.parquet"], lambda: list(load_choices(made))


def tags(folder: Path) -> tuple[list[Path], Read]:
    (folder / "t").mkdir()
    write_tags(folder / "t" / TAGS_FILE, [[0], [1, 2], []])
    made = TaggedImages.create(folder / "t", data="x", num_samples=3, class_names=["a", "b", "c"], num_images=[1, 1, 1])
    return [folder / "t" / TAGS_FILE], lambda: read_tags(made)


def tensors(folder: Path) -> tuple[list[Path], Read]:
    writer = CacheWriter(folder / "w", num_samples=4, num_crops=1, shape=(3,), dtype="fp32")
    for samples in writer.plan(4):
        writer.write(samples, {n: np.zeros((1, 3), np.float32) for n in (0, 1, 2)}, [("unreadable_image", "x:3")])
    (folder / "artifact").mkdir()
    facts = {"data": "../pool", "producer": "a test", "crop_scale": (0.2, 1.0), "flip": 0.5, "seed": 0}
    cache = SampleCache.load(writer.publish(folder / "artifact", **facts).path)

    def read() -> None:
        opened = CachedTensors(cache)
        for index in range(4):
            with suppress(BadSample):
                opened[index, 0]

    return [*(folder / "artifact").rglob("*.npy"), *(folder / "artifact").rglob("*.bad.json")], read


def step(folder: Path) -> tuple[list[Path], Read]:
    stage = Pairs(kind="data.pairs", name="pool", path="x.tar")
    record = {
        "stage": stage.model_dump(mode="json"), "given": stage.given_settings(), "identity": "x",
        "inputs": {"a": "b"}, "folders": {"a": "c"},
        "fingerprints": {"x.tar": "y"}, "slot": {"root": "store", "name": "data.pairs-01234567"},
    }  # fmt: skip
    (folder / "step.json").write_text(json.dumps(record))
    known: dict[str, type[Stage]] = {"data.pairs": Pairs}
    return [folder / "step.json"], lambda: read_step(folder, known)


def curves(folder: Path) -> tuple[list[Path], Read]:
    lines = [{"split": "train", "step": 1, "samples": 8, "train/loss": 1.0}, {"split": "val", "samples": 8, "val/x": 1}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [folder / "metrics.jsonl"], lambda: TrainingCurves.read(folder / "metrics.jsonl")


def refusal(read: Read) -> str | None:
    try:
        read()
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("make", [images, subset, choices, tags, tensors, step, curves], ids=lambda make: make.__name__)
def test_damaged_files_are_read_or_named(tmp_path, make):
    files, read = make(tmp_path)
    read()
    assert files
    refused = 0
    for file in files:
        whole = file.read_bytes()
        for damaged in mutations(whole, as_json=file.suffix in (".json", ".jsonl")):
            if damaged == whole:
                continue
            file.write_bytes(damaged)
            if (line := refusal(read)) is not None:
                refused += 1
                assert "\n" not in line
                assert file.name in line or file.parent.name in line
        file.unlink()
        assert file.name == "bad_samples.parquet" or refusal(read) is not None
        file.write_bytes(whole)
    assert refused > 8
    read()


def test_damaged_offsets_of_a_tar_are_found_again(tmp_path):
    source = open_dataset(make_pool(tmp_path / "pool", [3]))
    assert source[0].image == encoded(0)
    (cache,) = (tmp_path / "pool/offsets").glob("*.offsets")
    whole = cache.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"true", whole.index(b"complete")) + 3] ^= 1  # `complete: trud` would call the tar truncated
    for damaged in (b"", whole[:4], whole[:-30], flipped):
        cache.write_bytes(damaged)
        assert open_dataset(make_pool(tmp_path / "pool", [3]))[2].image == encoded(2)
        assert cache.read_bytes() == whole


def test_damaged_notes_of_a_resumed_stage_are_a_warning(tmp_path):
    wrong = {"numbers": {"a": 1}, "warnings": 3, "bad_examples": {}}
    for damaged in (b"", b"3", b"{}", b"[1]", b'[{"a": 1}, null]', seal(wrong)):
        (tmp_path / "notes.json").write_bytes(damaged)
        notes = EventNotes(tmp_path / "notes.json")
        assert notes.numbers == {}
        (warning,) = notes.warnings
        assert re.search(r"notes\.json: (not readable|expected)", warning)


READERS = [
    (read_json, "JSON"),
    (read_record, "JSON"),
    (lambda file: read_config(file, DatasetSpec), "JSON"),
    (read_json_lines, "JSON"),
    (read_parquet, "Parquet"),
    (open_parquet_file, "Parquet"),
    (read_npy, "npy"),
    (read_safetensors, "safetensors"),
]


@pytest.mark.parametrize(("read", "form"), READERS)
def test_every_reader_names_a_missing_a_damaged_and_an_unreadable_file(tmp_path, read, form):
    file = tmp_path / "x.bin"
    with pytest.raises(UserError, match=r"x\.bin: no such file$"):
        read(file)
    file.write_bytes(b"\x93\xff\x00 no such format")
    with pytest.raises(UserError, match=rf"x\.bin.*: not readable as {form}"):
        read(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=rf"x\.bin: not readable as {form}"):
        read(file)


def test_readers_return_what_was_written(tmp_path):
    (tmp_path / "x.json").write_text('{"images": false}')
    assert read_record(tmp_path / "x.json", "images") == {"images": False}
    assert read_config(tmp_path / "x.json", DatasetSpec) == DatasetSpec(images=False)
    with pytest.raises(UserError, match=r"x\.json: expected 'a', 'images'; 'a' is missing"):
        read_record(tmp_path / "x.json", "a", "images")
    (tmp_path / "bad.json").write_text('{"images": "maybe"}')
    with pytest.raises(UserError, match=r"bad\.json: images: expected"):
        read_config(tmp_path / "bad.json", DatasetSpec)
    np.save(tmp_path / "x.npy", np.arange(3))
    assert read_npy(tmp_path / "x.npy", mapped=True).tolist() == [0, 1, 2]
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert read_safetensors(tmp_path / "x.safetensors")["a"].tolist() == [1, 1]
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet", write_page_checksum=True)
    assert read_parquet(tmp_path / "x.parquet", ["a"]).to_pylist() == [{"a": 1}]
    with pytest.raises(UserError, match=r"x\.parquet: expected the columns a, b; 'b' is missing"):
        read_parquet(tmp_path / "x.parquet", ["a", "b"])


def test_a_flipped_bit_in_a_page_with_a_checksum_is_found(tmp_path):
    pq.write_table(pa.table({"a": list(range(1000))}), tmp_path / "x.parquet", write_page_checksum=True)
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    data[400] ^= 1
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.parquet: not readable as Parquet: .*"):
        read_parquet(tmp_path / "x.parquet")


def test_a_line_about_the_content_of_a_file_names_the_file_once():
    for error, line in (
        (UserError("size: too large"), "a/x.json: size: too large"),
        (UserError("a/x.json: size: too large"), "a/x.json: size: too large"),
        (KeyError("size"), "a/x.json: not readable as sizes: 'size' is missing"),
    ):
        with pytest.raises(UserError, match=f"^{line}$"), naming("a/x.json", "sizes"):
            raise error
