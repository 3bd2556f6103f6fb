"""Pitfalls of annotated data, each met on purpose: what is read is right, and what is broken is counted by reason."""

from __future__ import annotations

import gzip
import json
import math
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from annotated_world import coco, jpeg, read, run, write, write_map
from vfm.base import UserError
from vfm.data import open_dataset
from vfm.data.annotated.coco import stream
from vfm.data.annotated.source import AnnotatedSource
from vfm.data.annotated.stages import Annotated
from vfm.interfaces import Preflight

BOX = {"bbox": [2, 1, 6, 4], "area": 11.5}
SQUARE = [[2.0, 1.0, 8.0, 1.0, 8.0, 5.0, 2.0, 5.0]]


def test_ids_with_holes_become_labels(tmp_path: Path) -> None:
    data = read(tmp_path, coco(tmp_path / "coco", [BOX, {**BOX, "category_id": 90}]))
    objects = AnnotatedSource(data).objects(0)
    assert (data.format, data.class_names, data.class_ids) == ("coco", ["cat", "dog"], [3, 90])
    assert objects.labels.tolist() == [0, 1]
    assert objects.boxes.tolist() == [[2, 1, 8, 5]] * 2


def test_area_is_the_sources_and_else_the_masks(tmp_path: Path) -> None:
    plain = {"bbox": [0, 0, 20, 10], "segmentation": SQUARE}
    data = read(tmp_path, coco(tmp_path / "coco", [{**plain, "area": 7.25}, plain, {"bbox": [2, 1, 6, 4]}]))
    assert AnnotatedSource(data).objects(0).areas.tolist() == [7.25, 24, 24]


def test_polygons_runs_and_strings_are_one_mask(tmp_path: Path) -> None:
    mask = np.zeros((10, 20), dtype=bool)
    mask[1:5, 2:8] = True
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges.tolist(), 200]).tolist()
    first = read(tmp_path / "a", coco(tmp_path / "coco", [{**BOX, "segmentation": SQUARE}]))
    text = AnnotatedSource(first).objects(0).counts[0]
    assert text is not None
    others = [{"size": [10, 20], "counts": runs}, {"size": [10, 20], "counts": text.decode()}]
    data = read(tmp_path / "b", coco(tmp_path / "coco", [{**BOX, "segmentation": one} for one in (SQUARE, *others)]))
    masks = AnnotatedSource(data).masks(0)
    assert len(masks) == 3
    assert (masks == mask).all()


def test_a_worker_process_gets_the_address_and_not_the_tables(tmp_path: Path) -> None:
    source = AnnotatedSource(read(tmp_path, coco(tmp_path / "coco", [BOX] * 200)))
    pickled = pickle.dumps(source)
    assert len(pickled) < 3000
    assert len(pickle.loads(pickled).objects(0)) == len(source.objects(0)) == 200


def test_crowds_keep_their_flag(tmp_path: Path) -> None:
    data = read(tmp_path, coco(tmp_path / "coco", [{**BOX, "iscrowd": 1}, BOX]))
    assert AnnotatedSource(data).objects(0).crowd.tolist() == [True, False]


def test_boxes_are_clipped_to_the_picture(tmp_path: Path) -> None:
    data = read(tmp_path, coco(tmp_path / "coco", [{"bbox": [-3, 4, 30, 20]}]))
    assert AnnotatedSource(data).objects(0).boxes.tolist() == [[0, 4, 20, 10]]


@pytest.mark.parametrize(("keep", "keys"), [(True, ["1", "2", "3"]), (False, ["2"])])
def test_pictures_without_objects_are_kept_for_tests_and_dropped_on_request(
    tmp_path: Path, keep: bool, keys: list[str]
) -> None:
    data = read(tmp_path, coco(tmp_path / "coco", [{**BOX, "image_id": 2}], pictures=3), keep_empty=keep)
    source = AnnotatedSource(data)
    assert source.keys == keys == open_dataset(data).keys
    assert [len(source.objects(n)) for n in range(len(source))] == [int(key == "2") for key in keys]


