"""COCO's captions: several for a picture, found beside its folder; bad rows are counted, damaged files are one line."""

import json

import pytest

from data_samples import context, encoded
from vfm.base import UserError
from vfm.data import open_dataset
from vfm.data.labeled.stages import Labeled
from vfm.data.layouts.layout import find_layout
from vfm.data.pairs.stages import Pairs
from vfm.flow.requests.datasets import import_fields

IMAGES = [{"id": 7 + n, "file_name": f"{n:012d}.jpg", "height": 4, "width": 4} for n in range(3)]
ANNOTATIONS = [
    {"image_id": 8, "id": 1, "caption": "a red boat"},
    {"image_id": 7, "id": 2, "caption": " a cat \n"},
    {"image_id": 8, "id": 3, "caption": "a boat at sea"},
    {"image_id": 9, "id": 4, "caption": "a dog"},
]


def coco(root, images=IMAGES, annotations=ANNOTATIONS, *, file="annotations/captions_val2017.json", folder="val2017"):
    (root / folder).mkdir(parents=True)
    for number in range(3):
        (root / folder / f"{number:012d}.jpg").write_bytes(encoded(number))
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    record = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    (root / file).write_text(json.dumps(record))
    return root / file


def pool_of(root, path, **fields):
    stage = Pairs(name="pool", path=str(path), **{"max_bad_fraction": 0.9, **fields})
    stage.preflight(None)
    ctx = context(root / "artifact", "pool")
    return stage.run(ctx), ctx


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/captions_val2017.json", "val2017"),
        ("annotations/captions_val2017.json", "images/val2017"),
        ("captions_val2017.json", "val2017"),
        ("own.json", "images"),
        ("pictures/captions.json", "pictures"),
    ],
)
def test_each_picture_has_all_of_its_captions_wherever_the_folder_is(tmp_path, file, folder):
    path = coco(tmp_path, file=file, folder=folder)
    assert import_fields(str(path)) == ({"kind": "data.pairs", "path": str(path)}, None)
    pool, _ = pool_of(tmp_path, path)
    source = open_dataset(pool)
    assert [source[n].texts["en"] for n in range(3)] == [["a cat"], ["a red boat", "a boat at sea"], ["a dog"]]
    assert [source[n].image for n in range(3)] == [encoded(n) for n in range(3)]
    assert source.keys == [image["file_name"] for image in IMAGES]


def test_a_folder_with_its_captions_and_another_language_are_read(tmp_path):
    path = coco(tmp_path, file="captions_val2017.json")
    german = [{**one, "de": f"deutsch {one['id']}"} for one in ANNOTATIONS]
    path.write_text(json.dumps({"images": IMAGES, "annotations": german}))
    pool, _ = pool_of(tmp_path, tmp_path, texts={"en": "caption", "de": "de"})
    assert open_dataset(pool)[1].texts == {"en": ["a red boat", "a boat at sea"], "de": ["deutsch 1", "deutsch 3"]}


def test_the_folder_of_the_release_with_one_or_both_of_its_splits(tmp_path):
    val = coco(tmp_path / "coco")
    folder = str(tmp_path / "coco")
    assert import_fields(folder) == ({"kind": "data.pairs", "path": folder}, None)
    assert pool_of(tmp_path, folder)[0].num_samples == 3
    train = coco(tmp_path / "coco", file="annotations/captions_train2017.json", folder="train2017")
    of_val, of_train = ({"kind": "data.pairs", "path": str(path)} for path in (val, train))
    assert import_fields(folder) == (of_val, of_train)


def test_images_of_a_folder_with_several_captions_are_read_without_them(tmp_path):
    coco(tmp_path / "coco")
    (tmp_path / "coco/annotations/captions_train2017.json").write_text('{"info": {}, "images": [')
    assert find_layout(str(tmp_path / "coco"), "auto", None).kind == "folder"


def test_numbers_of_images_may_be_texts_in_one_of_the_lists(tmp_path):
    path = coco(tmp_path, annotations=[{**one, "image_id": str(one["image_id"])} for one in ANNOTATIONS])
    source = open_dataset(pool_of(tmp_path, path)[0])
    assert [len(source[n].texts["en"]) for n in range(3)] == [1, 2, 1]


def test_bad_rows_are_counted_by_reason(tmp_path):
    images = [*IMAGES, {"id": 90}, "none", {"id": 91, "file_name": "../up.jpg"}, {"id": 92, "file_name": "gone.jpg"}]
    images += [{"id": 93, "file_name": "000000000000.jpg"}]
    annotations = [*ANNOTATIONS, {"image_id": 1000, "caption": "x"}, {"image_id": 1000, "caption": "y"}, 3, {"id": 5}]
    annotations += [{"image_id": 91, "caption": "x"}, {"image_id": 92, "caption": "x"}, {"image_id": 93, "caption": 4}]
    path = coco(tmp_path, images, annotations)
    pool, ctx = pool_of(tmp_path, path)
    assert pool.num_samples == 3
    assert ctx.bad == {"unreadable_row": 4, "unsafe_path": 1, "missing_image": 2, "missing_caption": 1}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"info": {}, "images": [', "not readable as JSON: "),
        ('{"info": {}, "images": 3}', "expected lists `images` and `annotations`"),
        ('{"images": [], "annotations": [{"bbox": []}]}', "unknown format; expected .tar"),
        ('{"0": {"caption": "x"}}', "unknown format; expected .tar"),
    ],
)
def test_a_damaged_or_other_file_is_one_line(tmp_path, text, line):
    path = tmp_path / "captions_val2017.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        pool_of(tmp_path, path)
    assert str(caught.value).startswith(f"{path}: {line}")
    assert "\n" not in str(caught.value)


def test_captions_without_their_folder_or_as_labels_are_one_line(tmp_path):
    path = coco(tmp_path, folder="elsewhere")
    with pytest.raises(UserError, match=r"no folder near it has its images, such as .*; set image_root to their"):
        pool_of(tmp_path, path)
    assert pool_of(tmp_path, path, image_root=str(tmp_path / "elsewhere"))[0].num_samples == 3
    with pytest.raises(UserError, match="has captions and no labels"):
        Labeled(name="data", path=str(path)).preflight(None)
