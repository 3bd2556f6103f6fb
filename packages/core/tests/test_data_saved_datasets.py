"""Folders that Hugging Face's `datasets` saves, and text files of captions: rows, pictures, classes, damage."""

import json

import numpy as np
import pyarrow as pa
import pytest

from data_samples import context, encoded
from vfm.base import UserError
from vfm.data import BadSample, open_dataset
from vfm.data.labeled.stages import Labeled
from vfm.data.pairs.stages import Pairs
from vfm.flow.requests.datasets import import_fields

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def saved(folder, *shards, features=None, batch=2):
    """Write tables as `save_to_disk` does: streams of small batches, listed in `state.json`."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, table in zip(names, shards, strict=True):
        metadata = {"huggingface": json.dumps({"info": {"features": features or FEATURES}})}
        table = table.replace_schema_metadata(metadata)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=batch)
    listed = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": listed, "_split": None}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or FEATURES}))
    return folder


def pictures(*numbers):
    image = pa.array([{"bytes": encoded(n), "path": None} for n in numbers], IMAGE)
    labels = pa.array([n % 2 for n in numbers], pa.int64())
    return pa.table({"image": image, "caption": [f"caption {n}" for n in numbers], "label": labels})


def run(stage, root):
    stage.preflight(None)
    ctx = context(root / "artifact", stage.name)
    return stage.run(ctx), ctx


def test_rows_come_in_the_order_of_the_listed_files(tmp_path):
    folder = saved(tmp_path / "saved", pictures(3, 0, 4), pictures(5, 1))
    assert import_fields(str(folder)) == ({"kind": "data.pairs", "path": str(folder)}, None)
    pool, _ = run(Pairs(name="pool", path=str(folder)), tmp_path)
    source = open_dataset(pool)
    assert source.shard_sizes.tolist() == [3, 2]
    assert [source[n].texts["en"] for n in range(5)] == [[f"caption {n}"] for n in (3, 0, 4, 5, 1)]
    assert [source[n].image for n in range(5)] == [encoded(n) for n in (3, 0, 4, 5, 1)]
    texts = [row["text"] for shard in (0, 1) for row in source.texts_of_shard(shard).to_pylist()]
    assert texts == [f"caption {n}" for n in (3, 0, 4, 5, 1)]
    assert len(set(source.keys)) == 5


def test_class_labels_have_the_names_of_the_feature_and_splits_are_folders(tmp_path):
    for split, numbers in (("train", (0, 1, 2)), ("test", (3, 4))):
        saved(tmp_path / "saved" / split, pictures(*numbers).drop(["caption"]))
    (tmp_path / "saved/dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    made, _ = run(Labeled(name="data", path=str(tmp_path / "saved"), split="train"), tmp_path)
    source = open_dataset(made)
    assert made.class_names == ["cat", "dog"]
    assert [source[n].label for n in range(3)] == [0, 1, 0]
    fields, train = import_fields(str(tmp_path / "saved"))
    assert fields == {"kind": "data.labeled", "path": f"{tmp_path}/saved/test"}
    assert train == {"kind": "data.labeled", "path": f"{tmp_path}/saved/train"}
    with pytest.raises(
        UserError,
        match=r"a saved dataset without a split 'val'; give the folder of one, .*/saved/train or .*/saved/test$",
    ):
        Labeled(name="data", path=str(tmp_path / "saved"), split="val").preflight(None)


def test_pictures_by_path_several_captions_and_bad_rows(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/one.jpg").write_bytes(encoded(1))
    rows = [
        ({"bytes": None, "path": "one.jpg"}, ["first", "second"]),
        ({"bytes": encoded(2), "path": "kept/elsewhere.jpg"}, ["third"]),
        ({"bytes": None, "path": None}, ["no picture"]),
        ({"bytes": None, "path": "/etc/hostname"}, ["outside"]),
        ({"bytes": None, "path": "gone.jpg"}, ["gone"]),
        ({"bytes": encoded(3), "path": None}, []),
    ]
    table = pa.table({"image": pa.array([row[0] for row in rows], IMAGE), "captions": [row[1] for row in rows]})
    folder = saved(tmp_path / "saved", table)
    root = str(tmp_path / "pictures")
    pool, _ = run(Pairs(name="pool", path=str(folder), image_root=root), tmp_path)
    source = open_dataset(pool)
    assert source[0].image == encoded(1)
    assert source[0].texts == {"en": ["first", "second"]}
    assert source[1].image == encoded(2)
    reasons = []
    for number in range(2, len(source)):
        with pytest.raises(BadSample) as caught:
            source[number]
        reasons.append(caught.value.reason)
    # Parquet and Arrow files say how many rows they have, so bad ones are met when they are read.
    assert reasons == ["missing_image", "unsafe_path", "missing_image", "missing_caption"]


def test_splits_are_not_mixed_up_and_a_choice_of_rows_is_not_lost(tmp_path):
    saved(tmp_path / "saved/train", pictures(0, 1, 2))
    (tmp_path / "saved/dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    pool, _ = run(Pairs(name="pool", path=str(tmp_path / "saved")), tmp_path)
    assert len(open_dataset(pool)) == 3
    saved(tmp_path / "saved/test", pictures(3, 4))
    (tmp_path / "saved/dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(UserError, match=r"of 2 splits; give the folder of one, .*/saved/train or .*/saved/test$"):
        Pairs(name="pool", path=str(tmp_path / "saved")).preflight(None)
    state = tmp_path / "saved/test/state.json"
    chosen = {**json.loads(state.read_text()), "_indices_data_files": [{"filename": "indices.arrow"}]}
    state.write_text(json.dumps(chosen))
    with pytest.raises(UserError, match=r"saved with a choice of its rows .*: expected `flatten_indices` before"):
        Pairs(name="pool", path=str(tmp_path / "saved/test")).preflight(None)


def test_pictures_of_another_name_or_in_lists_are_not_taken_for_captions_only(tmp_path):
    table = pictures(0, 1)
    photo = saved(tmp_path / "photo", table.rename_columns(["photo", "caption", "label"]))
    with pytest.raises(
        UserError, match=r"no image column 'image' \(image_key\); the columns are photo, caption, label"
    ):
        Pairs(name="pool", path=str(photo)).preflight(None)
    pool, _ = run(Pairs(name="pool", path=str(photo), image_key="photo"), tmp_path)
    assert open_dataset(pool)[1].image == encoded(1)
    several = pa.array([[one] for one in table["image"].to_pylist()], pa.list_(IMAGE))
    folder = saved(tmp_path / "several", table.set_column(0, "image", several))
    with pytest.raises(
        UserError, match=r"column 'image': expected the bytes of one image, or {bytes, path}, got list<"
    ):
        Pairs(name="pool", path=str(folder)).preflight(None)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_captions_of_every_type_of_text_are_read(tmp_path, kind):
    table = pictures(0, 1, 2)
    folder = saved(tmp_path / "saved", table.set_column(1, "caption", table["caption"].combine_chunks().cast(kind)))
    source = open_dataset(run(Pairs(name="pool", path=str(folder)), tmp_path)[0])
    assert source[2].texts == {"en": ["caption 2"]}
    assert source.texts_of_shard(0)["text"].to_pylist() == ["caption 0", "caption 1", "caption 2"]


def test_a_saved_dataset_of_texts_is_a_table_of_captions(tmp_path):
    folder = saved(tmp_path / "saved", pa.table({"text": ["one", "two"]}), pa.table({"text": ["three"]}))
    pool, _ = run(Pairs(name="pool", path=str(folder)), tmp_path)
    source = open_dataset(pool)
    assert [row["text"] for shard in (0, 1) for row in source.texts_of_shard(shard).to_pylist()] == [
        "one",
        "two",
        "three",
    ]


def cut(folder):
    file = folder / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:-300])
    return f"{file}: not readable as Arrow: "


def mangled(folder):
    file = folder / "data-00000-of-00001.arrow"
    data = bytearray(file.read_bytes())
    place = data.index(b"caption 3")
    data[place - 64 : place] = b"\xff" * 64  # offsets of the texts
    file.write_bytes(data)
    return f"{file}: not readable as Arrow: "


def without_list(folder):
    (folder / "state.json").write_text('{"_data_files": [')
    return f"{folder}/state.json: expected JSON with a list '_data_files'"


def without_file(folder):
    (folder / "data-00000-of-00001.arrow").unlink()
    return f"{folder}/data-00000-of-00001.arrow: no such file, which state.json lists"


def outside(folder):
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    return f"{folder}/state.json: expected the names of Arrow files in _data_files, got "


@pytest.mark.parametrize("damage", [cut, mangled, without_list, without_file, outside])
def test_a_damaged_folder_is_one_line(tmp_path, damage):
    folder = saved(tmp_path / "saved", pictures(3, 4, 5))
    line = damage(folder)
    with pytest.raises(UserError) as caught:
        run(Pairs(name="pool", path=str(folder)), tmp_path)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_text_file_has_a_caption_in_each_line(tmp_path):
    file = tmp_path / "captions.txt"
    file.write_bytes(b"a red boat\n\n  two dogs, one cat \r\nbroken \xff\nlast")
    assert import_fields(str(file)) == ({"kind": "data.pairs", "path": str(file)}, None)
    pool, _ = run(Pairs(name="pool", path=str(file)), tmp_path)
    assert pool.languages == ["en"]
    bad = []
    rows = open_dataset(pool).texts_of_shard(0, lambda reason, where: bad.append(reason)).to_pylist()
    assert [row["text"] for row in rows] == ["a red boat", "two dogs, one cat", "last"]
    assert bad == ["wrong_encoding"]


def test_a_text_file_of_paths_is_still_a_list_of_pictures(tmp_path):
    (tmp_path / "list.txt").write_text("one.jpg\ntwo.jpg\n")
    with pytest.raises(UserError, match="no column 'caption'"):
        Pairs(name="pool", path=str(tmp_path / "list.txt")).preflight(None)


def test_the_columns_of_keys_and_addresses_are_read(tmp_path):
    columns = {"key": ["a", "b", "c"], "url": [f"https://example.org/{n}.jpg" for n in range(3)]}
    tables = [pictures(0, 1, 2), pictures(3, 4, 5)]
    tables = [table.append_column("key", [columns["key"]]).append_column("url", [columns["url"]]) for table in tables]
    source = open_dataset(run(Pairs(name="pool", path=str(saved(tmp_path / "saved", *tables))), tmp_path)[0])
    assert len(set(source.keys)) == 6, "keys repeat in the second file"
    assert source.index.open(1).urls(np.arange(3)).to_pylist() == columns["url"]