BROKEN: dict[str, dict[str, Any]] = {
    "bad_box": {"bbox": [2, 1, -6, 4]},
    "bad_box ": {"bbox": [2, 1, 6, 0]},
    "bad_box  ": {"bbox": [2, 1]},
    "box_outside_image": {"bbox": [40, 1, 6, 4]},
    "bad_polygon": {"bbox": [2, 1, 6, 4], "segmentation": [[1.0, 1.0, 5.0, 5.0]]},
    "bad_mask": {"bbox": [2, 1, 6, 4], "segmentation": {"size": [10, 20], "counts": [10, 30]}},
    "bad_mask ": {"bbox": [2, 1, 6, 4], "segmentation": {"size": [10, 20], "counts": "kh26j10000000"}},
    "bad_mask  ": {"bbox": [2, 1, 6, 4], "segmentation": {"size": [20, 10], "counts": [100, 100]}},
    "unknown_class": {"bbox": [2, 1, 6, 4], "category_id": 4},
    "unknown_image": {"bbox": [2, 1, 6, 4], "image_id": 77},
    "duplicate_id": {"bbox": [2, 1, 6, 4], "id": 1},
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_annotations_are_skipped_and_counted_by_reason(tmp_path: Path, reason: str) -> None:
    data = read(tmp_path, coco(tmp_path / "coco", [BOX, BROKEN[reason], BOX]))
    assert data.bad_annotations == {reason.strip(): 1}
    assert len(AnnotatedSource(data).objects(0)) == 2


def test_too_many_broken_annotations_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"annotations that cannot be used: 1 \(max_bad_fraction is 0.05\): 1 bad_box"):
        read(tmp_path, coco(tmp_path / "coco", [BOX, BROKEN["bad_box"]]), max_bad_fraction=0.05)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_json_does_not_have_is_a_bad_box(tmp_path: Path, number: float) -> None:
    data = read(tmp_path, coco(tmp_path / "coco", [BOX, {"bbox": [2, 1, number, 4]}]))
    assert data.bad_annotations == {"bad_box": 1}


def test_lists_nested_a_hundred_thousand_times_are_one_line(tmp_path: Path) -> None:
    folder = coco(tmp_path / "coco", [BOX])
    file = folder / "annotations/instances_train.json"
    file.write_text('{"categories": ' + 100_000 * "[" + 100_000 * "]" + "}")
    with pytest.raises(UserError, match=r"instances_train\.json: not readable as JSON: nested more than 1,000 times"):
        read(tmp_path, folder)


def test_two_pictures_with_one_id_are_an_error(tmp_path: Path) -> None:
    one = {"id": 1, "file_name": "1.jpg", "width": 20, "height": 10}
    with pytest.raises(UserError, match=r"instances_train\.json: 2 images have the id 1"):
        read(tmp_path, coco(tmp_path / "coco", [BOX], images=[one, {**one, "file_name": "2.jpg"}]))


def test_classes_are_chosen_and_ordered_by_name(tmp_path: Path) -> None:
    folder = coco(tmp_path / "coco", [BOX, {**BOX, "category_id": 90}])
    data = read(tmp_path, folder, classes=["dog"])
    assert (data.class_names, data.class_ids, data.num_objects, data.bad_annotations) == (["dog"], [90], 1, {})
    wrong = Annotated(kind="data.annotated", name="set", path=str(folder), classes=["dgo"])
    with pytest.raises(UserError, match="no class 'dgo'; did you mean 'dog'"):
        wrong.preflight(Preflight({}, {}))


