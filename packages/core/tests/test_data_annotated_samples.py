"""Samples with objects in their own record, masks as run lengths, and the committed real pictures where they are."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as oracle

from annotated_world import jpeg, read, run
from vfm.base import UserError
from vfm.data import write_tar
from vfm.data.annotated.masks import (
    as_rle,
    decode_mask,
    encode_mask,
    encode_segmentation,
    mask_area,
    mask_box,
)
from vfm.data.annotated.records import BadAnnotation
from vfm.data.annotated.source import AnnotatedSource
from vfm.data.annotated.stages import Annotated
from vfm.data.synthetic.stages import ShapesScenes
from vfm.data.synthetic.world import World

SHARED = Path(__file__).parents[4] / "shared/data"
OBJECT = {"bbox": [2, 1, 6, 4], "category": 1}


def tar(path: Path, *records: Any) -> Path:
    rows = [(f"{n:03d}", {"jpg": jpeg(), "json": json.dumps(one).encode()}) for n, one in enumerate(records)]
    rows[0][1]["json"] = rows[0][1]["json"] if records[0] is not None else b"{broken"
    write_tar(path, rows)
    return path


@pytest.mark.parametrize(
    "record",
    [
        {"annotations": [{"bbox": [2, 1, 6, 4], "category_id": 1}, {"bbox": [0, 0, 2, 2], "category": "0"}]},
        {"objects": {"bbox": [[2, 1, 6, 4], [0, 0, 2, 2]], "category": [1, 0], "area": [24, 4]}},
    ],
)
def test_tars_with_objects_in_json(tmp_path: Path, record: dict[str, Any]) -> None:
    path = tar(tmp_path / "a.tar", {"annotations": [{"bbox": [0, 0, 2, 2], "category": 1}]}, record)
    data = read(tmp_path, path, names=["0", "1"])
    objects = AnnotatedSource(data).objects(1)
    assert (data.format, data.class_names, data.num_samples) == ("webdataset", ["0", "1"], 2)
    assert (objects.labels.tolist(), objects.boxes.tolist()) == ([1, 0], [[2, 1, 8, 5], [0, 0, 2, 2]])


def test_keys_that_repeat_are_the_same_in_the_images_and_in_their_table(tmp_path: Path) -> None:
    for name in "ab":
        tar(tmp_path / f"{name}.tar", {"objects": [OBJECT]}, {"objects": [OBJECT]})
    data = AnnotatedSource(read(tmp_path, str(tmp_path / "{a,b}.tar")))
    assert data.keys == ["a/000", "a/001", "b/000", "b/001"]
    assert [data.source[number].key for number in range(4)] == data.keys


def test_a_broken_record_makes_a_bad_sample(tmp_path: Path) -> None:
    data = read(tmp_path, tar(tmp_path / "a.tar", None, {"objects": [OBJECT]}))
    assert (data.num_samples, data.num_objects, data.bad_samples) == (1, 1, {"broken_json": 1})


def test_numbers_that_no_float_holds_are_counted(tmp_path: Path) -> None:
    wrong = [{**OBJECT, "bbox": [10**400, 1, 5, 5]}, {**OBJECT, "segmentation": [[0, 0, 10**30, 0, 5, 5]]}]
    data = read(tmp_path, tar(tmp_path / "a.tar", {"objects": [{**OBJECT, "area": 10**400}, *wrong]}))
    assert data.bad_annotations == {"bad_box": 1, "bad_polygon": 1}
    assert AnnotatedSource(data).objects(0).areas.tolist() == [24]


def test_a_tar_with_fewer_samples_than_its_known_count_has_bad_samples(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"objects": [OBJECT]}, {"objects": [OBJECT]})
    (tmp_path / "a_stats.json").write_text(json.dumps({"successes": 3}))
    data = read(tmp_path, path)
    assert (data.num_samples, data.num_objects, data.bad_samples) == (2, 2, {"truncated_shard": 1})


def test_classes_of_negatives_are_a_list(tmp_path: Path) -> None:
    records = [{"objects": [OBJECT], "neg_category_ids": 1}, {"objects": [OBJECT], "neg_category_ids": [0, [1]]}]
    data = read(tmp_path, tar(tmp_path / "a.tar", *records))
    assert AnnotatedSource(data).tables.column("negatives") == [[], [0]]


def test_a_damaged_row_group_is_one_line(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": jpeg(), "path": "a.jpg"}, "objects": {"bbox": [[0, 0, 2, 2]], "category": [1]}}]
    file = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file, compression="zstd", use_dictionary=False)
    column = pq.ParquetFile(file).metadata.row_group(0).column(2)
    data = bytearray(file.read_bytes())
    data[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = bytes(
        column.total_compressed_size
    )
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"train\.parquet: not readable as Parquet"):
        read(tmp_path, file)


def test_a_box_that_is_not_finite_is_counted(tmp_path: Path) -> None:
    records = {"objects": [OBJECT, {**OBJECT, "bbox": [2, 1, float("nan"), 4]}, {**OBJECT, "bbox": [2, 1]}]}
    data = read(tmp_path, tar(tmp_path / "a.tar", records))
    assert (data.num_objects, data.bad_annotations) == (1, {"bad_box": 2})


@pytest.mark.parametrize(
    ("form", "numbers"), [("xywh", [2, 1, 6, 4]), ("xyxy", [2, 1, 8, 5]), ("cxcywh", [5, 3, 6, 4])]
)
def test_hugging_face_tables_name_their_classes(tmp_path: Path, form: str, numbers: list[int]) -> None:
    rows = [
        {"image": {"bytes": jpeg(), "path": "a.jpg"}, "image_id": 12, "objects": {"bbox": [numbers], "category": [1]}},
        {"image": {"bytes": jpeg(), "path": "b.jpg"}, "image_id": 30, "objects": {"bbox": [], "category": []}},
    ]
    label = {"feature": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "_type": "Sequence"}
    features = {"info": {"features": {"image": {"_type": "Image"}, "objects": {"category": label}}}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "train.parquet")
    data = read(tmp_path, tmp_path / "train.parquet", box_format=form)
    source = AnnotatedSource(data)
    assert (data.format, data.class_names, source.image_ids) == ("hugging_face", ["cat", "dog"], [12, 30])
    assert (source.objects(0).labels.tolist(), source.objects(0).boxes.tolist()) == ([1], [[2, 1, 8, 5]])


def test_tars_without_objects_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no objects found; expected `annotations` or `objects`"):
        read(tmp_path, tar(tmp_path / "a.tar", {"caption": "nothing"}))


def test_the_made_scenes_are_read_back_as_any_tar(tmp_path: Path) -> None:
    world = World(image_size=48)
    made = run(ShapesScenes(kind="shapes.scenes", name="scenes", world=world, num_samples=12), tmp_path / "made")
    names = made.class_names
    stage = Annotated(kind="data.annotated", name="again", path=str(made.path / "00000.tar"), names=names)
    again = run(stage, tmp_path / "again")
    one, other = AnnotatedSource(made), AnnotatedSource(again)
    assert again.labels == ["boxes", "masks"]
    for number in range(12):
        assert one.objects(number).boxes.tolist() == other.objects(number).boxes.tolist()
        assert one.objects(number).counts == other.objects(number).counts
        assert one.objects(number).ignored.tolist() == other.objects(number).ignored.tolist()


@settings(max_examples=60)
@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=17)))
def test_masks_equal_pycocotools(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    height, width = mask.shape
    counts = encode_mask(mask)
    assert counts == oracle.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    assert (decode_mask(counts, height, width) == mask).all()
    assert (
        encode_segmentation({**as_rle(counts, height, width), "counts": counts.decode()}, height, width, "") == counts
    )
    assert mask_area(counts, height, width) == mask.sum()
    if mask.any():
        rows, columns = np.nonzero(mask)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert mask_box(counts, height, width) == box


@settings(max_examples=200)
@given(st.binary(max_size=12))
def test_no_run_length_string_reaches_beyond_its_image(counts: bytes) -> None:
    # faster-coco-eval and pycocotools trust the runs; here a wrong sum is a bad annotation.
    try:
        encoded = encode_segmentation({"size": [4, 5], "counts": counts}, 4, 5, "here")
    except BadAnnotation:
        return
    assert decode_mask(encoded, 4, 5).shape == (4, 5)


@pytest.fixture(scope="module")
def coco128(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (SHARED / "coco128-train.tar").exists():
        pytest.skip("the real pictures are not here")
    folder = tmp_path_factory.mktemp("coco128")
    with tarfile.open(SHARED / "coco128-train.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder / "coco128"


def test_boxes_and_segments_of_real_pictures(coco128: Path, tmp_path: Path) -> None:
    names = str(coco128 / "box_classes.yaml")
    boxes = read(tmp_path / "boxes", coco128 / "images", annotations=str(coco128 / "boxes"), names=names)
    assert (boxes.format, boxes.num_samples, boxes.num_objects, boxes.bad_annotations) == ("yolo", 128, 929, {})
    names = str(coco128 / "semantic_classes.yaml")
    maps = read(tmp_path / "maps", coco128 / "images", annotations=str(coco128 / "semantic"), names=names)
    file = coco128 / "panoptic/panoptic_train2017.json"
    segments = read(tmp_path / "segments", coco128 / "images", annotations=str(file))
    assert (maps.num_samples, segments.num_samples, segments.bad_annotations) == (100, 100, {})
    # The semantic maps were made from the segments: COCO's panoptic ids, 0 where there is none.
    one, other = AnnotatedSource(segments), AnnotatedSource(maps)
    ids, values = np.array([*segments.class_ids, 0]), np.array([*maps.class_ids, 0])
    for number in range(0, 100, 25):
        same = other.keys.index(one.keys[number])
        assert (ids[one.semantic(number)] == values[other.semantic(same)]).all()


def test_lvis_without_its_pictures(tmp_path: Path) -> None:
    path = SHARED / "lvis_val_100.json.gz"
    if not path.exists():
        pytest.skip("LVIS' annotations are not here")
    data = read(tmp_path, tmp_path, annotations=str(path), images=False)
    source = AnnotatedSource(data)
    assert (data.format, data.num_samples, data.num_objects, len(data.class_names)) == ("lvis", 100, 977, 1230)
    assert data.bad_annotations == {}
    assert sum(map(len, source.tables.column("negatives"))) > 100
