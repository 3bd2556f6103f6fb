"""Other people's files: each is recognised, and the command that `vfm doctor PATH` prints works when it is pasted."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli_world import Outcome, run_here
from peer_annotations import ANNOTATIONS, coco, roboflow_folder, yolo_folder
from peer_files import DATA, NAMES, NUM_SAMPLES, class_folders, images, jpeg, open_clip_csv, table, write
from vfm.flow.recognition.tables import image_root
from vfm.flow.requests.datasets import import_fields

KINDS = {
    "img2dataset: webdataset": "finetune",
    "img2dataset: files": "finetune",
    "img2dataset: parquet": "finetune",
    "open_clip: csv, tabs, absolute paths": "finetune",
    "open_clip: csv, commas, relative paths": "finetune",
    "webdataset: jpg + txt": "finetune",
    "webdataset: jpg + json": "finetune",
    "webdataset: jpg + cls": "classify",
    "table: columns photo and description": "finetune",
    "ImageNet: train and val": "classify",
    "class folders, one split": "classify",
    "datasets: Parquet with captions": "finetune",
    "datasets: Parquet with ClassLabel": "classify",
    "Parquet with integers and names": "classify",
    "datasets: save_to_disk": "finetune",
    "datasets: imagefolder": "finetune",
    "kohya: images and texts": "finetune",
    "photos": "distill",
    "COCO: folders": "run boxes",
    "COCO: instances json": "run boxes",
    "COCO: captions json": "finetune",
    "FiftyOne: COCODetectionDataset": "run boxes",
    "FiftyOne: ImageClassificationDirectoryTree": "classify",
    "Ultralytics: data.yaml": "run boxes",
    "Ultralytics: folder": "run boxes",
    "Ultralytics: classification": "classify",
    "Roboflow: data.yaml": "run boxes",
    "VOC": "run boxes",
    "LLaVA: json": "run questions",
    "Kinetics: folders of videos": "run actions",
}


def looked(path: Path) -> tuple[Outcome, list[str]]:
    """Look at a path, and list the words of the commands that it shows."""
    done = run_here("doctor", path)
    lines = [line.removeprefix("next: ") for line in done.out.splitlines() if line.startswith("next: ")]
    return done, lines


@pytest.mark.parametrize("name", KINDS)
def test_the_next_command_of_other_peoples_files_plans(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = {**DATA, **ANNOTATIONS}[name](tmp_path)
    done, lines = looked(path)
    assert done.code == 0, done.err
    (line,) = lines
    program, *words = shlex.split(line)
    assert program == "vfm"
    assert line.startswith(f"vfm {KINDS[name]} ")
    if words[0] == "run":
        planned = run_here("plan", *words[1:])
    else:
        names = [f"{word.partition(',')[0].partition('.')[0]},none" if "ViT" in word else word for word in words]
        planned = run_here(*names, "--dry-run", "--quiet")
    assert planned.code == 0, planned.err
    assert "samples: " in done.out


def test_a_path_alone_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "photos")
    assert run_here("photos").out == run_here("doctor", "photos").out
    images(tmp_path / "data")
    assert "Missing argument" in run_here("data").err, "a command is not taken for a folder of its name"
    assert run_here("nowhere").code == 2


def test_paths_outside_of_the_tables_folder_need_the_users_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv = open_clip_csv(tmp_path, absolute=True, separator="\t")
    done, (line,) = looked(csv)
    assert f"{NUM_SAMPLES}" in done.out
    assert line.endswith("--data-option image_root=/")
    assert "image_root" not in import_fields(str(csv))[0]
    images(tmp_path / "elsewhere/photos")
    monkeypatch.chdir(tmp_path / "elsewhere")
    relative = table(tmp_path / "tables.csv", ["filepath", "title"], [["photos/00001.jpg", "a"]])
    (tmp_path / "photos/00001.jpg").unlink()
    assert image_root(str(relative)) == str(tmp_path / "elsewhere")


def test_annotated_folders_are_no_class_folders(tmp_path: Path) -> None:
    fields, train = import_fields(str(coco(tmp_path)))
    assert (fields["kind"], fields["split"], train) == ("data.annotated", "train2017", None)
    val, train = import_fields(str(roboflow_folder(tmp_path)))
    assert train
    assert (val["split"], "split" in train) == ("val", False)


def test_a_folder_with_training_images_alone_is_not_one_class(tmp_path: Path) -> None:
    fields, train = import_fields(str(class_folders(tmp_path, "train")))
    assert fields["path"].endswith("/train")
    assert train is None


def test_yolos_images_are_beside_its_file_wherever_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = yolo_folder(tmp_path)
    text = (root / "data.yaml").read_text().replace(f"path: {root}", "path: .")
    (root / "data.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    _, train = import_fields("shapes")
    assert train
    assert train["path"] == "shapes"
    assert run_here("doctor", "shapes").code == 0


def test_parquet_files_of_several_splits_are_not_mixed(tmp_path: Path) -> None:
    for split, count in (("train", 8), ("test", 4)):
        rows = [{"image": {"bytes": jpeg(n), "path": None}, "text": f"a photo {n}"} for n in range(count)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}-00000-of-00001.parquet")
    test, train = import_fields(str(tmp_path))
    assert train
    assert [fields["path"] for fields in (test, train)] == [
        f"{tmp_path}/{split}-00000-of-00001.parquet" for split in ("test", "train")
    ]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.yaml", "stages:\n  - {kind: data.pairs, name: pool, path: nowhere}\n", "pool: data.pairs"),
        ("b.yaml", "stages:\n  - {kind: data.pear, name: pool}\n", "wrong: "),
        ("c.yaml", "just: yaml\n", "wrong: expected a recipe"),
        ("d.jpg", jpeg(0), "format: JPEG, 48 x 48 pixels, RGB"),
        ("e.jpg", jpeg(0)[:300], "wrong: it cannot be decoded"),
        ("f.csv", "image,caption\n", "wrong: "),
        ("g.xyz", b"\0\1", "unknown format"),
    ],
)
def test_a_look_says_what_is_wrong(name: str, content: bytes | str, line: str, tmp_path: Path) -> None:
    done = run_here("doctor", write(tmp_path / name, content))
    assert line in done.out + done.err
    assert done.code == (2 if "wrong" in line or "unknown" in line else 0) or "next: " in done.out


def test_a_single_class_is_a_problem_and_no_training(tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path / "set/only" / f"{number}.jpg", jpeg(number))
    done, lines = looked(tmp_path / "set")
    assert (done.code, lines) == (2, [])
    assert "wrong: all images have the same class" in done.out


def test_a_broken_llava_file_counts_what_it_loses(tmp_path: Path) -> None:
    path = ANNOTATIONS["LLaVA: json"](tmp_path)
    records = json.loads(path.read_text())
    records[0]["image"] = "images/absent.jpg"
    del records[1]["conversations"][1]["value"]
    path.write_text(json.dumps(records))
    done, _ = looked(path)
    assert "samples: 22" in done.out
    assert "skipped: 1 missing_image" in done.out
    assert "skipped: 1 no_image" in done.out
    assert "skipped: 1 unreadable_row" in done.out


def test_data_writes_the_stage_that_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = DATA["table: columns photo and description"](tmp_path)
    assert run_here("data", path, "--write", "pool.yaml").code == 0
    planned = run_here("plan", "pool.yaml")
    assert planned.code == 0, planned.err
    assert "image_key: photo" in (tmp_path / "pool.yaml").read_text()
    again = run_here("data", path, "--write", "pool.yaml")
    assert (again.code, again.err) == (2, "error: --write pool.yaml: exists; give another file, or delete it\n")


def test_data_counts_sizes_words_classes_and_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [["1.jpg", "a red boat"], ["2.jpg", "a boat"], ["3.jpg", "<b>a very red old boat</b>"], ["4.jpg", "a"]]
    for number, (name, _) in enumerate(rows):
        write(tmp_path / name, jpeg(min(number, 2), 40))
    done = run_here("data", table(tmp_path / "a.csv", ["image", "caption"], rows), "--page", "page.html")
    assert done.code == 0, done.err
    assert "words of a caption (en): 1 to 5, median 3" in done.out
    assert "shorter side of the images: 40 to 40, median 40 pixels" in done.out
    assert "copies: 1 images have the bytes of an earlier one; the first is " in done.out
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img ") == 4
    assert "&lt;b&gt;a very red old boat&lt;/b&gt;" in page
    assert "<b>" not in page
    labels = run_here("data", class_folders(tmp_path))
    assert f"images of a class: {NUM_SAMPLES // 4} (n03) to {NUM_SAMPLES // 4} (n00)" in labels.out


def test_hidden_labels_are_missing_ones(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": jpeg(n), "path": None}, "label": n % 4 if n % 3 else -1} for n in range(NUM_SAMPLES)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    done, lines = looked(tmp_path / "test.parquet")
    hidden = sum(row["label"] == -1 for row in rows)
    assert f"wrong: skipped: {hidden} missing_label; the first is {tmp_path}/test.parquet: row 0 (label -1)" in done.out
    assert lines[0].startswith("vfm classify ")


def test_a_store_and_a_run_are_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("stages:\n  - {kind: shapes.pool, name: pool, num_samples: 8}\n")
    store = tmp_path / "store"
    assert run_here("run", tmp_path / "r.yaml", "--store", store, "--quiet").code == 0
    done, lines = looked(store)
    assert done.out.startswith(f"{store}: a store of vfm\n  artifacts: 1\n  runs: 1 (r)\n")
    of_run, more = looked(store / "runs/r")
    assert of_run.out.startswith(f"{store}/runs/r: a run of vfm\n  artifacts: 1 (pool)\n")
    for line in (*lines, *more):
        assert run_here(*shlex.split(line)[1:]).code == 0


def test_a_column_of_labels_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = DATA["Parquet with integers and names"](tmp_path)
    done = run_here("data", path, "--data-option", "label_key=nope", "--out", tmp_path / "s.png")
    assert f"{path}: no column 'nope' (label_key); the columns are image, label, names" in done.err


def test_a_file_that_does_not_exist_is_no_command() -> None:
    assert "No such file 'captions.cvs'." in run_here("captions.cvs").err
    assert "No such command 'clasify'. Did you mean 'classify'?" in run_here("clasify").err


def test_the_names_of_a_class_label_are_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` writes them into the schema of Parquet, whose labels are numbers."""
    monkeypatch.chdir(tmp_path)
    path = DATA["datasets: Parquet with ClassLabel"](tmp_path)
    done, _ = looked(path)
    assert f"classes: {len(NAMES)} ({', '.join(NAMES)})" in done.out
    assert "numbers without names" not in done.out
    dry = run_here("classify", path, "--model", "resnet10t,none", "--method", "finetune", "--dry-run")
    assert dry.code == 0, dry.err
    assert "class_names" not in dry.out