@pytest.mark.parametrize(("declared", "upright"), [((10, 20), True), ((20, 10), False)])
def test_an_exif_turn_applies_where_the_annotations_have_it(
    tmp_path: Path, declared: tuple[int, int], upright: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    width, height = declared
    listed = [{"id": 1, "file_name": "1.jpg", "width": width, "height": height}]
    folder = coco(tmp_path / "coco", [{"bbox": [0, 0, width, height]}], images=listed)
    write(folder / "train/1.jpg", jpeg(20, 10, exif=exif))
    source = AnnotatedSource(read(tmp_path, folder))
    assert source.image(0).size == source.sizes[0] == declared
    assert source.objects(0).boxes.tolist() == [[0, 0, width, height]]
    assert source.tables.column("upright") == [upright]


def test_a_picture_of_another_size_than_declared_is_left_out(tmp_path: Path) -> None:
    folder = coco(tmp_path / "coco", [BOX, {**BOX, "image_id": 2}])
    write(folder / "train/1.jpg", jpeg(31, 17))
    data = read(tmp_path, folder)
    assert data.bad_samples == {"wrong_size": 1}
    assert AnnotatedSource(data).keys == ["2"]
    assert len(AnnotatedSource(data).objects(0)) == 1


def lvis_image(**more: Any) -> dict[str, Any]:
    lists = {"neg_category_ids": [90], "not_exhaustive_category_ids": [3]}
    return {"id": 1, "width": 20, "height": 10, **lists, **more}


@pytest.mark.parametrize(
    "named",
    [
        {"file_name": "COCO_val2014_000000000001.jpg", "coco_url": "http://images.example/val2017/1.jpg"},  # v0.5
        {"coco_url": "http://images.example/val2017/1.jpg"},  # v1
    ],
)
def test_lvis_pictures_are_found_by_their_address(tmp_path: Path, named: dict[str, str]) -> None:
    frequent = [{"id": 3, "name": "cat", "frequency": "r"}, {"id": 90, "name": "dog", "frequency": "f"}]
    folder = coco(tmp_path / "coco", [BOX], images=[lvis_image(**named)], categories=frequent)
    write(folder / "val2017/1.jpg", jpeg())
    data = read(tmp_path, folder)
    source = AnnotatedSource(data)
    assert (data.format, data.federated, data.frequency) == ("lvis", True, ["r", "f"])
    assert (source.tables.column("negatives"), source.tables.column("not_exhaustive")) == ([[1]], [[0]])


def test_objects365_pictures_are_found_below_their_patch(tmp_path: Path) -> None:
    listed = [{"id": 1, "width": 20, "height": 10, "file_name": "images/v1/patch8/objects365_v1_01.jpg"}]
    folder = coco(tmp_path / "coco", [{**BOX, "isfake": 0}], images=listed)
    write(folder / "train/patch8/objects365_v1_01.jpg", jpeg())
    data = read(tmp_path, folder)
    assert (data.format, data.num_objects, data.labels) == ("objects365", 1, ["boxes"])


def test_missing_pictures_are_one_line(tmp_path: Path) -> None:
    folder = coco(tmp_path / "coco", [BOX], images=[{"id": 1, "file_name": "a.jpg", "width": 20, "height": 10}])
    with pytest.raises(UserError, match=r"none of the first images is in .*a\.jpg"):
        read(tmp_path, folder)


def test_labels_alone_need_no_pictures(tmp_path: Path) -> None:
    folder = coco(tmp_path / "coco", [BOX], images=[{"id": 1, "file_name": "a.jpg", "width": 20, "height": 10}])
    data = read(tmp_path, folder, images=False)
    source = AnnotatedSource(data)
    assert (len(source), source.image_ids, len(source.objects(0))) == (1, [1], 1)
    with pytest.raises(UserError, match="made with images: false"):
        source.image(0)


def peak_of(path: Path) -> tuple[int, int]:
    """Return the number of annotations, and the largest memory while they are read."""
    tracemalloc.start()
    count = sum(1 for _ in stream(str(path), "annotations"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return count, peak


def test_a_json_takes_no_more_memory_for_more_annotations(tmp_path: Path) -> None:
    one = json.dumps({"id": 1, "image_id": 1, "segmentation": [[1.5] * 100], "bbox": [1, 2, 3, 4]})
    write(tmp_path / "small.json", '{"annotations": [' + ", ".join([one] * 500) + '], "images": []}')
    write(tmp_path / "large.json", '{"annotations": [' + ", ".join([one] * 3000) + '], "images": []}')
    (few, small), (many, large) = peak_of(tmp_path / "small.json"), peak_of(tmp_path / "large.json")
    assert (few, many) == (500, 3000)
    assert large < 1.5 * small


def test_truncated_json_is_one_line(tmp_path: Path) -> None:
    folder = coco(tmp_path / "coco", [BOX])
    file = folder / "annotations/instances_train.json"
    write(file, file.read_bytes()[:150])
    with pytest.raises(UserError, match="not readable as JSON"):
        read(tmp_path, folder)
    packed = write(tmp_path / "packed.json.gz", gzip.compress(b'{"annotations": [{"id"')[:-12])
    with pytest.raises(UserError, match="not readable as JSON"):
        read(tmp_path / "packed", folder, annotations=str(packed))


PANOPTIC = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 7, "name": "sky", "isthing": 0}]


def test_panoptic_ids_are_colours(tmp_path: Path) -> None:
    ids = np.zeros((10, 20), dtype=np.int64)
    ids[:5], ids[5:, :10], ids[9, 19] = 5 + 256 * 3 + 65536 * 2, 9, 300
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    write(tmp_path / "pan/train/1.jpg", jpeg())
    (tmp_path / "pan/annotations/panoptic_train").mkdir(parents=True)
    Image.fromarray(colours).save(tmp_path / "pan/annotations/panoptic_train/1.png")
    segments = [
        {"id": 131845, "category_id": 7, "iscrowd": 0},
        {"id": 9, "category_id": 1, "iscrowd": 1},
        {"id": 4, "category_id": 1, "iscrowd": 0},  # in no pixel
    ]
    record = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 20, "height": 10}],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
        "categories": PANOPTIC,
    }
    write(tmp_path / "pan/annotations/panoptic_train.json", json.dumps(record))
    data = read(tmp_path, tmp_path / "pan")
    source = AnnotatedSource(data)
    painted, objects = source.panoptic(0)
    assert (data.format, data.things) == ("coco_panoptic", [True, False])
    assert data.bad_annotations == {"bad_mask": 1, "unknown_class": 1}  # the absent segment, and the undescribed pixel
    assert (objects.labels.tolist(), objects.crowd.tolist()) == ([1, 0], [False, True])
    expected = np.full((10, 20), -1)
    expected[:5], expected[5:, :10] = 0, 1
    assert (painted == expected).all()
    assert np.unique(source.semantic(0)).tolist() == [-1, 0, 1]


def ade20k(root: Path) -> None:
    write(root / "images/training/a.jpg", jpeg())
    write(root / "objectInfo150.txt", "Idx\tRatio\tName\n" + "".join(f"{n}\t0\tthing {n}\n" for n in range(1, 151)))
    write_map(root / "annotations/training/a.png", np.tile([0, 1, 150, 2], (10, 5)))


def coco_stuff(root: Path) -> None:
    write(root / "train/a.jpg", jpeg())
    write(root / "labels.txt", "0: unlabeled\n1: person\n182: wood\n")
    write_map(root / "stuffthingmaps/train/a.png", np.tile([255, 0, 181, 12], (10, 5)))  # id 12 was removed: value 11


def cityscapes(root: Path) -> None:
    write(root / "leftImg8bit/train/ulm/ulm_01_leftImg8bit.png", jpeg())
    write_map(root / "gtFine/train/ulm/ulm_01_gtFine_labelIds.png", np.tile([0, 7, 33, 8], (10, 5)))


def voc(root: Path) -> None:
    write(root / "JPEGImages/a.jpg", jpeg())
    write(root / "ImageSets/Segmentation/train.txt", "a\n")
    write_map(root / "SegmentationClass/a.png", np.tile([255, 0, 20, 1], (10, 5)), mode="P")


MAPS: dict[str, tuple[Callable[[Path], None], str | None, int, list[int], tuple[str, str]]] = {
    "ade20k": (ade20k, None, 150, [-1, 0, 149, 1], ("thing 1", "thing 150")),
    "coco_stuff": (coco_stuff, None, 171, [-1, 0, 170, 11], ("person", "wood")),
    "cityscapes": (cityscapes, None, 19, [-1, 0, 18, 1], ("road", "bicycle")),
    "voc_maps": (voc, "SegmentationClass", 21, [-1, 0, 20, 1], ("background", "tvmonitor")),
}


@pytest.mark.parametrize("kind", MAPS)
def test_values_of_label_maps_become_classes(tmp_path: Path, kind: str) -> None:
    make, annotations, count, expected, ends = MAPS[kind]
    make(tmp_path / "root")
    more = {"annotations": str(tmp_path / "root" / annotations)} if annotations else {}
    data = read(tmp_path, tmp_path / "root", **more)
    assert (data.format, data.labels, len(data.class_names)) == (kind, ["semantic"], count)
    assert (data.class_names[0], data.class_names[-1]) == ends
    assert AnnotatedSource(data).semantic(0)[3, :4].tolist() == expected


def test_a_value_without_a_class_leaves_its_picture_out(tmp_path: Path) -> None:
    coco_stuff(tmp_path / "root")
    write(tmp_path / "root/train/b.jpg", jpeg())
    write_map(tmp_path / "root/stuffthingmaps/train/b.png", np.full((10, 20), 11))  # id 12 does not exist
    data = read(tmp_path, tmp_path / "root")
    assert (data.bad_samples, AnnotatedSource(data).keys) == ({"unknown_label": 1}, ["a"])


def test_voc_corners_count_from_one_and_difficult_objects_are_ignored(tmp_path: Path) -> None:
    root = tmp_path / "voc"
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>10</ymax></bndbox>"
    objects = [("dog", box, "0"), ("dog", box, "1"), ("unicorn", "<bndbox><xmin>x</xmin></bndbox>", "0")]
    xml = "".join(f"<object><name>{n}</name>{b}<difficult>{d}</difficult></object>" for n, b, d in objects)
    for stem in ("a", "b", "c"):
        write(root / f"JPEGImages/{stem}.jpg", jpeg())
    write(root / "Annotations/a.xml", f"<annotation>{xml}</annotation>")
    write(root / "Annotations/b.xml", "<annotation>")
    write(root / "ImageSets/Main/train.txt", "a\nb\n")
    data = read(tmp_path, root)
    objects_read = AnnotatedSource(data).objects(0)
    assert (data.format, data.class_names, data.num_samples) == ("voc", ["dog", "unicorn"], 2)
    assert objects_read.boxes.tolist() == [[0, 0, 20, 10]] * 2
    assert objects_read.ignored.tolist() == [False, True]
    assert data.bad_annotations == {"bad_box": 1, "broken_file": 1}
    with pytest.raises(UserError, match="no split 'test'; choose from train"):
        read(tmp_path / "other", root, split="test")


def test_yolo_fractions_become_pixels(tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    write(root / "images/train/a.jpg", jpeg())
    write(root / "images/train/empty.jpg", jpeg())
    lines = [
        "1 0.5 0.5 0.5 0.4",
        "0 0.1 0.1 0.4 0.1 0.4 0.5 0.1 0.5",
        "0 0.1 0.1 0.4",
        "5 0.5 0.5 0.5 0.4",
        "x 1 1 1 1",
    ]
    write(root / "labels/train/a.txt", "\n".join(lines))
    write(root / "data.yaml", "names: {0: cat, 1: dog}\ntrain: images/train\n")
    data = read(tmp_path, root)
    objects = AnnotatedSource(data).objects(0)
    assert (data.format, data.class_names, data.num_samples) == ("yolo", ["cat", "dog"], 2)
    np.testing.assert_allclose(objects.boxes[0], [5, 3, 15, 7])
    assert objects.counts[0] is None
    assert AnnotatedSource(data).masks(0)[1].sum() == 24  # 6 x 4 pixels
    assert data.bad_annotations == {"bad_polygon": 1, "unknown_class": 1, "bad_box": 1}


def test_numbers_of_yolo_without_a_name_are_no_classes(tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    write(root / "images/train/a.jpg", jpeg())
    write(root / "labels/train/a.txt", "7 0.5 0.5 0.5 0.4\n2 0.5 0.5 0.5 0.4\n3 0.5 0.5 0.5 0.4\n")
    write(root / "data.yaml", "names: {7: dog, 2: cat}\ntrain: images/train\n")
    data = read(tmp_path, root)
    assert (data.class_names, data.class_ids, data.bad_annotations) == (["cat", "dog"], [2, 7], {"unknown_class": 1})
    assert AnnotatedSource(data).objects(0).labels.tolist() == [1, 0]


def test_values_of_maps_with_holes_and_unlabeled_ones_are_no_classes(tmp_path: Path) -> None:
    write(tmp_path / "root/a.jpg", jpeg())
    write(tmp_path / "root/b.jpg", jpeg())
    write_map(tmp_path / "maps/a.png", np.tile([0, 5, 2, 255], (10, 5)))
    write_map(tmp_path / "maps/b.png", np.full((10, 20), 1))
    write(tmp_path / "names.yaml", "names: {0: Unlabeled, 5: sky, 2: road}\n")
    settings = {"annotations": str(tmp_path / "maps"), "names": str(tmp_path / "names.yaml")}
    data = read(tmp_path, tmp_path / "root", format="label_maps", **settings)
    assert (data.class_names, data.bad_samples) == (["road", "sky"], {"unknown_label": 1})
    assert AnnotatedSource(data).semantic(0)[3, :4].tolist() == [-1, 1, 0, -1]


def test_maps_of_16_bits_have_more_than_255_classes(tmp_path: Path) -> None:
    """As in the whole of ADE20K. A name says which value is ignored, as `reduce_zero_label` does in mmsegmentation."""
    write(tmp_path / "root/a.jpg", jpeg())
    write(tmp_path / "root/b.jpg", jpeg())
    for stem, values in (("a", [0, 255, 300, 65_535]), ("b", [301, 1, 1, 1])):
        path = tmp_path / f"maps/{stem}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.tile(np.array(values, dtype=np.uint16), (10, 5))).save(path)
    names = ["ignore", *(f"class {value}" for value in range(1, 301))]
    data = read(tmp_path, tmp_path / "root", format="label_maps", annotations=str(tmp_path / "maps"), names=names)
    assert (len(data.class_names), data.class_names[0], data.bad_samples) == (300, "class 1", {"unknown_label": 1})
    assert AnnotatedSource(data).semantic(0)[3, :4].tolist() == [-1, 254, 299, -1]


def test_an_unknown_format_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "root/a.jpg", jpeg())
    with pytest.raises(UserError, match="unknown format of annotations; expected COCO's json"):
        read(tmp_path, tmp_path / "root")


def test_every_sample_of_a_broken_dataset_is_bad(tmp_path: Path) -> None:
    folder = coco(tmp_path / "coco", [BOX], pictures=1)
    write(folder / "train/1.jpg", b"no picture")
    stage = Annotated(kind="data.annotated", name="set", path=str(folder), max_bad_fraction=1.0)
    with pytest.raises(UserError, match=r"1 of 1 images cannot be used .*: 1 unreadable_image"):
        run(stage, tmp_path)
